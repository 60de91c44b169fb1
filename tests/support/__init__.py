# SPDX-License-Identifier: BSD-3-Clause
"""What the heavy tests, the campaigns and the benchmarks share."""
