# SPDX-License-Identifier: BSD-3-Clause
"""SCSI command blocks and parameter lists as bytes: SPC-4 and SBC-3, no more than the tests send.

Lengths and addresses are in logical blocks unless a name says bytes.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

GOOD, CHECK_CONDITION, CONDITION_MET, BUSY = 0x00, 0x02, 0x04, 0x08
RESERVATION_CONFLICT, TASK_SET_FULL, TASK_ABORTED = 0x18, 0x28, 0x40

NOT_READY, MEDIUM_ERROR, HARDWARE_ERROR, ILLEGAL_REQUEST = 0x2, 0x3, 0x4, 0x5
UNIT_ATTENTION, DATA_PROTECT, ABORTED_COMMAND, MISCOMPARE = 0x6, 0x7, 0xB, 0xE

# Persistent reservation types (SPC-4, table 58) and service actions.
WRITE_EXCLUSIVE, EXCLUSIVE_ACCESS = 1, 3
WRITE_EXCLUSIVE_RO, EXCLUSIVE_ACCESS_RO = 5, 6
WRITE_EXCLUSIVE_AR, EXCLUSIVE_ACCESS_AR = 7, 8
READ_KEYS, READ_RESERVATION, REPORT_CAPABILITIES, READ_FULL_STATUS = range(4)
(
    REGISTER,
    RESERVE,
    RELEASE,
    CLEAR,
    PREEMPT,
    PREEMPT_AND_ABORT,
    REGISTER_AND_IGNORE,
) = range(7)

ACTIVE_OPTIMIZED, ACTIVE_NON_OPTIMIZED, STANDBY, UNAVAILABLE = range(4)


def test_unit_ready() -> bytes:
    """TEST UNIT READY."""
    return bytes(6)


def inquiry(page: int | None = None, length: int = 0xFF) -> bytes:
    """INQUIRY: the standard data, or a vital product data page."""
    return struct.pack(">BBBHB", 0x12, page is not None, page or 0, length, 0)


def request_sense(length: int = 252) -> bytes:
    """REQUEST SENSE, fixed format."""
    return bytes([0x03, 0, 0, 0, length, 0])


def report_luns(length: int = 4096) -> bytes:
    """REPORT LUNS."""
    return struct.pack(">BxxxxxIxx", 0xA0, length)


def read_capacity10() -> bytes:
    """READ CAPACITY (10)."""
    return bytes([0x25]) + bytes(9)


def read_capacity16(length: int = 32) -> bytes:
    """READ CAPACITY (16)."""
    return struct.pack(">BBxxxxxxxxIxx", 0x9E, 0x10, length)


def get_lba_status(lba: int, length: int = 4096) -> bytes:
    """GET LBA STATUS (16)."""
    return struct.pack(">BBQIxx", 0x9E, 0x12, lba, length)


def mode_sense6(page: int, length: int = 0xFF, control: int = 0) -> bytes:
    """MODE SENSE (6); `control`: 0 current, 1 changeable, 2 default values."""
    return bytes([0x1A, 0, control << 6 | page, 0, length, 0])


def mode_sense10(page: int, length: int = 0x1000, control: int = 0) -> bytes:
    """MODE SENSE (10)."""
    return struct.pack(">BBBxxxxHx", 0x5A, 0, control << 6 | page, length)


def read10(lba: int, blocks: int, *, fua: bool = False, dpo: bool = False) -> bytes:
    """READ (10)."""
    return struct.pack(">BBIxHx", 0x28, dpo << 4 | fua << 3, lba, blocks)


def read16(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    """READ (16)."""
    return struct.pack(">BBQIxx", 0x88, fua << 3, lba, blocks)


def write6(lba: int, blocks: int) -> bytes:
    """WRITE (6)."""
    return struct.pack(">I", 0x0A000000 | lba) + bytes([blocks & 0xFF, 0])


def write10(lba: int, blocks: int, *, fua: bool = False, dpo: bool = False) -> bytes:
    """WRITE (10)."""
    return struct.pack(">BBIxHx", 0x2A, dpo << 4 | fua << 3, lba, blocks)


def write12(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    """WRITE (12)."""
    return struct.pack(">BBIIxx", 0xAA, fua << 3, lba, blocks)


def write16(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    """WRITE (16)."""
    return struct.pack(">BBQIxx", 0x8A, fua << 3, lba, blocks)


def write_verify16(lba: int, blocks: int, *, compare: bool = True) -> bytes:
    """WRITE AND VERIFY (16)."""
    return struct.pack(">BBQIxx", 0x8E, compare << 1, lba, blocks)


def verify16(lba: int, blocks: int, *, compare: bool) -> bytes:
    """VERIFY (16); with `compare` the data goes along."""
    return struct.pack(">BBQIxx", 0x8F, compare << 1, lba, blocks)


def orwrite16(lba: int, blocks: int) -> bytes:
    """ORWRITE (16)."""
    return struct.pack(">BBQIxx", 0x8B, 0, lba, blocks)


def write_same10(lba: int, blocks: int, *, unmap: bool = False) -> bytes:
    """WRITE SAME (10): one block of data."""
    return struct.pack(">BBIxHx", 0x41, unmap << 3, lba, blocks)


def write_same16(lba: int, blocks: int, *, unmap: bool = False, ndob: bool = False) -> bytes:
    """WRITE SAME (16): one block of data, none with `ndob`."""
    return struct.pack(">BBQIxx", 0x93, unmap << 3 | ndob, lba, blocks)


def compare_and_write(lba: int, blocks: int, *, fua: bool = False) -> bytes:
    """COMPARE AND WRITE: the data is what is expected, then what is written."""
    return struct.pack(">BBQxxxBxx", 0x89, fua << 3, lba, blocks)


def synchronize_cache10() -> bytes:
    """SYNCHRONIZE CACHE (10) of everything."""
    return bytes([0x35]) + bytes(9)


def unmap(length: int) -> bytes:
    """UNMAP with `length` bytes of parameters."""
    return struct.pack(">BxxxxxxHx", 0x42, length)


def unmap_list(ranges: Sequence[tuple[int, int]]) -> bytes:
    """UNMAP's parameters: pairs of address and blocks."""
    body = b"".join(struct.pack(">QIxxxx", lba, blocks) for lba, blocks in ranges)
    return struct.pack(">HHxxxx", len(body) + 6, len(body)) + body


def reserve6() -> bytes:
    """RESERVE (6)."""
    return bytes([0x16]) + bytes(5)


def release6() -> bytes:
    """RELEASE (6)."""
    return bytes([0x17]) + bytes(5)


def persistent_in(action: int, length: int = 8192) -> bytes:
    """PERSISTENT RESERVE IN."""
    return struct.pack(">BBxxxxxHx", 0x5E, action, length)


def persistent_out(action: int, kind: int = 0) -> bytes:
    """PERSISTENT RESERVE OUT with the 24 bytes of reserve_parameters()."""
    return struct.pack(">BBBxxIx", 0x5F, action, kind, 24)


def reserve_parameters(
    key: int = 0, action_key: int = 0, *, aptpl: bool = False, all_ports: bool = False
) -> bytes:
    """PERSISTENT RESERVE OUT's parameter list."""
    return struct.pack(">QQxxxxBxxx", key, action_key, all_ports << 2 | aptpl)


def report_target_port_groups(length: int = 4096, *, extended: bool = False) -> bytes:
    """REPORT TARGET PORT GROUPS."""
    return struct.pack(">BBxxxxIxx", 0xA3, 0x0A | extended << 5, length)


def set_target_port_groups(length: int) -> bytes:
    """SET TARGET PORT GROUPS."""
    return struct.pack(">BBxxxxIxx", 0xA4, 0x0A, length)


def set_groups_list(groups: Sequence[tuple[int, int]]) -> bytes:
    """Its parameters: pairs of state and group."""
    return bytes(4) + b"".join(struct.pack(">BxH", state, group) for state, group in groups)


def report_opcodes(length: int = 8192) -> bytes:
    """REPORT SUPPORTED OPERATION CODES, all of them."""
    return struct.pack(">BBBxxxIxx", 0xA3, 0x0C, 0, length)


def keys_of(data: bytes) -> tuple[int, list[int]]:
    """READ KEYS' answer: generation and keys."""
    generation, length = struct.unpack_from(">II", data)
    return generation, [key for (key,) in struct.iter_unpack(">Q", data[8 : 8 + length])]


def reservation_of(data: bytes) -> tuple[int, int] | None:
    """READ RESERVATION's answer: key and type; None if nothing is reserved."""
    _, length = struct.unpack_from(">II", data)
    if length == 0:
        return None
    key, scope_and_type = struct.unpack_from(">QxxxxxB", data, 8)
    return key, scope_and_type & 0x0F


@dataclass(frozen=True)
class PortGroup:
    """One descriptor of REPORT TARGET PORT GROUPS."""

    state: int
    preferred: bool
    group: int
    ports: tuple[int, ...]


def port_groups_of(data: bytes) -> list[PortGroup]:
    """REPORT TARGET PORT GROUPS' answer, length-only header format."""
    end = 4 + struct.unpack_from(">I", data)[0]
    found, at = [], 4
    while at + 8 <= min(end, len(data)):
        first, _, group, count = struct.unpack_from(">BBHxxxB", data, at)
        ports = [
            struct.unpack_from(">xxH", data, at + 8 + 4 * number)[0] for number in range(count)
        ]
        found.append(PortGroup(first & 0x0F, bool(first & 0x80), group, tuple(ports)))
        at += 8 + 4 * count
    return found


@dataclass(frozen=True)
class BlockLimits:
    """What the tests use of VPD page B0."""

    maximum_compare_and_write: int
    maximum_transfer: int
    maximum_unmap_blocks: int
    maximum_unmap_ranges: int
    unmap_granularity: int
    unmap_alignment: int
    maximum_write_same: int


def block_limits_of(data: bytes) -> BlockLimits:
    """VPD page B0, decoded."""
    assert data[1] == 0xB0, data.hex()
    compare = data[5]
    transfer, _, _, unmap_blocks, ranges, granularity, alignment = struct.unpack_from(
        ">IIIIIII", data, 8
    )
    (same,) = struct.unpack_from(">Q", data, 36)
    return BlockLimits(
        compare,
        transfer,
        unmap_blocks,
        ranges,
        granularity,
        alignment & 0x7FFFFFFF if alignment >> 31 else 0,
        same,
    )


@dataclass(frozen=True)
class Designator:
    """One entry of VPD page 83."""

    association: int
    kind: int
    code_set: int
    value: bytes


def designators_of(data: bytes) -> list[Designator]:
    """VPD page 83, decoded."""
    assert data[1] == 0x83, data.hex()
    end = 4 + struct.unpack_from(">H", data, 2)[0]
    found, at = [], 4
    while at + 4 <= min(end, len(data)):
        code_set, kind, length = data[at] & 0x0F, data[at + 1], data[at + 3]
        found.append(
            Designator(kind >> 4 & 3, kind & 0x0F, code_set, data[at + 4 : at + 4 + length])
        )
        at += 4 + length
    return found
