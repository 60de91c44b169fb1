# SPDX-License-Identifier: BSD-3-Clause
"""Messages and services on the wire, generated from the .proto files of this folder."""
