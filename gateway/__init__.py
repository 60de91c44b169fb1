# SPDX-License-Identifier: BSD-3-Clause
"""Copygate: a block-storage gateway."""

import os

# We start programs (nbdkit) from processes that use gRPC. With its fork support gRPC restarts its
# poller in the child, where it finds its descriptor closed and aborts before the program begins
# (grpc issue 43055). All our children exec: nothing to prepare. It is read when grpc is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "false")
