# SPDX-License-Identifier: BSD-3-Clause
"""The kernel's own NBD client uses a volume as a disk: partitions of nobody's test framework."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support import vm
from support.stack import Stack

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(240)]

_SCRIPT = """
attach() {{ nbd-client {host} {port} /dev/nbd0 -N {export} >/dev/null; }}
modprobe nbd
modprobe ext4
attach
[ "$(blockdev --getsize64 /dev/nbd0)" = {size} ]
mkfs.ext4 -q -F /dev/nbd0
mkdir -p /tmp/disk
mount -o discard /dev/nbd0 /tmp/disk
mkdir /tmp/disk/tree
cp -a /usr/share/perl5/Debconf /usr/share/terminfo/x /etc/ssl /tmp/disk/tree/ 2>/dev/null || true
dd if=/dev/urandom of=/tmp/disk/random bs=1M count=24 status=none
dd if=/dev/urandom of=/tmp/disk/synced bs=4k count=64 oflag=dsync status=none
rm -f /tmp/disk/tree/ssl/openssl.cnf
cd /tmp/disk
find . -type f -print0 | sort -z | xargs -0 sha256sum > /tmp/sums
cd /
[ "$(wc -l < /tmp/sums)" -ge 10 ]
fstrim /tmp/disk
umount /tmp/disk
nbd-client -d /dev/nbd0 >/dev/null
echo "GUEST: files written: $(wc -l < /tmp/sums)"

check() {{
    mount -o ro /dev/nbd0 /tmp/disk
    (cd /tmp/disk && sha256sum --quiet -c /tmp/sums)
    umount /tmp/disk
    e2fsck -fn /dev/nbd0
    nbd-client -d /dev/nbd0 >/dev/null
    echo "GUEST: files compared"
}}
attach
check
host restart
attach
check
"""


def test_kernel_disk_keeps_files_over_detach_and_gateway_restart(
    stack_factory: Callable[..., Stack], tmp_path: Path
) -> None:
    """mkfs, files, unmount; the same files after a new attach and after a new gateway process."""
    reason = vm.missing()
    if reason:
        pytest.skip(reason)
    stack = stack_factory()
    stack.create_volume("disk", "512M")
    gateway = stack.gateway("disk", tcp=True)

    def restart() -> None:
        gateway.daemon.stop()
        gateway.daemon.start()

    output = vm.run_guest(
        _SCRIPT.format(host=vm.HOST, port=gateway.port, export="disk", size=512 << 20),
        tmp_path,
        actions={"restart": restart},
    )
    assert output.count("GUEST: files compared") == 2
