# SPDX-License-Identifier: BSD-3-Clause
"""Delays frames where the kernel has no netem: reads them from a tap device, and sends them later.

    relay.py TAP PORT DELAY_MS JITTER_MS SEED

A rule of nftables leads what goes out at PORT to TAP, which this program makes. Each frame waits
for DELAY_MS +- JITTER_MS, drawn for it alone, so that later frames overtake earlier ones. Then it
leaves at PORT with the mark PASSED, which the rule lets through. TAP is gone when the program ends.
"""

import fcntl
import heapq
import os
import random
import select
import socket
import struct
import sys
import time

PASSED = 0x7C
_TUNSETIFF = 0x400454CA
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_SIOCSIFFLAGS, _IFF_UP, _IFF_NOARP = 0x8914, 0x1, 0x80
_QUEUE_MAX = 10_000  # frames; as netem's limit


def open_tap(name: str) -> int:
    """Makes the device, switched on."""
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tap, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI))
    with socket.socket() as control:
        flags = _IFF_UP | _IFF_NOARP
        fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags))
    return tap


def relay(tap: int, out: socket.socket, delay_s: float, jitter_s: float, seed: int) -> None:
    """Runs until the process is killed."""
    pick = random.Random(seed)
    waiting: list[tuple[float, int, bytes]] = []
    number = 0
    while True:
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            out.send(heapq.heappop(waiting)[2])
        wait = max(0.0, waiting[0][0] - now) if waiting else None
        if not select.select([tap], [], [], wait)[0]:
            continue
        try:
            frame = os.read(tap, 65536)
        except BlockingIOError:
            continue
        if len(waiting) < _QUEUE_MAX:
            number += 1
            due = time.monotonic() + max(0.0, delay_s + pick.uniform(-jitter_s, jitter_s))
            heapq.heappush(waiting, (due, number, frame))


def main() -> None:
    """The command line."""
    name, port, delay, jitter, seed = sys.argv[1:]
    out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    out.bind((port, 0))  # protocol 0: it receives nothing
    out.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, PASSED)
    relay(open_tap(name), out, float(delay) / 1000, float(jitter) / 1000, int(seed))


if __name__ == "__main__":
    main()
