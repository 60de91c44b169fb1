# SPDX-License-Identifier: BSD-3-Clause
"""`make demo`: the whole path once, on this machine, in a temporary folder.

A store starts, a volume is made and served by nbdkit, a file system goes into it and comes back,
fio loads it, everything stops. Each step says what it does and what came out; a step that fails
ends the demo with exit code 1.
"""

from __future__ import annotations

import filecmp
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

VOLUME_SIZE = "2G"
IMAGE_BYTES = 256 << 20
FILES = 64
FIO_SECONDS = 5
READY_TIMEOUT_S = 30.0

# On a path of their own, as everybody's sbin is not.
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


class DemoError(Exception):
    """A step failed; the message says which and why."""


def say(text: str) -> None:
    """A step, or what came out of it."""
    print(text, flush=True)


def run(*command: str | Path, quiet: bool = True) -> str:
    """Runs a program to its end; raises DemoError with what it said when it fails."""
    words = [str(word) for word in command]
    words[0] = shutil.which(words[0], path=_PATH) or words[0]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    except FileNotFoundError as error:
        raise DemoError(f"{words[0]} is not installed: packaging/install-deps.sh run") from error
    except subprocess.TimeoutExpired as error:
        raise DemoError(f"{words[0]} did not end within 5 minutes") from error
    if done.returncode != 0:
        raise DemoError(
            f"{' '.join(words)}: status {done.returncode}\n{done.stderr or done.stdout}"
        )
    if not quiet:
        say(done.stdout.rstrip())
    return done.stdout


class Store:
    """`copygate up` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        command = [sys.executable, "-P", "-m", "gateway.cli.main", "up", "--json"]
        command += ["--data", str(folder / "data"), "--volume", f"demo:{VOLUME_SIZE}"]
        command += ["--nbd", f"unix:{folder}/nbd.sock"]
        # Other ports than the defaults: a store that runs here already is not disturbed.
        for option in ("--mds-listen", "--grpc-listen", "--chunkserver-listen"):
            command += [option, "127.0.0.1:0"]
        self._log = folder / "up.log"
        self._answer = folder / "up.json"
        with self._log.open("w") as log, self._answer.open("w") as answer:
            self._process = subprocess.Popen(command, stdout=answer, stderr=log)
        self.ready = self._wait()

    def _wait(self) -> dict[str, Any]:
        deadline = time.monotonic() + READY_TIMEOUT_S
        while time.monotonic() < deadline:
            text = self._answer.read_text()
            if text.endswith("}\n"):
                ready: dict[str, Any] = json.loads(text)
                return ready
            if self._process.poll() is not None:
                raise DemoError(f"copygate up ended:\n{self._log.read_text()}")
            time.sleep(0.01)
        self.stop()
        raise DemoError(f"copygate up was not ready:\n{self._log.read_text()}")

    def resident_mib(self) -> float:
        """Resident memory of the store and of its nbdkit."""
        total = 0
        for pid in (self.ready["pid"], self.ready["nbdkit_pid"]):
            for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                if line.startswith("VmRSS:"):
                    total += int(line.split()[1])
        return total / 1024

    def stop(self) -> float:
        """Ends it as a service manager would; returns the seconds that it took."""
        began = time.monotonic()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            status = self._process.wait(timeout=60)
        except subprocess.TimeoutExpired as error:
            self._process.kill()
            self._process.wait()
            raise DemoError("copygate up did not end within a minute") from error
        if status != 0:
            raise DemoError(f"copygate up ended with {status}:\n{self._log.read_text()}")
        return time.monotonic() - began


def make_image(folder: Path) -> Path:
    """An ext4 image with files in it, made without being root."""
    files = folder / "files"
    files.mkdir()
    for number in range(FILES):
        (files / f"file{number}").write_bytes(os.urandom(64 << 10) + b"x" * number)
    image = folder / "ext4.raw"
    with image.open("wb") as file:
        file.truncate(IMAGE_BYTES)
    run("mkfs.ext4", "-q", "-F", "-d", files, image)
    return image


def round_trip(folder: Path, image: Path, uri: str) -> None:
    """The image into the volume and back; what comes back is the same, and fsck agrees."""
    began = time.monotonic()
    run("nbdcopy", "--flush", image, uri)
    seconds = time.monotonic() - began
    data = image.stat().st_blocks * 512 >> 20
    say(f"   in: {IMAGE_BYTES >> 20} MiB, of it {data} MiB data, in {seconds:.2f} s")
    back = folder / "back.raw"
    began = time.monotonic()
    run("qemu-img", "convert", "-f", "raw", "-O", "raw", uri, back)
    say(f"   out: {time.monotonic() - began:.2f} s")
    # The volume is larger than the image: behind it there are zeros.
    os.truncate(back, IMAGE_BYTES)
    if not filecmp.cmp(image, back, shallow=False):
        raise DemoError("what came back differs from what went in")
    run("e2fsck", "-f", "-n", back)
    say("   compared equal; e2fsck finds nothing")


def fio(folder: Path, uri: str, name: str, options: Sequence[str]) -> Mapping[str, Any]:
    """One load; returns fio's figures for the direction that it used."""
    report = folder / f"{name}.json"
    run(
        "fio",
        f"--name={name}",
        "--ioengine=nbd",
        f"--uri={uri}",
        f"--rw={name}",
        f"--runtime={FIO_SECONDS}",
        "--time_based",
        "--size=1G",
        "--randrepeat=1",
        *options,
        "--output-format=json",
        f"--output={report}",
    )
    text = report.read_text()
    job = json.loads(text[text.index("{") :])["jobs"][0]
    if job["error"]:
        raise DemoError(f"fio {name}: error {job['error']}")
    figures: Mapping[str, Any] = job["write" if name.endswith("write") else "read"]
    return figures


def loads(folder: Path, uri: str) -> None:
    """fio over NBD: durable random writes, then random reads."""
    for name, options in (
        ("randwrite", ("--bs=4k", "--iodepth=32")),
        ("randread", ("--bs=4k", "--iodepth=32")),
    ):
        found = fio(folder, uri, name, options)
        latency = found["clat_ns"]["percentile"]
        say(
            f"   {name} 4 KiB, depth 32: {found['iops']:,.0f} IOPS, "
            f"{found['bw_bytes'] / (1 << 20):,.0f} MiB/s, "
            f"median {latency['50.000000'] / 1000:,.0f} us, "
            f"99 % {latency['99.000000'] / 1000:,.0f} us"
        )


def demo(folder: Path) -> None:
    """All steps, in order."""
    say(f"1. A store in {folder}, with a volume of {VOLUME_SIZE}, served over NBD")
    began = time.monotonic()
    store = Store(folder)
    try:
        uri = store.ready["volumes"]["demo"]
        say(f"   ready after {time.monotonic() - began:.2f} s: {uri}")
        say(f"2. An ext4 image with {FILES} files through it: nbdcopy in, qemu-img out")
        round_trip(folder, make_image(folder), uri)
        say(f"3. fio for {FIO_SECONDS} s each; every write is durable when it is acknowledged")
        loads(folder, uri)
        say(f"   resident memory, store and nbdkit: {store.resident_mib():.0f} MiB")
    except BaseException:
        store.stop()
        raise
    say("4. The end")
    say(f"   stopped cleanly in {store.stop():.2f} s")
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    say(f"   processor time of all of it: {usage.ru_utime + usage.ru_stime:.1f} s")


def main() -> int:
    """Runs the demo; returns the exit code."""
    folder = Path(tempfile.mkdtemp(prefix="copygate-demo-"))
    try:
        demo(folder)
    except (DemoError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        print(f"demo: its files are kept in {folder}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("demo: interrupted", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        return 130
    shutil.rmtree(folder)
    say("Next: .venv/bin/copygate up --volume vol1:10G")
    return 0


if __name__ == "__main__":
    sys.exit(main())
