# SPDX-License-Identifier: BSD-3-Clause
"""open-iscsi and multipath-tools in a virtual machine: shell functions for a guest's script."""

from pathlib import Path

from support import vm

PRELUDE = """
target={target}
guest_host={host}
for module in iscsi_tcp sd_mod; do modprobe $module; done
for folder in /etc/iscsi /etc/multipath /var/lib/iscsi; do
    [ -d $folder ] || continue
    cp -a $folder /tmp/kept 2>/dev/null || mkdir -p /tmp/kept
    mount -t tmpfs tmpfs $folder
    cp -a /tmp/kept/. $folder/
    rm -rf /tmp/kept
done
mkdir -p /run/lock/iscsi
echo "InitiatorName={initiator}" > /etc/iscsi/initiatorname.iscsi
sed -i -e '/^iscsid.startup/d' \\
    -e 's/^node.session.initial_login_retry_max.*/node.session.initial_login_retry_max = 4/' \\
    -e 's/^node.conn\\[0\\].timeo.noop_out_interval.*/node.conn[0].timeo.noop_out_interval = 2/' \\
    -e 's/^node.conn\\[0\\].timeo.noop_out_timeout.*/node.conn[0].timeo.noop_out_timeout = 4/' \\
    /etc/iscsi/iscsid.conf
/lib/systemd/systemd-udevd --daemon
iscsid
# The portal that a target tells is the host's own loopback: nodes are made by hand.
node() {{
    iscsiadm -m node -o new -T $target -p $guest_host:$1,$2 >/dev/null
    shift 2
    while [ $# -gt 1 ]; do
        iscsiadm -m node -T $target -o update -n "$1" -v "$2"
        shift 2
    done
}}
login() {{ iscsiadm -m node -T $target -p $guest_host:$1 --login >/dev/null; udevadm settle; }}
# The block device of a unit: by portal's port and unit's number.
disk() {{
    local link=/dev/disk/by-path/ip-$guest_host:$1-iscsi-$target-lun-$2
    for _ in $(seq 100); do
        [ -b $link ] && {{ readlink -f $link; return 0; }}
        sleep 0.1
    done
    ls -l /dev/disk/by-path >&2
    return 1
}}
show() {{ echo "GUEST-$1: $(echo $2)"; }}
quiet_kernel() {{
    if dmesg | grep -E 'I/O error|Buffer I/O|shutting down|Internal error'; then
        echo "the kernel saw an IO error"
        return 1
    fi
}}
"""


def prelude(target: str, initiator: str = "iqn.2026-11.net.copygate:guest") -> str:
    """What a script that uses the functions begins with."""
    return PRELUDE.format(target=target, initiator=initiator, host=vm.HOST)


def missing() -> str | None:
    """Why no such guest can run here, in words for a skip; None if one can."""
    for program in ("/usr/sbin/iscsid", "/usr/sbin/multipathd", "/usr/bin/sg_inq"):
        if not Path(program).exists():
            return f"no {program}: packaging/install-deps.sh vm installs it"
    return vm.missing()
