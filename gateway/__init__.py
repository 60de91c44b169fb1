# SPDX-License-Identifier: BSD-3-Clause
"""Copygate: a block-storage gateway."""
