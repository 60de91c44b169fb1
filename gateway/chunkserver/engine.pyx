# SPDX-License-Identifier: BSD-3-Clause
# cython: language_level=3
"""The chunkserver's C engine as Python sees it: a typed skin over csrc/chunkserver/chunkserver.h.

The engine serves the data path on a thread of its own, which never takes the GIL. The calls here hand
work to that thread and wait for it without the GIL; they may come from any thread. A failed start
raises one of :mod:`gateway.errors`, a failed call OSError.
"""

import errno as _errno
import os
import threading
from collections.abc import Sequence
from typing import Literal, NamedTuple

from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from gateway import errors

cdef extern from *:
    """
    #include <stdint.h>
    #include <stdio.h>
    #include <unistd.h>

    #include "base/log.h"

    static const char *const cg_level_names[] = {"debug", "info", "warning", "error"};

    // Runs on any thread, without the GIL.
    static void cg_log_line(void *context, enum cg_log_level level, const char *line) {
        char text[CG_LOG_LINE_MAX + 64];
        (void)context;
        int length = snprintf(text, sizeof(text), "copygate: %s: %s\\n",
                              cg_level_names[(unsigned)level & 3], line);
        if (length > (int)sizeof(text) - 1) {
            length = (int)sizeof(text) - 1;
        }
        // A log line that cannot be written has nowhere else to go.
        ssize_t written = write(STDERR_FILENO, text, (size_t)length);
        (void)written;
    }

    static void cg_log_to_stderr_from(int lowest) {
        cg_log_set_sink(cg_log_line, NULL, (enum cg_log_level)lowest);
    }
    """
    void cg_log_to_stderr_from(int lowest) noexcept nogil


cdef extern from "raft/raft.h" nogil:
    const uint32_t CG_RAFT_MEMBERS_MAX

    struct cg_raft_member:
        uint64_t id
        bint learner

    struct cg_raft_config:
        uint32_t count
        cg_raft_member member[9]

    enum cg_raft_change:
        CG_RAFT_ADD_LEARNER
        CG_RAFT_PROMOTE
        CG_RAFT_REMOVE

    struct cg_raft_progress_t "cg_raft_progress":
        uint64_t match
        uint64_t heard_ns
        bint learner
        bint snapshot


cdef extern from "chunkserver/copyset_log.h" nogil:
    struct cg_copyset_log_peer_status:
        uint64_t id
        cg_raft_progress_t progress

    struct cg_copyset_log_status_t "cg_copyset_log_status":
        int role
        bint ready
        uint64_t term
        uint64_t leader
        uint64_t last_index
        uint64_t durable_index
        uint64_t commit_index
        uint64_t applied_index
        cg_raft_config config
        uint64_t config_index
        uint64_t now_ns
        uint32_t peer_count
        cg_copyset_log_peer_status peer[9]


cdef extern from "chunkserver/log_disk.h" nogil:
    struct cg_log_disk_stats_t "cg_log_disk_stats":
        uint64_t cached_entries
        uint64_t cached_bytes
        uint64_t fetches


cdef extern from "chunkserver/catchup.h" nogil:
    struct cg_catchup_stats_t "cg_catchup_stats":
        uint32_t receiving
        uint32_t sending
        uint64_t received_bytes
        uint64_t received_chunks
        uint64_t sent_bytes
        uint64_t completed
        uint64_t mended_blocks
        uint64_t mended_chunks


cdef extern from "chunkserver/peers.h" nogil:
    struct cg_peers_stats_t "cg_peers_stats":
        uint64_t frames_sent
        uint64_t messages_sent
        uint64_t bytes_sent
        uint64_t frames_received
        uint64_t messages_received
        uint64_t bytes_received
        uint64_t messages_dropped
        uint64_t frames_refused
        uint64_t messages_strayed
        uint32_t peers_down


cdef extern from "chunkserver/store.h" nogil:
    struct cg_copyset_spec:
        uint32_t pool
        uint32_t copyset
        uint64_t self
        const uint64_t *founders
        uint32_t founder_count

    struct cg_scrub_stats:
        uint64_t rate
        bint running
        uint64_t request
        uint64_t queued
        uint64_t completed
        uint64_t started_s
        uint64_t completed_s
        uint64_t checked
        uint64_t skipped
        uint64_t found
        uint32_t bad_blocks
        bint bad_blocks_more


cdef extern from "chunkserver/bad_blocks.h" nogil:
    struct cg_bad_block:
        uint64_t group
        uint64_t chunk_id
        uint64_t file_id
        uint32_t block

    bint CG_IS_BAD_SLOT(uint32_t block)


cdef extern from "chunkserver/chunk_format.h" nogil:
    const uint32_t CG_BLOCK_SIZE


cdef extern from "chunkserver/chunkserver.h" nogil:
    struct cg_chunkserver:
        pass

    struct cg_chunkserver_options:
        const char *folder
        const char *listen
        const char *advertise
        uint64_t wal_bytes
        uint64_t memory_bytes
        uint32_t inflight_max
        uint64_t reserve_bytes
        uint64_t scrub_rate
        uint64_t scrub_period_s
        uint64_t copy_rate
        int reactor_backend

    struct cg_chunkserver_stats_t "cg_chunkserver_stats":
        uint64_t reads
        uint64_t writes
        uint64_t others
        uint64_t overloads
        uint64_t errors
        uint64_t read_bytes
        uint64_t written_bytes
        uint64_t wal_batches
        uint64_t wal_records
        uint64_t wal_bytes
        uint64_t wal_used
        uint64_t wal_capacity
        uint64_t checkpoints
        uint64_t capacity_bytes
        uint64_t free_bytes
        uint32_t copysets
        uint32_t leaders
        uint32_t connections
        int disk_error
        cg_scrub_stats scrub
        cg_peers_stats_t peers
        cg_log_disk_stats_t log
        cg_catchup_stats_t copy

    struct cg_chunkserver_copyset:
        uint32_t pool
        uint32_t copyset
        uint64_t member
        cg_copyset_log_status_t log

    int cg_chunkserver_start(
        const cg_chunkserver_options *options, cg_chunkserver **out, char *error, size_t error_size)
    void cg_chunkserver_stop(cg_chunkserver *server)
    void cg_chunkserver_uuid(const cg_chunkserver *server, char *out)
    void cg_chunkserver_address(const cg_chunkserver *server, char *out, size_t size)
    int cg_chunkserver_event_fd(const cg_chunkserver *server)
    int cg_chunkserver_set_peer(
        cg_chunkserver *server, uint32_t chunkserver, const char *address)
    int cg_chunkserver_add_copyset(cg_chunkserver *server, const cg_copyset_spec *spec)
    int cg_chunkserver_remove_copyset(
        cg_chunkserver *server, uint32_t pool, uint32_t copyset, uint64_t member)
    int cg_chunkserver_change(cg_chunkserver *server, uint32_t pool, uint32_t copyset,
                              cg_raft_change kind, uint64_t member)
    int cg_chunkserver_transfer(
        cg_chunkserver *server, uint32_t pool, uint32_t copyset, uint64_t member)
    uint32_t cg_chunkserver_copysets(
        cg_chunkserver *server, cg_chunkserver_copyset *out, uint32_t max)
    int cg_chunkserver_raise_epoch(cg_chunkserver *server, uint64_t file_id, uint64_t epoch)
    int cg_chunkserver_reclaim(
        cg_chunkserver *server, uint32_t pool, uint32_t copyset, uint64_t chunk)
    int cg_chunkserver_scrub(cg_chunkserver *server, uint64_t request)
    uint32_t cg_chunkserver_bad_blocks(cg_chunkserver *server, cg_bad_block *out, uint32_t max)
    void cg_chunkserver_stats_of "cg_chunkserver_stats"(
        cg_chunkserver *server, cg_chunkserver_stats_t *out)


_ROLES = ("follower", "pre-candidate", "candidate", "leader", "retired")
_CHANGES = {
    "add-learner": CG_RAFT_ADD_LEARNER,
    "promote": CG_RAFT_PROMOTE,
    "remove": CG_RAFT_REMOVE,
}
_LOG_LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}
_BACKENDS = {"auto": 0, "uring": 1, "epoll": 2}
_UINT32_MAX = 2**32 - 1
_UINT64_MAX = 2**64 - 1
_SECONDS_MAX = 100 * 365 * 86400


class Scrub(NamedTuple):
    """How far the scrub is. Blocks have 4 KiB; times are seconds since 1970, 0: never."""

    rate: int
    """Bytes per second at most; 0: it is off."""
    running: bool
    request: int
    """What the pass under way was asked for by; 0: it was due."""
    queued: int
    completed: int
    """The newest request whose pass is complete."""
    started_s: int
    completed_s: int
    checked: int
    skipped: int
    """Written while the pass went on."""
    found: int
    bad_blocks: int
    bad_blocks_more: bool
    """There are more than can be listed."""


class BadBlock(NamedTuple):
    """A block that is known to be bad."""

    pool: int
    copyset: int
    chunk: int
    file_id: int
    """The volume's; 0 if it is not known."""
    offset: int | None
    """Bytes in the chunk; None: the chunk's metadata."""


class Member(NamedTuple):
    """A member of a copyset: the chunkserver's id in the low 32 bits of ``id``, above it the
    incarnation that the MDS gave."""

    id: int
    learner: bool


class Progress(NamedTuple):
    """A member as its leader sees it."""

    id: int
    learner: bool
    match: int
    """Durable there and equal to the leader's log up to this index."""
    heard_ms_ago: int
    copying: bool
    """It lacks entries that are gone, and is being sent the state."""


class Copyset(NamedTuple):
    """A replica on this chunkserver."""

    pool: int
    copyset: int
    member: int
    """Its member id; 0: its folder is of an earlier version and waits for add_copyset."""
    role: str
    """follower, pre-candidate, candidate, leader or retired."""
    ready: bool
    """It leads and serves."""
    term: int
    leader: int
    """Member id; 0: unknown."""
    last_index: int
    durable_index: int
    commit_index: int
    applied_index: int
    members: tuple[Member, ...]
    """The last configuration in the log; empty while a joining replica knows none."""
    members_index: int
    members_committed: bool
    progress: tuple[Progress, ...]
    """Of the other members; where it leads."""


class Stats(NamedTuple):
    """Counters since the start, and the state of log and disk; sizes in bytes."""

    reads: int
    writes: int
    others: int
    overloads: int
    errors: int
    read_bytes: int
    written_bytes: int
    wal_batches: int
    wal_records: int
    wal_bytes: int
    wal_used: int
    wal_capacity: int
    checkpoints: int
    capacity_bytes: int
    free_bytes: int
    copysets: int
    leaders: int
    """Copysets that it leads and serves."""
    connections: int
    disk_error: int
    """0, or the errno that retired the disk."""
    scrub: Scrub
    raft_frames_sent: int
    raft_messages_sent: int
    raft_bytes_sent: int
    raft_frames_received: int
    raft_messages_received: int
    raft_bytes_received: int
    raft_messages_dropped: int
    """Not sent: no connection, or too much is under way."""
    raft_frames_refused: int
    """Rubbish, or damaged."""
    raft_messages_strayed: int
    """For copysets that are not here."""
    peers_down: int
    """Chunkservers that do not answer."""
    log_entries: int
    """Durable entries of the logs that are in memory."""
    log_bytes: int
    log_fetches: int
    """Reads of the log on disk for entries that were not."""
    copies_receiving: int
    """Copysets whose state is being copied here, or has to be."""
    copies_sending: int
    """To other chunkservers."""
    copies_completed: int
    copied_bytes: int
    """Received, of chunks."""
    mended_blocks: int
    """Bad ones that others had."""
    mended_chunks: int
    """Whose metadata were bad."""


def set_log(level: str) -> None:
    """Sends the engine's log lines from ``level`` on to standard error. Call it before the start."""
    if level not in _LOG_LEVELS:
        raise errors.ConfigError(
            "the log level is not one of " + ", ".join(_LOG_LEVELS), context={"level": level}
        )
    cg_log_to_stderr_from(_LOG_LEVELS[level])


def _start_error(int code, str text, str folder):
    """The exception for a start that failed with errno ``code`` and the sentence ``text``."""
    context = {"folder": folder}
    if code in (_errno.EBUSY, _errno.EADDRINUSE):
        return errors.BusyError(text, context=context, hint="stop the other process")
    if code == _errno.ENOSPC:
        return errors.NoSpaceError(
            text, context=context, hint="free space on the disk or give it a smaller log"
        )
    if code in (_errno.EACCES, _errno.EPERM, _errno.EROFS):
        return errors.AccessError(
            text, context=context, hint="use a folder that this user may write"
        )
    if code in (_errno.ENOENT, _errno.ENOTDIR):
        return errors.NotFoundError(text, context=context, hint="make the folder first")
    if code in (_errno.EINVAL, _errno.ENOTEMPTY, _errno.ENAMETOOLONG, _errno.EHOSTUNREACH,
                _errno.EADDRNOTAVAIL):
        return errors.ConfigError(text, context=context)
    return errors.CopygateError(text, context=context)


def _in_range(str name, object value, object highest):
    """``value`` if it is an integer from 0 to ``highest``."""
    if not 0 <= value <= highest:
        raise errors.InvalidArgumentError(
            f"{name} is not from 0 to {highest}", context={name: value}
        )
    return value


cdef _copyset(const cg_chunkserver_copyset *c):
    """A replica as Python sees it."""
    cdef const cg_copyset_log_status_t *log = &c.log
    return Copyset(
        pool=c.pool,
        copyset=c.copyset,
        member=c.member,
        role=_ROLES[log.role],
        ready=log.ready,
        term=log.term,
        leader=log.leader,
        last_index=log.last_index,
        durable_index=log.durable_index,
        commit_index=log.commit_index,
        applied_index=log.applied_index,
        members=tuple(
            Member(log.config.member[i].id, log.config.member[i].learner)
            for i in range(log.config.count)
        ),
        members_index=log.config_index,
        members_committed=log.config_index <= log.commit_index,
        progress=tuple(
            Progress(
                id=log.peer[i].id,
                learner=log.peer[i].progress.learner,
                match=log.peer[i].progress.match,
                heard_ms_ago=max(
                    0, (<int64_t>(log.now_ns - log.peer[i].progress.heard_ns)) // 1000000
                ),
                copying=log.peer[i].progress.snapshot,
            )
            for i in range(log.peer_count)
        ),
    )


cdef class Chunkserver:
    """A running chunkserver on one folder. The start blocks while the log is replayed."""

    cdef cg_chunkserver *_server
    cdef object _condition
    cdef int _users

    def __cinit__(self):
        self._server = NULL
        self._users = 0

    def __init__(
        self,
        folder: str,
        listen: str,
        *,
        advertise: str | None = None,
        wal_bytes: int = 0,
        memory_bytes: int = 0,
        inflight_max: int = 0,
        reserve_bytes: int = 0,
        scrub_rate: int = 0,
        scrub_period_s: int = 0,
        copy_rate: int = 0,
        backend: str = "auto",
    ) -> None:
        if self._server != NULL:
            raise RuntimeError("the chunkserver runs already")
        if backend not in _BACKENDS:
            raise errors.ConfigError(
                "the backend is not one of " + ", ".join(_BACKENDS), context={"backend": backend}
            )
        self._condition = threading.Condition()
        folder_bytes = os.fsencode(folder)
        listen_bytes = os.fsencode(listen)
        advertise_bytes = os.fsencode(advertise) if advertise is not None else None
        cdef cg_chunkserver_options options
        memset(&options, 0, sizeof(options))  # what is not told is the engine's default
        options.folder = folder_bytes
        options.listen = listen_bytes
        if advertise_bytes is not None:
            options.advertise = advertise_bytes
        options.wal_bytes = _in_range("wal_bytes", wal_bytes, _UINT64_MAX)
        options.memory_bytes = _in_range("memory_bytes", memory_bytes, _UINT64_MAX)
        options.inflight_max = _in_range("inflight_max", inflight_max, _UINT32_MAX)
        options.reserve_bytes = _in_range("reserve_bytes", reserve_bytes, _UINT64_MAX)
        options.scrub_rate = _in_range("scrub_rate", scrub_rate, _UINT64_MAX)
        options.scrub_period_s = _in_range("scrub_period_s", scrub_period_s, _SECONDS_MAX)
        options.copy_rate = _in_range("copy_rate", copy_rate, _UINT64_MAX)
        options.reactor_backend = _BACKENDS[backend]
        cdef char text[1024]
        text[0] = 0
        cdef int result
        with nogil:
            result = cg_chunkserver_start(&options, &self._server, text, sizeof(text))
        if result != 0:
            self._server = NULL
            message = (<bytes>text).decode(errors="replace") or os.strerror(-result)
            raise _start_error(-result, message, folder)

    def __dealloc__(self):
        if self._server != NULL:
            with nogil:
                cg_chunkserver_stop(self._server)
            self._server = NULL

    cdef cg_chunkserver *_enter(self) except NULL:
        """Counts a call in, so that a stop waits for it."""
        with self._condition:
            if self._server == NULL:
                raise OSError(_errno.ESHUTDOWN, os.strerror(_errno.ESHUTDOWN))
            self._users += 1
            return self._server

    cdef _leave(self, int result):
        with self._condition:
            self._users -= 1
            self._condition.notify_all()
        if result < 0:
            raise OSError(-result, os.strerror(-result))

    @property
    def uuid(self) -> str:
        """The disk's uuid, made when its folder was first used."""
        cdef char text[37]
        cdef cg_chunkserver *server = self._enter()
        cg_chunkserver_uuid(server, text)
        self._leave(0)
        return (<bytes>text).decode("ascii")

    @property
    def address(self) -> str:
        """The endpoint that was bound: the first TCP one, else the unix socket."""
        cdef char text[256]
        cdef cg_chunkserver *server = self._enter()
        cg_chunkserver_address(server, text, sizeof(text))
        self._leave(0)
        return os.fsdecode(<bytes>text)

    @property
    def event_fd(self) -> int:
        """An eventfd that becomes readable when who leads, the term or the members of any copyset
        have changed. The engine's; open until `stop`."""
        cdef cg_chunkserver *server = self._enter()
        cdef int descriptor = cg_chunkserver_event_fd(server)
        self._leave(0)
        return descriptor

    def set_peer(self, chunkserver: int, address: str) -> None:
        """Where a chunkserver of the cluster is, this one included: "ip:port"."""
        cdef uint32_t c_chunkserver = _in_range("chunkserver", chunkserver, _UINT32_MAX)
        address_bytes = os.fsencode(address)
        cdef const char *c_address = address_bytes
        cdef int result
        cdef cg_chunkserver *server = self._enter()
        with nogil:
            result = cg_chunkserver_set_peer(server, c_chunkserver, c_address)
        self._leave(result)

    def add_copyset(
        self, pool: int, copyset: int, *, member: int, founders: Sequence[int] = ()
    ) -> None:
        """Makes the replica durably if it is not there.

        `founders` are all members of a new copyset, `member` included; empty: the replica joins one
        that is there. A folder of an earlier version is taken over if `member` is the only founder.
        OSError with EEXIST: it is there as another member.
        """
        cdef uint64_t c_founders[9]
        cdef cg_copyset_spec spec
        if len(founders) > CG_RAFT_MEMBERS_MAX:
            raise errors.InvalidArgumentError(
                f"a copyset has at most {CG_RAFT_MEMBERS_MAX} members",
                context={"pool": pool, "copyset": copyset, "founders": len(founders)},
            )
        for i, founder in enumerate(founders):
            c_founders[i] = _in_range("founder", founder, _UINT64_MAX)
        spec.pool = _in_range("pool", pool, _UINT32_MAX)
        spec.copyset = _in_range("copyset", copyset, _UINT32_MAX)
        spec.self = _in_range("member", member, _UINT64_MAX)
        spec.founders = c_founders
        spec.founder_count = len(founders)
        cdef int result
        cdef cg_chunkserver *server = self._enter()
        with nogil:
            result = cg_chunkserver_add_copyset(server, &spec)
        self._leave(result)

    def remove_copyset(self, pool: int, copyset: int, *, member: int) -> None:
        """Deletes a replica that the copyset has removed. No error if it is not there; OSError with
        EEXIST if it is there as another member."""
        cdef uint32_t c_pool = _in_range("pool", pool, _UINT32_MAX)
        cdef uint32_t c_copyset = _in_range("copyset", copyset, _UINT32_MAX)
        cdef uint64_t c_member = _in_range("member", member, _UINT64_MAX)
        cdef int result
        cdef cg_chunkserver *server = self._enter()
        with nogil:
            result = cg_chunkserver_remove_copyset(server, c_pool, c_copyset, c_member)
        self._leave(result)

    def change_members(
        self,
        pool: int,
        copyset: int,
        change: Literal["add-learner", "promote", "remove"],
        member: int,
    ) -> None:
        """Begins a change of the members at the leader; `copysets` tells when it is committed.

        OSError: ENOENT not here, EPERM not the leader, EAGAIN later (the change before is not
        committed, or the learner lags), EINVAL no such member or already one, ENOSPC too many.
        """
        cdef uint32_t c_pool = _in_range("pool", pool, _UINT32_MAX)
        cdef uint32_t c_copyset = _in_range("copyset", copyset, _UINT32_MAX)
        cdef uint64_t c_member = _in_range("member", member, _UINT64_MAX)
        if change not in _CHANGES:
            raise errors.InvalidArgumentError(
                "the change is not one of " + ", ".join(_CHANGES), context={"change": change}
            )
        cdef cg_raft_change c_change = _CHANGES[change]
        cdef int result
        cdef cg_chunkserver *server = self._enter()
        with nogil:
            result = cg_chunkserver_change(server, c_pool, c_copyset, c_change, c_member)
        self._leave(result)

    def transfer(self, pool: int, copyset: int, member: int) -> None:
        """Begins to hand leadership over to `member`. OSError as for `change_members`."""
        cdef uint32_t c_pool = _in_range("pool", pool, _UINT32_MAX)
        cdef uint32_t c_copyset = _in_range("copyset", copyset, _UINT32_MAX)
        cdef uint64_t c_member = _in_range("member", member, _UINT64_MAX)
        cdef int result
        cdef cg_chunkserver *server = self._enter()
        with nogil:
            result = cg_chunkserver_transfer(server, c_pool, c_copyset, c_member)
        self._leave(result)

    def copysets(self) -> list[Copyset]:
        """The replicas here."""
        cdef uint32_t room = 64
        cdef uint32_t count
        cdef cg_chunkserver_copyset *found
        while True:
            found = <cg_chunkserver_copyset *>calloc(room, sizeof(cg_chunkserver_copyset))
            if found == NULL:
                raise MemoryError
            try:
                server = self._enter()
                with nogil:
                    count = cg_chunkserver_copysets(server, found, room)
                self._leave(0)
                if count <= room:
                    return [_copyset(&found[i]) for i in range(count)]
                room = count
            finally:
                free(found)

    def raise_epoch(self, file_id: int, epoch: int) -> None:
        """Raises a volume's epoch in every copyset; a lower one than known changes nothing."""
        cdef uint64_t c_file_id = file_id
        cdef uint64_t c_epoch = epoch
        cdef int result
        cdef cg_chunkserver *server = self._enter()
        with nogil:
            result = cg_chunkserver_raise_epoch(server, c_file_id, c_epoch)
        self._leave(result)

    def reclaim(self, pool: int, copyset: int, chunk: int) -> None:
        """Deletes a chunk that the MDS has given up; no error if it is not there."""
        cdef uint32_t c_pool = pool
        cdef uint32_t c_copyset = copyset
        cdef uint64_t c_chunk = chunk
        cdef int result
        cdef cg_chunkserver *server = self._enter()
        with nogil:
            result = cg_chunkserver_reclaim(server, c_pool, c_copyset, c_chunk)
        self._leave(result)

    def stats(self) -> Stats:
        """The counters now."""
        cdef cg_chunkserver_stats_t s
        cdef cg_chunkserver *server = self._enter()
        with nogil:
            cg_chunkserver_stats_of(server, &s)
        self._leave(0)
        return Stats(
            reads=s.reads,
            writes=s.writes,
            others=s.others,
            overloads=s.overloads,
            errors=s.errors,
            read_bytes=s.read_bytes,
            written_bytes=s.written_bytes,
            wal_batches=s.wal_batches,
            wal_records=s.wal_records,
            wal_bytes=s.wal_bytes,
            wal_used=s.wal_used,
            wal_capacity=s.wal_capacity,
            checkpoints=s.checkpoints,
            capacity_bytes=s.capacity_bytes,
            free_bytes=s.free_bytes,
            copysets=s.copysets,
            leaders=s.leaders,
            connections=s.connections,
            disk_error=s.disk_error,
            scrub=Scrub(
                rate=s.scrub.rate,
                running=s.scrub.running,
                request=s.scrub.request,
                queued=s.scrub.queued,
                completed=s.scrub.completed,
                started_s=s.scrub.started_s,
                completed_s=s.scrub.completed_s,
                checked=s.scrub.checked,
                skipped=s.scrub.skipped,
                found=s.scrub.found,
                bad_blocks=s.scrub.bad_blocks,
                bad_blocks_more=s.scrub.bad_blocks_more,
            ),
            raft_frames_sent=s.peers.frames_sent,
            raft_messages_sent=s.peers.messages_sent,
            raft_bytes_sent=s.peers.bytes_sent,
            raft_frames_received=s.peers.frames_received,
            raft_messages_received=s.peers.messages_received,
            raft_bytes_received=s.peers.bytes_received,
            raft_messages_dropped=s.peers.messages_dropped,
            raft_frames_refused=s.peers.frames_refused,
            raft_messages_strayed=s.peers.messages_strayed,
            peers_down=s.peers.peers_down,
            log_entries=s.log.cached_entries,
            log_bytes=s.log.cached_bytes,
            log_fetches=s.log.fetches,
            copies_receiving=s.copy.receiving,
            copies_sending=s.copy.sending,
            copies_completed=s.copy.completed,
            copied_bytes=s.copy.received_bytes,
            mended_blocks=s.copy.mended_blocks,
            mended_chunks=s.copy.mended_chunks,
        )

    def scrub(self, request: int) -> None:
        """Begins a pass of the scrub, or after the one that serves another request. Requests are
        numbered upwards; one that is known changes nothing. OSError with ENOTSUP if it is off."""
        cdef uint64_t c_request = _in_range("request", request, _UINT64_MAX)
        cdef int result
        cdef cg_chunkserver *server = self._enter()
        with nogil:
            result = cg_chunkserver_scrub(server, c_request)
        self._leave(result)

    def bad_blocks(self) -> list[BadBlock]:
        """The known bad blocks, at most 64 of them."""
        cdef cg_bad_block found[64]
        cdef uint32_t count
        cdef cg_chunkserver *server = self._enter()
        with nogil:
            count = cg_chunkserver_bad_blocks(server, found, 64)
        self._leave(0)
        return [
            BadBlock(
                pool=found[i].group >> 32,
                copyset=found[i].group & _UINT32_MAX,
                chunk=found[i].chunk_id,
                file_id=found[i].file_id,
                offset=None
                if CG_IS_BAD_SLOT(found[i].block)
                else <uint64_t>found[i].block * CG_BLOCK_SIZE,
            )
            for i in range(count)
        ]

    def stop(self) -> None:
        """Finishes what is in flight, writes a checkpoint, frees the folder. Twice is harmless."""
        cdef cg_chunkserver *server
        with self._condition:
            server = self._server
            self._server = NULL
            self._condition.wait_for(lambda: self._users == 0)
        if server != NULL:
            with nogil:
                cg_chunkserver_stop(server)
