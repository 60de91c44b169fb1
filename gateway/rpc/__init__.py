# SPDX-License-Identifier: BSD-3-Clause
"""baidu_std, the RPC protocol of CurveBS, on asyncio."""
