# SPDX-License-Identifier: BSD-3-Clause
"""Properties of the metadata server's pure functions, and of the framing."""

import contextlib
import struct
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import ProtocolError
from gateway.mds import leases, rules, segments
from gateway.mds.refusal import RefusalError
from gateway.proto import store_pb2
from gateway.rpc import frame

NAMES = st.from_regex(r"[A-Za-z0-9._@:=,~+][A-Za-z0-9._@:=,~+-]{0,20}", fullmatch=True).filter(
    lambda name: name not in (".", "..")
)
TIMES = st.integers(min_value=0, max_value=1 << 62)


@given(st.lists(NAMES, max_size=20))
def test_path_of_good_names_is_split_into_them(names):
    assert rules.split_path(rules.join_path(tuple(names))) == tuple(names)


@given(st.text(max_size=50))
def test_any_text_is_a_path_or_is_refused(text):
    try:
        names = rules.split_path(text)
    except RefusalError as refusal:
        assert len(refusal.detail) < 400
        return
    assert rules.join_path(names) == text
    for name in names:
        assert name not in ("", ".", "..")
        assert "/" not in name
        assert name.isascii()
        assert name.isprintable()


@given(NAMES, st.integers(min_value=0, max_value=(1 << 64) - 1), TIMES)
def test_recycled_name_is_a_name_and_ends_with_the_second(name, file_id, now_us):
    recycled = rules.recycled_name(name, file_id, now_us)
    assert rules.split_path(f"/RecycleBin/{recycled}")[1] == recycled
    assert int(recycled.rpartition("-")[2]) == now_us // 1_000_000


@given(st.integers(min_value=0, max_value=1 << 64))
def test_accepted_length_is_whole_blocks_within_the_limits(length):
    try:
        rules.check_length(length)
    except RefusalError:
        assert length % 4096 or not rules.LENGTH_MIN <= length <= rules.LENGTH_MAX
    else:
        assert length % 4096 == 0
        assert rules.LENGTH_MIN <= length <= rules.LENGTH_MAX


@given(
    st.integers(min_value=0, max_value=1 << 26),
    st.integers(min_value=0, max_value=200),
    st.integers(min_value=0, max_value=(1 << 40) - 1),
)
def test_accepted_stripes_keep_a_byte_in_its_own_segment(unit, count, offset):
    try:
        rules.check_stripes(unit, count)
    except RefusalError:
        return
    if unit == 0 or count == 1:
        return
    # The client's arithmetic (reference: blocks, stripes, chunk index).
    block, per_chunk = offset // unit, rules.CHUNK_SIZE // unit
    stripe, position = divmod(block, count)
    chunk = stripe // per_chunk * count + position
    assert chunk * rules.CHUNK_SIZE // rules.SEGMENT_SIZE == offset // rules.SEGMENT_SIZE


@given(st.text(min_size=1), TIMES, TIMES)
def test_only_the_right_password_and_date_make_the_signature(password, date, other):
    good = rules.sign(password, "root", date)
    caller = rules.authenticate("root", good, date, now_us=date, root_password=password)
    assert caller.is_root
    with pytest.raises(RefusalError):
        rules.authenticate("root", good, date, now_us=date, root_password=password + "x")
    if other != date:
        with pytest.raises(RefusalError):
            rules.authenticate("root", good, other, now_us=other, root_password=password)


@given(st.integers(min_value=-60_000_000, max_value=60_000_000), TIMES)
def test_date_is_accepted_within_15_seconds_either_way(skew, now):
    now += 100_000_000
    try:
        rules.authenticate("alice", "", now + skew, now_us=now, root_password=None)
    except RefusalError:
        assert abs(skew) >= 15_000_000
    else:
        assert abs(skew) < 15_000_000


@given(
    st.lists(st.integers(1, 1000), min_size=1, max_size=50, unique=True),
    st.integers(0, 1 << 40),
    st.integers(1, 500),
)
def test_chunks_are_spread_evenly_and_the_round_goes_on(copysets, start, count):
    placed = segments.place(copysets, start, count)
    assert len(placed) == count
    counts = Counter(placed)
    assert max(counts.values()) - min(counts.get(c, 0) for c in copysets) <= 1
    assert (
        segments.place(copysets, start, count + 1)[-1]
        == segments.place(copysets, start + count, 1)[0]
    )


SERVERS = range(1, 10)
COPYSETS = st.lists(
    st.builds(
        lambda number, members: store_pb2.CopysetRecord(
            logical_pool_id=1, copyset_id=number, configuration_epoch=1, founders=members,
            members=[
                store_pb2.MemberRecord(member_id=m, learner=False, revision=1) for m in members
            ],
        ),
        st.integers(1, 100),
        st.lists(st.sampled_from(SERVERS), min_size=1, max_size=5, unique=True),
    ),
    max_size=20,
)  # fmt: skip
SOME = st.frozensets(st.sampled_from(SERVERS))


@given(COPYSETS, SOME, SOME, SOME)
def test_new_chunks_need_a_majority_that_is_sound_and_if_possible_there(
    records, online, broken, without
):
    servers = {
        i: store_pb2.ChunkserverRecord(
            id=i, disk_error="EIO" if i in broken else "", assigned_revision=int(i not in without)
        )
        for i in SERVERS
    }

    def most(copyset, good):
        return 2 * len(good & set(copyset.founders)) > len(copyset.founders)

    sound = [c for c in records if most(c, set(SERVERS) - broken)]
    ready = [c for c in records if most(c, online - broken - without)]
    assert segments.usable_copysets(records, online, servers) == (ready or sound)


SESSIONS = st.builds(
    lambda created, lease, stale: store_pb2.SessionRecord(
        session_id="s", file_id=1, path="/d", client="c", created_us=created,
        expires_us=created + lease, lease_us=lease, stale=stale,
    ),
    TIMES, st.integers(1, 1 << 32), st.booleans(),
)  # fmt: skip
CLOCKS = st.builds(leases.Clock, TIMES, st.integers(1, 1 << 32), TIMES)


@given(SESSIONS, CLOCKS)
def test_renewed_session_is_live_for_a_whole_lease(record, clock):
    renewed = leases.renewed(record, clock)
    assert leases.is_live(renewed, clock)
    assert renewed.expires_us == clock.now_us + clock.lease_us
    assert leases.remaining_us(renewed, clock) >= clock.lease_us
    assert not leases.is_forgotten(renewed, clock)


@given(SESSIONS, CLOCKS, st.integers(0, 1 << 40))
def test_session_never_comes_back_to_life_by_itself(record, clock, later):
    after = leases.Clock(clock.now_us + later, clock.lease_us, clock.grace_until_us)
    if not leases.is_live(record, clock):
        assert not leases.is_live(record, after)
    if leases.is_forgotten(record, clock):
        assert not leases.is_live(record, clock)
        assert leases.is_forgotten(record, after)


HEADS = st.one_of(
    st.builds(
        frame.Request,
        st.text(max_size=90),
        st.text(max_size=90),
        st.integers(0, (1 << 63) - 1),
        st.integers(0, (1 << 63) - 1),
    ),
    st.builds(
        frame.Response,
        st.integers(-(1 << 63), (1 << 63) - 1),
        st.integers(-(1 << 31), (1 << 31) - 1),
        st.text(max_size=200),
    ),
)


@given(HEADS, st.binary(max_size=300), st.binary(max_size=300))
def test_frame_decodes_to_what_was_encoded(head, message, attachment):
    data = frame.encode(head, message, attachment)
    header = frame.decode_header(data[:12])
    body = data[12:]
    assert header.body_size == len(body)
    got = frame.decode_meta(body[: header.meta_size], header)
    assert got.attachment_size == len(attachment)
    assert type(got) is type(head)
    assert got.correlation_id == head.correlation_id
    end = len(body) - got.attachment_size
    assert body[header.meta_size : end] == message
    assert body[end:] == attachment


@given(st.binary(max_size=100), st.integers(0, 1 << 20))
def test_garbage_is_refused_in_one_way(data, body_size):
    with contextlib.suppress(ProtocolError):
        frame.decode_header(data[:12])
    header = frame.Header(body_size + len(data), len(data))
    try:
        head = frame.decode_meta(data, header)
    except ProtocolError:
        return
    assert 0 <= head.attachment_size <= body_size


@given(st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 1))
def test_sizes_of_a_header_are_kept_within_the_limits(body_size, meta_size):
    data = b"PRPC" + struct.pack(">II", body_size, meta_size)
    good = body_size <= 64 << 20 and meta_size <= min(4096, body_size)
    if good:
        assert frame.decode_header(data) == frame.Header(body_size, meta_size)
    else:
        with pytest.raises(ProtocolError):
            frame.decode_header(data)
