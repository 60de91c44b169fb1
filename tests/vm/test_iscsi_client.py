# SPDX-License-Identifier: BSD-3-Clause
"""Debian's kernel, open-iscsi, sg3-utils and multipath-tools against our targets, in a guest."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import iscsi, iscsi_guest, vm
from support.iscsi import Lun, Target
from support.stack import Stack

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(400)]

# fio writes and checks what it wrote; it ends with an error at the first byte that is wrong and at
# the first IO error.
_LOAD = """
load() {
    fio --name=$1 --directory=$2 --size=$3 --runtime=$4 --time_based --loops=100 \\
        --rw=randwrite --bs=4k --ioengine=libaio --iodepth=8 --direct=1 --rate_iops=600 \\
        --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0 \\
        --eta=never --output=/tmp/fio-$1.log || { cat /tmp/fio-$1.log; return 1; }
}
"""

_CLIENT = """
node PORT 1
login PORT
one=$(disk PORT 1)
two=$(disk PORT 2)
iscsiadm -m discovery -t sendtargets -p $guest_host:PORT | grep -F " $target"

# What sg3-utils show of a fresh unit.
sg=$one
show inquiry "$(sg_inq $sg | tr '\\n' ' ')"
show serial "$(sg_vpd -p sn $sg | tail -n 1)"
show naa "$(sg_vpd -p di_lu $sg | grep -oE '0x6[0-9a-f]{31}' | head -n 1)"
show limits "$(sg_vpd -p bl $sg | tr '\\n' ' ')"
show provisioning "$(sg_vpd -p lbpv $sg | tr '\\n' ' ')"
show rotation "$(sg_vpd -p bdc $sg | tr '\\n' ' ')"
show capacity "$(sg_readcap -l $sg | tr '\\n' ' ')"
show groups "$(sg_rtpg -d $sg | tr '\\n' ' ')"
show kernel "$(cat /sys/block/${sg#/dev/}/queue/{write_cache,physical_block_size,rotational} \\
    /sys/block/${sg#/dev/}/queue/discard_granularity)"
head -c 512 /dev/zero | tr '\\0' a > /tmp/a
head -c 512 /dev/zero | tr '\\0' b > /tmp/b
cat <(head -c 512 /dev/zero) /tmp/a > /tmp/zero-a
cat /tmp/a /tmp/b > /tmp/a-b
swap() { sg_compare_and_write --in=/tmp/$1 --lba=100 --num=1 --xferlen=1024 $sg; }
swap zero-a
swap a-b
# By SCSI commands, not through the guest's page cache, which knows nothing of sg_unmap.
cmp <(sg_dd blk_sgio=1 if=$sg bs=512 skip=100 count=1 2>/dev/null) /tmp/b
if swap a-b; then
    echo "a miscompare was not reported"; exit 1
else
    show miscompare $?
fi
sg_unmap --lba=96 --num=16 --force $sg
cmp <(sg_dd blk_sgio=1 if=$sg bs=512 skip=96 count=16 2>/dev/null) <(head -c 8192 /dev/zero)
sg_persist --out --register --param-sark=0xc0ffee $sg >/dev/null
sg_persist --out --reserve --param-rk=0xc0ffee --prout-type=5 $sg >/dev/null
show keys "$(sg_persist --in --read-keys $sg | tr '\\n' ' ')"
show reservation "$(sg_persist --in --read-reservation $sg | tr '\\n' ' ')"
show status "$(sg_persist --in --read-full-status $sg | tr '\\n' ' ')"
sg_persist --out --clear --param-rk=0xc0ffee $sg >/dev/null
show cleared "$(sg_persist --in --read-keys $sg | tr '\\n' ' ')"

# Two file systems live through kill -9 of tgtd and its restart.
modprobe ext4
modprobe xfs
mkfs.ext4 -q -F $one
mkfs.xfs -q -f $two
mkdir -p /tmp/one /tmp/two
mount $one /tmp/one
mount $two /tmp/two
load ext4 /tmp/one 16M 12 & first=$!
load xfs /tmp/two 16M 12 & second=$!
sleep 4
host restart
wait $first
wait $second
show errors "$(grep -ohE 'err= *[0-9]+' /tmp/fio-*.log | tr '\\n' ' ')"
fstrim -v /tmp/one
umount /tmp/one /tmp/two
quiet_kernel
e2fsck -fn $one
xfs_repair -n $two 2>&1 | tail -n 3
iscsiadm -m node --logout >/dev/null
"""


def _shown(output: str) -> dict[str, str]:
    return dict(re.findall(r"^GUEST-(\w+): (.*)$", output.replace("\r", ""), re.MULTILINE))


def _skip_without_guest() -> None:
    reason = iscsi.missing() or iscsi_guest.missing()
    if reason:
        pytest.skip(reason)


def test_file_systems_live_through_a_restart_of_tgtd_and_sg3_utils_show_what_they_should(
    stack_factory: Callable[..., Stack], tmp_path: Path
) -> None:
    """open-iscsi logs in; ext4 and xfs under verified load; no IO error anywhere."""
    _skip_without_guest()
    stack = stack_factory()
    for name in ("one", "two"):
        stack.create_volume(name, "384M")
    target = Target(
        stack.folder,
        [Lun("one", 1, options={"group": "3"}), Lun("two", 2, options={"group": "3"})],
        mds=stack.mds_address,
    )

    def restart() -> None:
        target.kill()
        time.sleep(2)
        target.start()

    try:
        target.start()
        output = vm.run_guest(
            iscsi_guest.prelude(target.name)
            + _LOAD
            + _CLIENT.replace("PORT", str(target.ports[0])),
            tmp_path,
            actions={"restart": restart},
            timeout=300,
        )
    finally:
        target.close()
    shown = _shown(output)
    assert "TPGS=3" in shown["inquiry"]
    assert re.fullmatch(r"0x6[0-9a-f]{31}", shown["naa"])
    assert len(shown["serial"].split()[-1]) >= 8
    assert re.search(r"Optimal unmap granularity: 8 blocks", shown["limits"])
    assert not re.search(r"Maximum unmap LBA count: (0|-1|4294967295)\b", shown["limits"])
    assert "Unmap command supported (LBPU): 1" in shown["provisioning"]
    assert re.search(r"LBPRZ\W*1", shown["provisioning"])
    assert re.search(r"[Nn]on-rotat", shown["rotation"])
    assert "lbpme=1, lbprz=1" in shown["capacity"]
    assert re.search(r"Number of logical blocks=786432\b", shown["capacity"])
    assert re.search(r"target port group id : 0x3.*0x00.*active/optimized", shown["groups"])
    assert shown["kernel"] == "write through 4096 0 4096"
    assert shown["miscompare"] == "14"
    assert "0xc0ffee" in shown["keys"]
    assert "Write Exclusive, registrants only" in shown["reservation"]
    assert "iqn.2026-11.net.copygate:guest" in shown["status"]
    assert "0xc0ffee" not in shown["cleared"]
    assert shown["errors"] == "err= 0 err= 0"


_MULTIPATH = """
modprobe dm_multipath
modprobe scsi_dh_alua
cat > /etc/multipath.conf <<END
defaults {
    find_multipaths no
    user_friendly_names yes
    polling_interval 1
    max_polling_interval 2
}
devices {
    device {
        vendor "COPYGATE"
        product "VOLUME"
        path_grouping_policy failover
        prio alua
        hardware_handler "1 alua"
        path_checker tur
        failback manual
        no_path_retry queue
    }
}
END
timeouts="node.session.timeo.replacement_timeout 4"
node PORT-A 1 $timeouts
node PORT-B 1 $timeouts
login PORT-A
login PORT-B
first=$(disk PORT-A 1)
second=$(disk PORT-B 1)
cmp <(sg_vpd -p sn $first) <(sg_vpd -p sn $second)
multipathd -d > /tmp/multipathd.log 2>&1 & daemon=$!
map=
for _ in $(seq 100); do
    map=$(multipathd show maps raw format %n 2>/dev/null | head -n 1) || true
    [ -n "$map" ] && [ -b /dev/mapper/$map ] && break
    sleep 0.2
done
[ -b /dev/mapper/$map ] || { cat /tmp/multipathd.log; exit 1; }
states() { multipathd show paths raw format '%d %o %t %T %p' | sort | tr '\\n' ';'; }
# Waits for a path to have a checker's state and a priority.
settle() {
    for _ in $(seq 150); do
        multipathd show paths raw format '%d %T %p' | grep -qE "^${1#/dev/} +$2 +$3\\$" && return 0
        sleep 0.2
    done
    echo "path $1 is not $2 with priority $3: $(states)"
    tail -n 20 /tmp/multipathd.log
    return 1
}
settle $first ready 50
settle $second ghost 1
show before "$(states)"
modprobe ext4
mkfs.ext4 -q -F /dev/mapper/$map
mkdir -p /tmp/disk
mount /dev/mapper/$map /tmp/disk
load multi /tmp/disk 16M 16 & job=$!
sleep 4
host kill
settle $second ready 50
show after "$(states)"
wait $job
show errors "$(grep -ohE 'err= *[0-9]+' /tmp/fio-*.log | tr '\\n' ' ')"
host start
settle $first ghost 1
show back "$(states)"
umount /tmp/disk
e2fsck -fn /dev/mapper/$map
kill $daemon
wait $daemon || true
"""


def test_multipath_fails_over_to_the_second_gateway_without_an_io_error(
    stack_factory: Callable[..., Stack], tmp_path: Path
) -> None:
    """Two gateways; the active one dies under verified load; it comes back as the standby."""
    _skip_without_guest()
    stack = stack_factory()
    stack.create_volume("disk", "384M")

    def gateway(name: str, group: int, *, standby: bool) -> Target:
        options = {"gateway": name, "group": str(group)}
        if standby:
            options["standby"] = "yes"
        lun = Lun("disk", options=options)
        return Target(stack.folder, [lun], mds=stack.mds_address, label=f"tgtd-{name}")

    first, second = gateway("a", 1, standby=False), gateway("b", 2, standby=True)
    # It comes back as what a gateway does that finds the volume taken.
    replacement = gateway("a", 1, standby=True)
    replacement.ports, replacement.daemon.argv = first.ports, first.daemon.argv
    script = _MULTIPATH.replace("PORT-A", str(first.ports[0]))
    script = script.replace("PORT-B", str(second.ports[0]))
    try:
        first.start()
        second.start()
        output = vm.run_guest(
            iscsi_guest.prelude(first.name) + _LOAD + script,
            tmp_path,
            actions={"kill": first.kill, "start": replacement.start},
            timeout=300,
        )
    finally:
        for target in (first, second, replacement):
            target.close()
    shown = _shown(output)
    assert shown["errors"] == "err= 0"
    assert "ready 50" in shown["before"]
    assert "ghost 1" in shown["before"]
    # The volume stays where it went.
    assert "ghost 1" in shown["back"]
    assert "ready 50" in shown["back"]
