# SPDX-License-Identifier: BSD-3-Clause
"""Boots Debian's kernel in qemu over the host's own root folder (virtme-ng); runs a script there.

No KVM is needed. The guest reaches the host's loopback as 10.0.2.2. A script asks the test for
something on the host (restart the gateway, say) with `host WORD`, which waits for the answer.
"""

import os
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
for path in /sys/class/net/*; do
    card=${path##*/}
    [ "$card" = lo ] || break
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
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()


def run_guest(
    script: str,
    folder: Path,
    *,
    actions: dict[str, Callable[[], None]] | None = None,
    timeout: float = 170,
    memory: str = "1G",
) -> str:
    """Boots, runs the bash script as root, powers off; returns its output. Raises if it failed."""
    image = kernel()
    assert image is not None
    answers = _Answers(actions or {})
    answers.start()
    path = folder / "guest.sh"
    path.write_text(_PRELUDE % {"host": HOST, "port": answers.port} + script + f"\necho {_DONE}\n")
    log = folder / "guest.log"
    vng = Path(sys.executable).with_name("vng")
    arguments = ["-r", str(image), "--disable-kvm", "--user", "root", "--network", "user"]
    arguments += ["--memory", memory, "--cpus", "2", "--cwd", str(folder)]
    path_variable = f"{vng.parent}:{os.environ.get('PATH', '')}"  # vng calls its own parts by name
    with log.open("wb") as out:
        process = subprocess.Popen(
            [str(vng), *arguments, "--", f"bash {path}"],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "PATH": path_variable},
        )
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            raise AssertionError(f"the guest took over {timeout:g} s:\n{tail(log)}") from None
        finally:
            answers.close()
    output = log.read_text(errors="replace")
    if _DONE not in output:
        raise AssertionError(f"the guest's script failed (vng: {process.returncode}):\n{tail(log)}")
    return output
