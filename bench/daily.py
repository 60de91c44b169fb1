# SPDX-License-Identifier: BSD-3-Clause
"""What `copygate up` costs from day to day: start, idle CPU, memory under load."""

import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from loads import say
from measure import Job, memory_bytes, process_cpu_seconds
from support.libnbd import close, connect, unix_uri
from support.process import Daemon, free_port, unix_accepts
from support.stack import processes_of
from support.tools import CLEAN_ENV, COPYGATE, which


def _up(folder: Path, socket: Path) -> Daemon:
    return Daemon(
        "up",
        [
            *(COPYGATE, "up", "--data", str(folder / "up"), "--volume", "disk:4G"),
            *("--nbd", f"unix:{socket}"),
            *("--mds-listen", f"127.0.0.1:{free_port()}"),
            *("--grpc-listen", f"127.0.0.1:{free_port()}"),
            *("--chunkserver-listen", f"127.0.0.1:{free_port()}"),
        ],
        folder / "up.log",
        lambda: unix_accepts(socket),
        env=CLEAN_ENV,
    )


def _start(daemon: Daemon, uri: str) -> float:
    """Seconds from the command to the first byte read."""
    began = time.monotonic()
    daemon.start()
    handle = connect(uri)
    handle.pread(512, 0)
    elapsed = time.monotonic() - began
    close(handle)
    return elapsed


def measure_up(folder: Path, *, quick: bool) -> dict[str, Any]:
    """Starts on a new folder and an old one, idles, and reads memory under a mixed load."""
    sockets = Path(tempfile.mkdtemp(prefix="cgu-"))
    socket = sockets / "up"
    uri = unix_uri(socket, "disk")
    daemon = _up(folder, socket)
    try:
        fresh, again = [], []
        for _ in range(3):
            fresh.append(_start(daemon, uri))
            daemon.stop()
            again.append(_start(daemon, uri))
            daemon.stop()
            shutil.rmtree(folder / "up")
        say(f"  up: {statistics.median(fresh):.2f} s new, {statistics.median(again):.2f} s again")
        _start(daemon, uri)
        pids = processes_of(daemon.pid)
        time.sleep(2)
        window = 5.0 if quick else 20.0
        before = sum(process_cpu_seconds(pid) for pid in pids)
        time.sleep(window)
        idle = (sum(process_cpu_seconds(pid) for pid in pids) - before) / window
        say(f"  up: idle {idle * 100:.2f} % of a core")
        memory = _memory_under_load(uri, daemon.pid, folder, 30 if quick else 180)
        daemon.stop()
    finally:
        daemon.kill()
        shutil.rmtree(sockets, ignore_errors=True)
    return {
        "start_new_s": statistics.median(fresh),
        "start_again_s": statistics.median(again),
        "idle_core": idle,
        **memory,
    }


def _memory_under_load(uri: str, root: int, folder: Path, seconds: int) -> dict[str, Any]:
    """Random reads and writes of 4 KiB to 256 KiB; RSS and PSS of all processes, once a second."""
    idle_rss, idle_pss = memory_bytes(processes_of(root))
    job = Job("randrw", "4k", 32, "2g", seconds=seconds)
    options = [word for word in job.options() if not word.startswith("--bs=")]
    load = subprocess.Popen(
        [
            *(which("fio") or "fio", "--name=memory", "--ioengine=nbd", f"--uri={uri}"),
            *(*options, "--bssplit=4k/70:64k/20:256k/10", "--output=/dev/null"),
        ],
        cwd=folder,
    )
    samples: list[tuple[int, int]] = []
    while load.poll() is None:
        samples.append(memory_bytes(processes_of(root)))
        time.sleep(1)
    if load.returncode != 0:
        raise RuntimeError(f"fio failed with {load.returncode} under the load for memory")
    # The first half is warming up: every chunk is touched for the first time.
    quarter = max(1, len(samples) // 4)
    first = statistics.median(rss for rss, _ in samples[2 * quarter : 3 * quarter])
    last = statistics.median(rss for rss, _ in samples[-quarter:])
    peak = max(rss for rss, _ in samples)
    say(f"  up: {peak >> 20} MiB at most, {last / first - 1:+.1%} in the last quarter")
    return {
        "idle_rss": idle_rss,
        "idle_pss": idle_pss,
        "peak_rss": peak,
        "peak_pss": max(pss for _, pss in samples),
        "rss_growth": last / first - 1,
        "load_seconds": seconds,
    }
