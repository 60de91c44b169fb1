# SPDX-License-Identifier: BSD-3-Clause
"""The chunkserver: a Python host process around the C engine that serves the chunks of one disk."""
