# SPDX-License-Identifier: BSD-3-Clause
"""What three replicas cost when nobody uses them, when they start, and when leaders change."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loads import say
from measure import process_cpu_seconds
from support.process import wait_until
from support.stack import Stack
from support.tools import COPYGATE

_VOLUME = "8G"
_SPAN = "1G"
_COPYSETS_IDLE = 100
_COPYSETS_START = 1000
_LOAD_S = 4.0  # of one load; longer than any pause may be
_AT_S = 1.0  # into the load something happens


def copysets(stack: Stack) -> list[dict[str, Any]]:
    """What the MDS knows about the copysets."""
    found: list[dict[str, Any]] = stack.copygate_json("copyset", "list")["copysets"]
    return found


def _led(stack: Stack, count: int) -> bool:
    found = copysets(stack)
    return len(found) >= count and all(
        any(member["leader"] for member in copyset["members"]) for copyset in found
    )


def _healthy(stack: Stack) -> bool:
    found = copysets(stack)
    return bool(found) and all(copyset["state"] == "healthy" for copyset in found)


def _longest_write(stack: Stack, action: Callable[[], None]) -> float:
    """Seconds that the longest of many writes at depth 32 took, while `action` was carried out.

    Raises if one of them fails.
    """
    words = [COPYGATE, "--mds", stack.mds_address, "bench", "bench", "--rw", "randwrite"]
    words += ["--iodepth", "32", "--runtime", str(_LOAD_S), "--size", _SPAN, "--json"]
    load = subprocess.Popen([*words, "--destroy-data"], stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(_AT_S)
        action()
        printed, _ = load.communicate(timeout=_LOAD_S + 60)
    finally:
        load.kill()
        load.wait()
    if load.returncode != 0:
        raise RuntimeError("a write failed while a leader was killed or moved")
    return float(json.loads(printed)["write_latency_ns"]["max"]) / 1e9


def _kill(stack: Stack, number: int) -> float:
    leads = {
        server: sum(
            member["leader"] and member["chunkserver"] == server
            for copyset in copysets(stack)
            for member in copyset["members"]
        )
        for server in {m["chunkserver"] for c in copysets(stack) for m in c["members"]}
    }
    most = max(leads, key=lambda server: leads[server])
    victim = stack.chunkservers[most - 1]
    pause = _longest_write(stack, victim.kill)
    victim.start()
    wait_until(lambda: _healthy(stack), 60, "the killed server's replicas", interval=0.2)
    say(f"  kill {number + 1}: led {leads[most]} copysets, longest write {pause * 1000:.0f} ms")
    return pause


def _transfer(stack: Stack, number: int) -> float:
    found = copysets(stack)
    copyset = found[number % len(found)]
    target = next(m["chunkserver"] for m in copyset["members"] if not m["leader"])

    def move() -> None:
        stack.copygate("copyset", "transfer", copyset["id"], str(target))

    pause = _longest_write(stack, move)
    say(f"  transfer {number + 1}: longest write {pause * 1000:.0f} ms")
    return pause


def measure_pauses(folder: Path, times: int) -> dict[str, Any]:
    """Leaders killed and moved, `times` times each, under writes at depth 32; seconds."""
    with Stack(folder / "pauses", replicas=3) as stack:
        stack.create_volume("bench", _VOLUME)
        _longest_write(stack, lambda: None)
        calm = _longest_write(stack, lambda: None)
        say(f"  nothing happens: longest write {calm * 1000:.0f} ms")
        transfers = [_transfer(stack, number) for number in range(times)]
        kills = [_kill(stack, number) for number in range(times)]
    shutil.rmtree(folder / "pauses")
    return {"calm": calm, "kills": kills, "transfers": transfers}


def measure_idle(folder: Path, seconds: float) -> dict[str, Any]:
    """CPU of three chunkservers with 100 copysets each that nobody uses, in cores."""
    options = ["--copysets", str(_COPYSETS_IDLE)]
    with Stack(folder / "idle", replicas=3, mds_options=options) as stack:
        wait_until(lambda: _led(stack, _COPYSETS_IDLE), 60, "leaders", interval=0.2)
        time.sleep(4)  # groups are quiet two seconds after their last entry
        pids = [daemon.pid for daemon in stack.chunkservers]
        before = [process_cpu_seconds(pid) for pid in pids]
        time.sleep(seconds)
        cores = [(process_cpu_seconds(p) - b) / seconds for p, b in zip(pids, before, strict=True)]
    shutil.rmtree(folder / "idle")
    say(f"  idle: {', '.join(f'{core * 100:.2f} %' for core in cores)} of a core")
    return {"cores": cores, "copysets": _COPYSETS_IDLE}


def measure_start(folder: Path) -> dict[str, Any]:
    """Seconds from the command until 1000 copysets, three replicas each, have their leaders."""
    options = ["--copysets", str(_COPYSETS_START)]
    with Stack(folder / "start", replicas=3, mds_options=options) as stack:
        wait_until(lambda: _led(stack, _COPYSETS_START), 120, "leaders", interval=0.5)
        for daemon in stack.chunkservers:
            daemon.stop()
        began = time.monotonic()
        for daemon in stack.chunkservers:
            daemon.launch()
        for daemon in stack.chunkservers:
            daemon.wait_ready()
        serving = time.monotonic() - began
        wait_until(lambda: _led(stack, _COPYSETS_START), 120, "leaders", interval=0.1)
        led = time.monotonic() - began
    shutil.rmtree(folder / "start")
    say(f"  start of {_COPYSETS_START} copysets: ports {serving:.2f} s, leaders {led:.2f} s")
    return {"serving_s": serving, "leaders_s": led, "copysets": _COPYSETS_START}
