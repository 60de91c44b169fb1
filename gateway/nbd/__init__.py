# SPDX-License-Identifier: BSD-3-Clause
"""The nbdkit plugin in Python; docs/nbd.md is its manual, plugin.py what nbdkit loads."""
