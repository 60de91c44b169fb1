# SPDX-License-Identifier: BSD-3-Clause
"""What three replicas cost when nobody uses them, when they start, and when leaders change."""

import json
import shutil
import subprocess
import time
from collections import Counter
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
    found: list[dict[str, Any]] = stack.copygate_json("copyset", "list")
    return found


def _led(stack: Stack, count: int) -> bool:
    found = copysets(stack)
    return len(found) >= count and all(copyset["leader"] for copyset in found)


def _healthy(stack: Stack) -> bool:
    found = copysets(stack)
    return bool(found) and all(c["state"] == "healthy" and not c["change"] for c in found)


def _write(stack: Stack, seconds: float, action: Callable[[], object]) -> dict[str, Any]:
    """`copygate bench`, 4 KiB random writes at depth 32; `action` is carried out meanwhile.

    Raises if a write fails.
    """
    words = [COPYGATE, "--mds", stack.mds_address, "bench", "bench", "--rw", "randwrite"]
    words += ["--iodepth", "32", "--runtime", str(seconds), "--size", _SPAN, "--json"]
    load = subprocess.Popen([*words, "--destroy-data"], stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(_AT_S)
        action()
        printed, _ = load.communicate(timeout=seconds + 60)
    finally:
        load.kill()
        load.wait()
    if load.returncode != 0:
        raise RuntimeError("a write failed while a leader was killed, moved, or replaced")
    done: dict[str, Any] = json.loads(printed)
    return done


def _longest_write(stack: Stack, action: Callable[[], object]) -> float:
    """Seconds that the longest of many writes took."""
    return float(_write(stack, _LOAD_S, action)["write_latency_ns"]["max"]) / 1e9


def _nothing() -> None:
    """No action."""


def _kill(stack: Stack, number: int) -> float:
    leaders = Counter(copyset["leader"] for copyset in copysets(stack))
    (most, leads), *_ = leaders.most_common(1)
    victim = stack.chunkservers[_ids(stack).index(most)]
    pause = _longest_write(stack, victim.kill)
    victim.start()
    wait_until(lambda: _healthy(stack), 60, "the killed server's replicas", interval=0.2)
    say(f"  kill {number + 1}: led {leads} copysets, longest write {pause * 1000:.0f} ms")
    return pause


def _ids(stack: Stack) -> list[int]:
    """The ids of the stack's chunkservers; of one that was wiped, the one that it has now."""
    known = sorted(stack.copygate_json("status")["chunkservers"], key=lambda server: server["id"])
    by_port = {server["address"].rpartition(":")[2]: server["id"] for server in known}
    return [by_port[str(port)] for port in stack.chunkserver_ports]


def _transfer(stack: Stack, number: int) -> float:
    found = copysets(stack)
    copyset = found[number % len(found)]
    target = next(m["chunkserver"] for m in copyset["members"] if m["role"] == "voter")

    def move() -> None:
        stack.copygate("copyset", "transfer", copyset["copyset"], "--to", str(target))

    pause = _longest_write(stack, move)
    say(f"  transfer {number + 1}: longest write {pause * 1000:.0f} ms")
    return pause


def measure_pauses(folder: Path, times: int) -> dict[str, Any]:
    """Leaders killed and moved, `times` times each, under writes at depth 32; seconds."""
    with Stack(folder / "pauses", replicas=3) as stack:
        stack.create_volume("bench", _VOLUME)
        _longest_write(stack, _nothing)
        calm = _longest_write(stack, _nothing)
        say(f"  nothing happens: longest write {calm * 1000:.0f} ms")
        transfers = [_transfer(stack, number) for number in range(times)]
        kills = [_kill(stack, number) for number in range(times)]
    shutil.rmtree(folder / "pauses")
    return {"calm": calm, "kills": kills, "transfers": transfers}


def measure_rejoin(folder: Path, seconds: float) -> dict[str, Any]:
    """Writes a second before, and while a chunkserver whose disk was replaced catches up."""
    with Stack(folder / "rejoin", replicas=3) as stack:
        stack.create_volume("bench", _VOLUME)
        _write(stack, 3 * seconds, _nothing)
        before = _write(stack, seconds, _nothing)["iops"]
        victim = stack.chunkservers[2]
        old = _ids(stack)[2]
        victim.kill()
        shutil.rmtree(stack.data_folders[2])
        victim.launch()  # it waits until its old self counts as gone
        wait_until(lambda: _ids(stack)[2] != old, 40, "registration of the new disk")
        stack.copygate("retire", str(old), "--to", str(_ids(stack)[2]))
        began = time.monotonic()
        rates = []
        while not _healthy(stack) or not rates:
            rates.append(_write(stack, seconds, _nothing)["iops"])
        took = time.monotonic() - began
    shutil.rmtree(folder / "rejoin")
    say(f"  rejoin: {before:,.0f}/s before, {min(rates):,.0f}/s at least in {took:.1f} s")
    return {"before": before, "rates": rates, "took_s": took}


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
        terms = {copyset["copyset"]: copyset["term"] for copyset in copysets(stack)}

        def led_anew() -> bool:
            found = copysets(stack)
            return all(c["leader"] and c["term"] > terms[c["copyset"]] for c in found)

        for daemon in stack.chunkservers:
            daemon.stop()
        began = time.monotonic()
        for daemon in stack.chunkservers:
            daemon.launch()
        for daemon in stack.chunkservers:
            daemon.wait_ready()
        serving = time.monotonic() - began
        wait_until(led_anew, 120, "leaders", interval=0.1)
        led = time.monotonic() - began
    shutil.rmtree(folder / "start")
    say(f"  start of {_COPYSETS_START} copysets: ports {serving:.2f} s, leaders {led:.2f} s")
    return {"serving_s": serving, "leaders_s": led, "copysets": _COPYSETS_START}
