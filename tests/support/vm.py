# SPDX-License-Identifier: BSD-3-Clause
"""Boots Debian's kernel in qemu over the host's own root folder (virtme-ng); runs a script there.

No KVM is needed. The guest reaches the host's loopback as 10.0.2.2. A script asks the test for
something on the host (restart the gateway, say) with `host WORD`, which waits for the answer.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from support.process import tail
from support.tools import which

HOST = "10.0.2.2"

_PRELUDE = """\
set -Eeuo pipefail
exec 2>&1
trap 'echo "guest: line $LINENO failed: $BASH_COMMAND"; dmesg | tail -20' ERR
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
modprobe virtio_net
for _ in $(seq 100); do
    card=$(basename -a /sys/class/net/e* | head -n 1)
    [ "$card" = 'e*' ] || break
    sleep 0.1
done
ip link set "$card" up
ip address replace 10.0.2.15/24 dev "$card"
host() {
    exec 9<>/dev/tcp/%(host)s/%(port)d
    echo "$1" >&9
    read -r answer <&9
    exec 9<&-
    [ "$answer" = ok ] || { echo "the host answered: $answer"; return 1; }
}
"""
_DONE = "GUEST-SCRIPT-ENDED-WELL"


def missing() -> str | None:
    """Why no virtual machine can run here, in words for a skip; None if one can."""
    if which("qemu-system-" + os.uname().machine) is None:
        return f"no qemu-system-{os.uname().machine}: packaging/install-deps.sh installs it"
    if not Path(sys.executable).with_name("vng").exists():
        return "no virtme-ng: pip install copygate[test]"
    if kernel() is None:
        return "no kernel with modules in /boot: packaging/install-deps.sh installs one"
    return None


def kernel() -> Path | None:
    """The newest kernel image of /boot that has its modules installed and is readable."""
    images = [
        image
        for image in sorted(Path("/boot").glob("vmlinuz-*"))
        if Path("/lib/modules", image.name.removeprefix("vmlinuz-"), "modules.dep").exists()
        and os.access(image, os.R_OK)
    ]
    return images[-1] if images else None


class _Answers(threading.Thread):
    """Answers the guest's `host WORD` calls."""

    def __init__(self, actions: dict[str, Callable[[], None]]) -> None:
        super().__init__(name="guest-answers", daemon=True)
        self._actions = actions
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]

    def run(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rw") as stream:
                word = stream.readline().strip()
                try:
                    self._actions[word]()
                    stream.write("ok\n")
                except Exception as error:  # noqa: BLE001 - told to the guest, which fails with it
                    stream.write(f"{type(error).__name__}: {error}".replace("\n", " ") + "\n")

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


class Guest:
    """One virtual machine that runs a bash script as root and powers off.

    `disk` is what qemu takes as a file and the guest sees as /dev/vda; `forward` is a port of the
    host's loopback and the guest's port behind it.
    """

    def __init__(
        self,
        script: str,
        folder: Path,
        *,
        actions: dict[str, Callable[[], None]] | None = None,
        memory: str = "1G",
        disk: str | None = None,
        forward: tuple[int, int] | None = None,
    ) -> None:
        image = kernel()
        assert image is not None, missing()
        self._answers = _Answers(actions or {})
        self._answers.start()
        path = folder / "guest.sh"
        prelude = _PRELUDE % {"host": HOST, "port": self._answers.port}
        path.write_text(f"{prelude}{script}\necho {_DONE}\n")
        self.log = folder / "guest.log"
        vng = Path(sys.executable).with_name("vng")
        arguments = ["-r", str(image), "--disable-kvm", "--user", "root"]
        arguments += ["--memory", memory, "--cpus", "2", "--cwd", str(folder)]
        qemu = "-nic user,model=virtio-net-pci"
        if forward is not None:
            qemu += f",hostfwd=tcp:127.0.0.1:{forward[0]}-:{forward[1]}"
        if disk is not None:
            qemu += f" -drive file={disk},format=raw,if=virtio,cache=none"
        arguments.append(f"--qemu-opts={qemu}")
        # vng calls its own parts by name.
        environment = {**os.environ, "PATH": f"{vng.parent}:{os.environ.get('PATH', '')}"}
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(
                [str(vng), *arguments, "--", f"bash {path}"],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment,
            )

    @property
    def running(self) -> bool:
        """Whether it has not powered off yet."""
        return self._process.poll() is None

    def output(self) -> str:
        """What the script has printed so far."""
        return self.log.read_text(errors="replace")

    def power_off(self) -> None:
        """Pulls the plug: nothing in the guest's memory survives."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._answers.close()

    def wait(self, timeout: float) -> str:
        """Waits for the script's end; returns its output. Raises if it failed or took too long."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.power_off()
            raise AssertionError(f"the guest took over {timeout:g} s:\n{tail(self.log)}") from None
        self._answers.close()
        output = self.output()
        if _DONE not in output:
            raise AssertionError(
                f"the guest's script failed (vng: {self._process.returncode}):\n{tail(self.log)}"
            )
        return output


def run_guest(
    script: str,
    folder: Path,
    *,
    actions: dict[str, Callable[[], None]] | None = None,
    timeout: float = 170,
) -> str:
    """Boots, runs the bash script as root, powers off; returns its output. Raises if it failed."""
    return Guest(script, folder, actions=actions).wait(timeout)
