# SPDX-License-Identifier: BSD-3-Clause
"""The namespace against a plain model: random operations, invariants after each."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    multiple,
    rule,
)
from support.memory_store import MemoryStore

from gateway.mds import cluster, epochs, files, leases, pool, recycle, segments, tree
from gateway.mds.refusal import RefusalError
from gateway.mds.rules import Caller
from gateway.mds.store import Space, parse
from gateway.proto import cluster_pb2 as cl
from gateway.proto import nameserver2_pb2 as ns
from gateway.proto import store_pb2

GIB = 1 << 30
ALICE = Caller("alice")
# Few paths, so that operations meet: two volumes and a folder to begin with.
PATHS = st.sampled_from(["/a", "/b", "/c", "/f", "/f/a"])


class Model:
    """What the namespace should be: paths to ids, and ids to what is known of them."""

    def __init__(self):
        self.folders = {"/"}
        self.volumes = {}
        self.deleted = {}
        self.lengths = {}
        self.epochs = {}
        self.segments = {}
        self.open = set()

    def free(self, path):
        return path not in self.folders and path not in self.volumes

    def parent_exists(self, path):
        return (path.rpartition("/")[0] or "/") in self.folders


class Namespace(RuleBasedStateMachine):
    """Every operation either does what the model does or is refused when the model refuses."""

    sessions = Bundle("sessions")

    def __init__(self):
        super().__init__()
        self.store = MemoryStore()
        self.model = Model()
        self.now_us = 1_000_000_000
        self.ids = set()
        self.chunks = set()
        self.reclaimed = set()
        self.store.run(lambda txn: tree.initialise(txn, self.now_us))
        self.store.run(lambda txn: pool.settle(txn, 1))
        request = cl.RegisterChunkserverRequest(
            uuid="00000000-0000-0000-0000-000000000001", ip="127.0.0.1", port=1,
            data_directory="/d", capacity_bytes=GIB,
        )  # fmt: skip
        self.store.run(
            lambda txn: cluster.register(
                txn, request, copysets_per_chunkserver=3, reporting=frozenset(), now_us=0
            )
        )

    def clock(self):
        return leases.Clock(self.now_us, 20_000_000)

    def attempt(self, function):
        """Runs a transaction; returns its result, or None when it is refused (then nothing may
        have changed)."""
        before = dict(self.store.data)
        try:
            return self.store.run(function)
        except RefusalError:
            assert self.store.data == before
            return None

    @rule(path=PATHS, length=st.integers(1, 5))
    def create_volume(self, path, length):
        new = files.NewFile(path, ns.INODE_PAGEFILE, length * GIB)
        info = self.attempt(lambda txn: files.create(txn, ALICE, new, self.now_us))
        expected = self.model.free(path) and self.model.parent_exists(path)
        assert (info is not None) == expected
        if info is not None:
            assert info.id not in self.ids
            self.ids.add(info.id)
            self.model.volumes[path] = info.id
            self.model.lengths[info.id] = length * GIB
            self.model.epochs[info.id] = 0
            self.model.segments[info.id] = {}

    @initialize()
    def begin_with_something(self):
        self.create_volume("/a", 3)
        self.create_volume("/b", 2)
        self.create_folder("/f")
        self.allocate("/a", 0, 0)

    @rule(path=st.sampled_from(["/c", "/f"]))
    def create_folder(self, path):
        new = files.NewFile(path, ns.INODE_DIRECTORY)
        info = self.attempt(lambda txn: files.create(txn, ALICE, new, self.now_us))
        assert (info is not None) == self.model.free(path)
        if info is not None:
            assert info.id not in self.ids
            self.ids.add(info.id)
            self.model.folders.add(path)

    @rule(path=PATHS)
    def delete(self, path):
        held = self.open_ids()
        done = self.attempt(
            lambda txn: (recycle.delete_path(txn, ALICE, path, self.clock()), "done")
        )
        m = self.model
        if path in m.folders:
            used = any(p.startswith(path + "/") for p in m.volumes)
            assert (done is not None) == (not used)
            m.folders -= {path} if done else set()
        elif path in m.volumes:
            assert (done is not None) == (m.volumes[path] not in held)
            if done:
                m.deleted[m.volumes[path]] = path
                del m.volumes[path]
        else:
            assert done is None

    @rule(path=PATHS)
    def recover(self, path):
        info = self.attempt(lambda txn: recycle.recover(txn, ALICE, path))
        m = self.model
        there = [i for i, p in m.deleted.items() if p == path]
        assert (info is not None) == bool(there and m.free(path) and m.parent_exists(path))
        if info is not None:
            assert info.id in there
            del m.deleted[info.id]
            m.volumes[path] = info.id

    @rule(data=st.data())
    def purge(self, data):
        if not self.model.deleted:
            return
        file_id = data.draw(st.sampled_from(sorted(self.model.deleted)))
        [info] = [
            i for i in self.store.run(lambda t: files.listing(t, ALICE, "/RecycleBin"))
            if i.id == file_id
        ]  # fmt: skip
        path = f"/RecycleBin/{info.fileName}"
        assert self.attempt(
            lambda txn: recycle.delete_path(txn, ALICE, path, self.clock(), force=True)
        )
        while self.store.run(recycle.purge_step):
            pass
        for found in self.model.segments.pop(file_id).values():
            self.reclaimed.update(c.chunkID for c in found.chunks)
        del self.model.deleted[file_id]

    @rule(old=PATHS, new=PATHS)
    def rename(self, old, new):
        held = self.open_ids()
        done = self.attempt(
            lambda txn: (files.rename(txn, ALICE, files.Rename(old, new), self.clock()), "done")
        )
        m = self.model
        file_id = m.volumes.get(old)
        expected = (
            file_id is not None and file_id not in held and m.free(new) and m.parent_exists(new)
        )
        assert (done is not None) == expected
        if done:
            m.volumes[new] = m.volumes.pop(old)

    @rule(path=PATHS, length=st.integers(1, 8))
    def extend(self, path, length):
        info = self.attempt(lambda txn: files.extend(txn, ALICE, path, length * GIB))
        file_id = self.model.volumes.get(path)
        expected = file_id is not None and length * GIB >= self.model.lengths[file_id]
        assert (info is not None) == expected
        if info is not None:
            self.model.lengths[file_id] = length * GIB

    @rule(path=PATHS)
    def raise_epoch(self, path):
        def transaction(txn):
            info = tree.find_open_to_io(txn, path, ALICE).info
            epochs.raise_epoch(txn, info)
            return info

        info = self.attempt(transaction)
        assert (info is not None) == (path in self.model.volumes)
        if info is not None:
            self.model.epochs[info.id] += 1
            assert info.epoch == self.model.epochs[info.id]

    @rule(path=PATHS, index=st.integers(0, 3), behind=st.integers(0, 1))
    def allocate(self, path, index, behind):
        file_id = self.model.volumes.get(path)
        epoch = max(0, self.model.epochs.get(file_id, 0) - behind)
        request = ns.GetOrAllocateSegmentRequest(
            fileName=path, offset=index * GIB, allocateIfNotExist=True, epoch=epoch
        )
        got = self.attempt(
            lambda txn: segments.get_or_allocate(txn, ALICE, request, frozenset({1}))
        )
        if file_id is None:
            assert got is None
            return
        inside = index * GIB < self.model.lengths[file_id]
        assert (got is not None) == (inside and epoch == self.model.epochs[file_id])
        if got is not None:
            known = self.model.segments[file_id].setdefault(index, got)
            assert known == got
            if known is got:
                ids = {c.chunkID for c in got.chunks}
                assert len(ids) == 64
                assert not ids & self.chunks, "a chunk's id was used before"
                self.chunks |= ids

    @rule(path=PATHS, index=st.integers(0, 3))
    def deallocate(self, path, index):
        request = ns.DeAllocateSegmentRequest(fileName=path, offset=index * GIB)
        done = self.attempt(lambda txn: (segments.deallocate(txn, ALICE, request), "done"))
        known = self.model.segments.get(self.model.volumes.get(path), {})
        assert (done is not None) == (index in known)
        if done:
            self.reclaimed.update(c.chunkID for c in known.pop(index).chunks)

    @rule(target=sessions, path=PATHS)
    def open(self, path):
        def transaction(txn):
            found = tree.find_open_to_io(txn, path, ALICE)
            return leases.begin(txn, found, "client", self.clock())

        record = self.attempt(transaction)
        assert (record is not None) == (path in self.model.volumes)
        return multiple() if record is None else record

    @rule(record=sessions)
    def close(self, record):
        def transaction(txn):
            found = tree.find_volume(txn, record.path, ALICE)
            if found.info.id == record.file_id:
                leases.finish(txn, found, record.session_id, ("", 0))

        self.attempt(transaction)

    @rule(seconds=st.sampled_from([1, 19, 21]))
    def time_passes(self, seconds):
        self.now_us += seconds * 1_000_000
        self.store.run(lambda txn: leases.sweep(txn, self.clock()))

    def open_ids(self):
        records = self.store.run(leases.everything)
        return {r.file_id for r in records if leases.is_live(r, self.clock())}

    @invariant()
    def volumes_are_where_the_model_has_them(self):
        for path, file_id in self.model.volumes.items():
            info = self.store.run(lambda txn, p=path: files.describe(txn, ALICE, p))
            assert info.id == file_id
            assert info.length == self.model.lengths[file_id]
            assert info.allocatedBytes == GIB * len(self.model.segments[file_id])
        binned = self.store.run(lambda txn: files.listing(txn, ALICE, "/RecycleBin"))
        assert {i.id: i.originalFullPathName for i in binned} == self.model.deleted

    @invariant()
    def entries_are_counted(self):
        def transaction(txn):
            for folder in (tree.ROOT_ID, tree.RECYCLE_BIN_ID, *sorted(self.ids)):
                there = len(list(tree.children(txn, folder)))
                assert tree.entries(txn, folder) == there

        self.store.run(transaction)

    @invariant()
    def totals_are_right(self):
        volumes, allocated = self.store.run(tree.totals)
        assert volumes == len(self.model.volumes)
        assert allocated == GIB * sum(len(s) for s in self.model.segments.values())

    @invariant()
    def given_up_chunks_are_reclaimed_and_belong_to_nobody(self):
        def transaction(txn):
            lists = [parse(cl.ChunkId, v).chunk_id for _, v in txn.scan(Space.RECLAIM)]
            used = [
                c.chunkID
                for _, v in txn.scan(Space.SEGMENTS)
                for c in parse(ns.PageFileSegment, v).chunks
            ]
            return lists, used

        lists, used = self.store.run(transaction)
        assert sorted(lists) == sorted(self.reclaimed)
        assert len(used) == len(set(used))
        assert not set(used) & self.reclaimed

    @invariant()
    def chunkservers_can_learn_each_epoch(self):
        told, revision = self.store.run(lambda txn: epochs.since(txn, 0))
        expected = {i: e for i, e in self.model.epochs.items() if e and i in self.model.segments}
        assert {r.file_id: r.epoch for r in told} == expected
        assert len(told) == len(expected)
        assert [r.revision for r in told] == sorted(r.revision for r in told)
        assert all(isinstance(r, store_pb2.EpochRecord) and r.revision <= revision for r in told)


TestNamespace = Namespace.TestCase
TestNamespace.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
