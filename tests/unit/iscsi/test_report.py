# SPDX-License-Identifier: BSD-3-Clause
"""What tgtd shows of itself is read; the texts are those of tgtd 1.0.85."""

from hypothesis import given
from hypothesis import strategies as st

from gateway.iscsi.report import (
    Connection,
    LunReport,
    parse_backing_stores,
    parse_connections,
    parse_portals,
    parse_targets,
)

TARGETS = """\
Target 1: iqn.2026-11.io.copygate:v
    System information:
        Driver: iscsi
        State: ready
        Nop interval: 5
        Nop count: 0
    I_T nexus information:
        I_T nexus: 1
            Initiator: iqn.2010-11.libiscsi:iscsi-perf alias: none
            Connection: 0
                IP Address: 127.0.0.1
    LUN information:
        LUN: 0
            Type: controller
            SCSI ID: IET     00010000
            SCSI SN: beaf10
            Size: 0 MB, Block size: 1
            Online: Yes
            Removable media: No
            Prevent removal: No
            Readonly: No
            SWP: No
            Thin-provisioning: No
            Backing store type: null
            Backing store path: None
            Backing store flags: \n\
        LUN: 7
            Type: disk
            SCSI ID: IET     00010001
            SCSI SN: beaf11
            Size: 67 MB, Block size: 4096
            Online: No
            Removable media: No
            Prevent removal: No
            Readonly: Yes
            SWP: No
            Thin-provisioning: No
            Backing store type: copygate
            Backing store path: /a: b
            Backing store flags: \n\
    Account information:
        alice
        gate (outgoing)
    ACL information:
        ALL
        iqn.1991-05.com.microsoft:desktop
Target 2: iqn.2026-11.io.copygate:w
    System information:
        Driver: iscsi
        State: offline
    I_T nexus information:
    LUN information:
    Account information:
    ACL information:
"""

CONNECTIONS = """\
Session: 3
    Connection: 1
        Initiator: iqn.2010-11.libiscsi:a
        IP Address: 127.0.0.1
Session: 3
    Connection: 2
        Initiator: iqn.2010-11.libiscsi:a
        IP Address: ::1
Session: 4
    Connection: 0
        Initiator: iqn.2010-11.libiscsi:b
        IP Address: 127.0.0.1
"""


def test_targets_with_their_units_accounts_and_acl() -> None:
    first, second = parse_targets(TARGETS)
    assert (first.tid, first.name, first.state) == (1, "iqn.2026-11.io.copygate:v", "ready")
    assert first.luns == [
        LunReport(0, "None", "null", True, False, 1),
        LunReport(7, "/a: b", "copygate", False, True, 4096),
    ]
    assert first.accounts == ["alice", "gate (outgoing)"]
    assert first.allowed == ["ALL", "iqn.1991-05.com.microsoft:desktop"]
    assert (second.tid, second.state, second.luns, second.allowed) == (2, "offline", [], [])


def test_connections() -> None:
    assert parse_connections(CONNECTIONS) == [
        Connection(3, 1, "iqn.2010-11.libiscsi:a", "127.0.0.1"),
        Connection(3, 2, "iqn.2010-11.libiscsi:a", "::1"),
        Connection(4, 0, "iqn.2010-11.libiscsi:b", "127.0.0.1"),
    ]


def test_portals() -> None:
    text = "Portal: [::1]:3260,1\nPortal: 127.0.0.1:13260,1\n"
    assert parse_portals(text) == ["[::1]:3260", "127.0.0.1:13260"]


def test_backing_stores() -> None:
    text = (
        "System:\n    State: ready\n    debug: off\nLLDs:\n    iscsi: ready\nBacking stores:\n"
        "    copygate\n    rdwr (bsoflags sync:direct)\nDevice types:\n    disk\n"
    )
    assert parse_backing_stores(text) == ["copygate", "rdwr"]


@given(
    st.text(alphabet=st.sampled_from("Target 1:\n    LUN information: Session: 0x²"), max_size=200)
)
def test_no_text_is_too_strange(text: str) -> None:
    parse_targets(text)
    parse_connections(text)
    parse_portals(text)
    parse_backing_stores(text)


@given(st.integers(0, len(TARGETS)))
def test_a_text_that_is_cut_off_gives_what_is_there(length: int) -> None:
    whole = parse_targets(TARGETS)
    part = parse_targets(TARGETS[:length])
    assert len(part) <= len(whole)
    assert [t.tid for t in part] == [t.tid for t in whole[: len(part)]]
