# SPDX-License-Identifier: BSD-3-Clause
"""A replay of what a Windows initiator sends, command by command. It is a replay, not Windows.

The order is that of iSCSI Initiator, disk.sys and MPIO, of cluster validation's reservation tests
and of a quick format with retrim, as documentation and traces of others tell it; nothing here has
met a Windows machine.
"""

import binascii
import random
import struct
import uuid

import pytest
from support import scsi
from support.iscsi import Target
from support.iscsi_targets import Targets
from support.libiscsi import Session

NODES = ("iqn.1991-05.com.microsoft:node1", "iqn.1991-05.com.microsoft:node2")
CHAP = ("iqn.1991-05.com.microsoft:nodes", "Secret4Windows!")  # 12 to 16 characters
SIZE = 2 << 30
BLOCKS = SIZE // 512


@pytest.fixture
def target(targets: Targets) -> Target:
    """One unit, with CHAP and both nodes in the access list."""
    targets.volume(size=str(SIZE))
    return targets.target(chap=CHAP, acl=NODES)


def _node(target: Target, number: int) -> Session:
    """Discovery, then a login; the ISID is of the form that Microsoft's initiator uses."""
    name = NODES[number]
    with Session(target.portal(), None, initiator=name, chap=CHAP) as discovery:
        assert discovery.discover() == {target.name: [f"{target.portal()},1"]}
    return target.session(initiator=name, isid=0x400001 + number, chap=CHAP)


def _enumerate(session: Session) -> scsi.BlockLimits:
    """What the port driver and disk.sys ask of a new disk."""
    listed = session.good(scsi.report_luns(), in_length=4096, lun=0)
    count = int.from_bytes(listed[:4], "big") // 8
    numbers = [listed[8 + 8 * n + 1] for n in range(count)]
    assert numbers == [0, 1]
    standard = session.good(scsi.inquiry(length=36), in_length=36)
    assert standard[0] == 0
    assert standard[1] & 0x80 == 0, "not removable"
    assert standard[2] >= 5, "SPC-3 or newer"
    assert standard[7] & 0x02, "command queueing"
    pages = session.good(scsi.inquiry(0x00), in_length=255)
    assert {0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2} <= set(pages[4 : 4 + pages[3]])
    serial = session.good(scsi.inquiry(0x80), in_length=255)
    assert serial[4 : 4 + serial[3]].strip()
    names = scsi.designators_of(session.good(scsi.inquiry(0x83), in_length=255))
    assert any(d.kind == 3 and d.value[0] >> 4 == 6 and len(d.value) == 16 for d in names)
    limits = scsi.block_limits_of(session.good(scsi.inquiry(0xB0), in_length=255))
    assert limits.maximum_unmap_blocks > 0
    assert limits.maximum_unmap_ranges > 0
    assert limits.unmap_granularity == 8
    assert 0 < limits.maximum_unmap_blocks < 0xFFFFFFFF
    rotation = session.good(scsi.inquiry(0xB1), in_length=255)
    assert rotation[4:6] == b"\x00\x01", "no rotation: an SSD"
    provisioning = session.good(scsi.inquiry(0xB2), in_length=255)
    assert provisioning[5] & 0x80, "UNMAP"
    assert provisioning[5] & 0x1C, "unmapped blocks read as zeros"
    assert provisioning[6] & 0x07 == 2, "thin"
    session.good(scsi.test_unit_ready())
    short = session.good(scsi.read_capacity10(), in_length=8)
    assert struct.unpack(">II", short) == (BLOCKS - 1, 512)
    capacity = session.good(scsi.read_capacity16(), in_length=32)
    last, size = struct.unpack_from(">QI", capacity)
    assert (last, size) == (BLOCKS - 1, 512)
    assert capacity[13] & 0x0F == 3, "eight logical blocks a physical one"
    assert capacity[14] & 0xC0 == 0xC0, "thin, and zeros where nothing is mapped"
    _modes(session)
    return limits


def _modes(session: Session) -> None:
    """MODE SENSE by both lengths: caching, control, everything; the write cache is off."""
    for page in (0x08, 0x0A, 0x3F):
        six = session.good(scsi.mode_sense6(page), in_length=255)
        ten = session.good(scsi.mode_sense10(page), in_length=0x1000)
        assert six[0] == len(six) - 1
        assert int.from_bytes(ten[:2], "big") == len(ten) - 2
        assert six[2] & 0x80 == 0, "not write-protected"
        pages = ten[8 + int.from_bytes(ten[6:8], "big") :]
        assert pages == six[4 + six[3] :]
        at = 0
        found = {}
        while at < len(pages):
            found[pages[at] & 0x3F] = pages[at : at + 2 + pages[at + 1]]
            at += 2 + pages[at + 1]
        if page != 0x0A:
            assert found[0x08][2] & 0x04 == 0, "write cache"
        if page != 0x08:
            assert 0x0A in found


def _paths(session: Session) -> None:
    """MSDSM: the port groups, and this path's place among them."""
    groups = scsi.port_groups_of(session.good(scsi.report_target_port_groups(), in_length=4096))
    names = scsi.designators_of(session.good(scsi.inquiry(0x83), in_length=255))
    mine = {d.kind: struct.unpack(">xxH", d.value)[0] for d in names if d.kind in (4, 5)}
    assert session.good(scsi.inquiry(), in_length=36)[5] >> 4 & 3
    assert any(g.group == mine[5] and mine[4] in g.ports for g in groups)
    assert any(g.state == scsi.ACTIVE_OPTIMIZED for g in groups)


def _keys(session: Session) -> list[int]:
    return sorted(scsi.keys_of(session.good(scsi.persistent_in(scsi.READ_KEYS), in_length=8192))[1])


def _reservation(session: Session) -> tuple[int, int] | None:
    data = session.good(scsi.persistent_in(scsi.READ_RESERVATION), in_length=8192)
    return scsi.reservation_of(data)


def _out(session: Session, action: int, key: int, new: int = 0, kind: int = 0) -> int:
    data = scsi.reserve_parameters(key, new)
    return session.execute(scsi.persistent_out(action, kind), data).status


def _validate_cluster(one: Session, two: Session) -> None:
    """ "Validate SCSI-3 Persistent Reservation", as cluster validation goes about it."""
    keys = (0x7A0A0A0A00000001, 0x7A0A0A0A00000002)
    wero = scsi.WRITE_EXCLUSIVE_RO
    sector = bytes(512)
    for session in (one, two):
        assert _keys(session) == []
        assert _reservation(session) is None
    # Nobody may reserve who has not registered; a wrong key changes nothing.
    assert _out(one, scsi.RESERVE, keys[0], kind=wero) == scsi.RESERVATION_CONFLICT
    assert _out(one, scsi.REGISTER, 0xBAD, keys[0]) == scsi.RESERVATION_CONFLICT
    assert _out(one, scsi.REGISTER, 0, keys[0]) == scsi.GOOD
    assert _out(two, scsi.REGISTER_AND_IGNORE, 0, keys[1]) == scsi.GOOD
    assert _keys(two) == sorted(keys)
    # Node 1 owns the disk. Registrants only: node 2 writes too, who is not registered does not.
    assert _out(one, scsi.RESERVE, keys[0], kind=wero) == scsi.GOOD
    assert _reservation(two) == (keys[0], wero)
    assert _out(two, scsi.RESERVE, keys[1], kind=wero) == scsi.RESERVATION_CONFLICT
    assert two.execute(scsi.write10(2048, 1), sector).status == scsi.GOOD
    # Node 2 leaves: it reads, and no longer writes.
    assert _out(two, scsi.REGISTER, keys[1], 0) == scsi.GOOD
    assert two.execute(scsi.write10(2048, 1), sector).status == scsi.RESERVATION_CONFLICT
    two.good(scsi.read10(2048, 1), in_length=512)
    # Node 2 challenges: it registers, takes node 1's registration away and with it the disk.
    assert _out(two, scsi.REGISTER_AND_IGNORE, 0, keys[1]) == scsi.GOOD
    assert _out(two, scsi.PREEMPT, keys[1], keys[0], kind=wero) == scsi.GOOD
    assert _keys(two) == [keys[1]]
    assert _reservation(two) == (keys[1], wero)
    assert set(one.clear_attentions()) <= {0x2A03, 0x2A04, 0x2A05}
    assert one.execute(scsi.write10(2048, 1), sector).status == scsi.RESERVATION_CONFLICT
    # Node 1 defends: it registers anew and preempts in its turn.
    assert _out(one, scsi.REGISTER_AND_IGNORE, 0, keys[0]) == scsi.GOOD
    assert _out(one, scsi.PREEMPT, keys[0], keys[1], kind=wero) == scsi.GOOD
    two.clear_attentions()
    assert _reservation(one) == (keys[0], wero)
    # The wrong type is not released; the right one is; registrations stay until they are cleared.
    data = scsi.reserve_parameters(keys[0])
    wrong = one.execute(scsi.persistent_out(scsi.RELEASE, scsi.EXCLUSIVE_ACCESS), data)
    assert (wrong.key, wrong.code) == (scsi.ILLEGAL_REQUEST, 0x2604)
    assert _out(one, scsi.RELEASE, keys[0], kind=wero) == scsi.GOOD
    assert _reservation(two) is None
    # All registrants own it together (type 7): either may go.
    everybody = scsi.WRITE_EXCLUSIVE_AR
    assert _out(two, scsi.REGISTER_AND_IGNORE, 0, keys[1]) == scsi.GOOD
    assert _out(one, scsi.RESERVE, keys[0], kind=everybody) == scsi.GOOD
    assert _out(two, scsi.RESERVE, keys[1], kind=everybody) == scsi.GOOD
    assert _out(one, scsi.REGISTER, keys[0], 0) == scsi.GOOD
    reserved = _reservation(two)
    assert reserved is not None
    assert reserved[1] == everybody
    assert _out(two, scsi.CLEAR, keys[1]) == scsi.GOOD
    for session in (one, two):
        session.clear_attentions()
        assert _keys(session) == []
        assert _reservation(session) is None


def _gpt(backup: bool) -> bytes:
    """A GPT header of one partition table of zeros, with its checksums."""
    entries = _gpt_entries()
    mine, other = (BLOCKS - 1, 1) if backup else (1, BLOCKS - 1)
    start = BLOCKS - 33 if backup else 2
    header = struct.pack(
        "<8sIIIIQQQQ16sQIII",
        *(b"EFI PART", 0x10000, 92, 0, 0, mine, other, 34, BLOCKS - 34),
        *(uuid.UUID(int=7).bytes_le, start, 128, 128, binascii.crc32(entries)),
    )
    crc = struct.pack("<I", binascii.crc32(header))
    return (header[:16] + crc + header[20:]).ljust(512, b"\0")


def _gpt_entries() -> bytes:
    basic = uuid.UUID("ebd0a0a2-b9e5-4433-87c0-68b6b72699c7").bytes_le
    entry = struct.pack(
        "<16s16sQQQ72s",
        *(basic, uuid.UUID(int=8).bytes_le, 32768, BLOCKS - 32769, 0),
        "Basic data partition".encode("utf-16-le"),
    )
    return entry.ljust(128 * 128, b"\0")


def _initialize_disk(session: Session) -> dict[int, bytes]:
    """Protective MBR and both GPTs, each sector by a 512-byte write, as partmgr does it."""
    protective = struct.pack("<BBBBBBBBII", 0, 0, 2, 0, 0xEE, 255, 255, 255, 1, BLOCKS - 1)
    mbr = (bytes(446) + protective).ljust(510, b"\0") + b"\x55\xaa"
    sectors = {0: mbr, 1: _gpt(backup=False), BLOCKS - 1: _gpt(backup=True)}
    entries = _gpt_entries()
    for number in range(32):
        part = entries[number * 512 : number * 512 + 512]
        sectors[2 + number] = sectors[BLOCKS - 33 + number] = part
    for lba, data in sectors.items():
        session.good(scsi.write10(lba, 1), data)
    session.good(scsi.synchronize_cache10())
    return sectors


def _quick_format(session: Session, limits: scsi.BlockLimits) -> None:
    """UNMAP of the partition in the largest pieces that page B0 allows, then the boot sectors."""
    position, end = 32768, BLOCKS - 32768
    commands = 0
    while position < end:
        ranges = []
        room = limits.maximum_unmap_blocks
        while position < end and room and len(ranges) < limits.maximum_unmap_ranges:
            # ntfs gives ranges of at most 1 GiB less one cluster.
            count = min(end - position, room, (1 << 21) - 8)
            ranges.append((position, count))
            position += count
            room -= count
        data = scsi.unmap_list(ranges)
        session.good(scsi.unmap(len(data)), data)
        commands += 1
    assert commands < 100_000
    # More than the limits allow is refused, and nothing of it is done.
    session.good(scsi.write10(40000, 8), b"stays..." * 512)
    too_much = scsi.unmap_list(
        [(32768 + 8 * n, 8) for n in range(limits.maximum_unmap_ranges + 1)]
        if limits.maximum_unmap_ranges < 4000
        else [(0, limits.maximum_unmap_blocks + 1)]
    )
    answer = session.execute(scsi.unmap(len(too_much)), too_much)
    assert answer.key == scsi.ILLEGAL_REQUEST, answer
    assert session.good(scsi.read10(40000, 8), in_length=4096) == b"stays..." * 512


@pytest.mark.timeout(180)
def test_replay_of_a_windows_cluster_node_from_discovery_to_quick_format(target: Target) -> None:
    """Two nodes enumerate the disk, validate reservations; one initializes and formats it."""
    one, two = _node(target, 0), _node(target, 1)
    limits = _enumerate(one)
    assert _enumerate(two) == limits
    for session in (one, two):
        _paths(session)
    # Old data everywhere that the format must have gone from.
    pick = random.Random(8)
    marks = [pick.randrange(5000, BLOCKS // 8 - 5000) * 8 for _ in range(50)]
    for lba in marks:
        one.good(scsi.write10(lba, 8), b"old data" * 512)
    _validate_cluster(one, two)
    sectors = _initialize_disk(one)
    _quick_format(one, limits)
    for lba, data in sectors.items():
        assert two.good(scsi.read10(lba, 1), in_length=512) == data, f"sector {lba}"
    for lba in marks:
        assert two.good(scsi.read10(lba, 8), in_length=4096) == bytes(4096), f"block {lba}"
    # The boot sector and its copy at the end of the partition; $MFT by 4 KiB with FUA.
    boot = b"\xeb\x52\x90NTFS    ".ljust(510, b"\0") + b"\x55\xaa"
    for lba in (32768, BLOCKS - 32769):
        one.good(scsi.write10(lba, 1), boot)
        assert two.good(scsi.read10(lba, 1), in_length=512) == boot
    for number in range(64):
        one.good(scsi.write10(65536 + 8 * number, 8, fua=True), bytes([number]) * 4096)
    one.good(scsi.synchronize_cache10())
    for number in range(64):
        found = two.good(scsi.read10(65536 + 8 * number, 8), in_length=4096)
        assert found == bytes([number]) * 4096
    for session in (one, two):
        session.logout()
