# SPDX-License-Identifier: BSD-3-Clause
"""iSCSI: Debian's tgtd as our child, one process for each target, and the records of exports."""
