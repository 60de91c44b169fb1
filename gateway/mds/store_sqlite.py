# SPDX-License-Identifier: BSD-3-Clause
"""The embedded store: one SQLite file for a metadata server on one machine.

A lock file keeps other metadata servers away; SQLite's own locks let an operator read and back up
the file meanwhile. All access is on one thread of the store's own, so that a slow disk never holds
up the event loop. Transactions that wait at the same time share one commit (each in its own
savepoint): SQLite's WAL with synchronous=FULL syncs once a commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gateway.errors import BusyError, StorageError
from gateway.mds import upgrade
from gateway.mds.store import Space, Transaction

log = logging.getLogger(__name__)

T = TypeVar("T")

APPLICATION_ID = 0x43475431
"""Marks the file as ours ("CGT1")."""
BATCH_MAX = 128


def _create(db: sqlite3.Connection) -> None:
    db.execute(
        "CREATE TABLE kv (space INTEGER NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL,"
        " PRIMARY KEY (space, key)) WITHOUT ROWID"
    )
    db.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def _to_members(db: sqlite3.Connection) -> None:
    upgrade.to_members(_SqliteTransaction(db))


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (_create, _to_members)
"""MIGRATIONS[n] takes a file from schema n to n + 1; each runs in one transaction."""


class _SqliteTransaction:
    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def get(self, space: Space, key: bytes) -> bytes | None:
        row = self._db.execute(
            "SELECT value FROM kv WHERE space = ? AND key = ?", (int(space), key)
        ).fetchone()
        return row[0] if row is not None else None

    def put(self, space: Space, key: bytes, value: bytes) -> None:
        self._db.execute(
            "INSERT INTO kv VALUES (?, ?, ?)"
            " ON CONFLICT (space, key) DO UPDATE SET value = excluded.value",
            (int(space), key, value),
        )

    def delete(self, space: Space, key: bytes) -> None:
        self._db.execute("DELETE FROM kv WHERE space = ? AND key = ?", (int(space), key))

    def scan(
        self, space: Space, prefix: bytes = b"", *, after: bytes | None = None, limit: int = -1
    ) -> Iterator[tuple[bytes, bytes]]:
        query = "SELECT key, value FROM kv WHERE space = ?"
        values: list[object] = [int(space)]
        if after is not None:
            query += " AND key > ?"
            values.append(after)
        if prefix:
            query += " AND key >= ?"
            values.append(prefix)
            end = _after_prefix(prefix)
            if end is not None:
                query += " AND key < ?"
                values.append(end)
        query += " ORDER BY key LIMIT ?"
        values.append(limit)
        # All at once: an open cursor would not survive a rollback, or see changes of its own table.
        return iter(self._db.execute(query, values).fetchall())


@dataclass(slots=True)
class _Job:
    function: Callable[[Transaction], Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    result: Any = None
    error: BaseException | None = None


class SqliteStore:
    """Open it with ``await SqliteStore.open(path)``; one process at a time."""

    def __init__(self, path: Path, db: sqlite3.Connection, lock_fd: int) -> None:
        self._path = path
        self._db = db
        self._lock_fd = lock_fd
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._failed: StorageError | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="mds-store", daemon=True)
        self._thread.start()

    @classmethod
    async def open(cls, path: Path) -> SqliteStore:
        """Opens the file, creating it if there is none, and takes its lock.

        Raises BusyError when another process has it, StorageError when it cannot be used.
        """
        return await asyncio.to_thread(cls._open, path)

    @classmethod
    def _open(cls, path: Path) -> SqliteStore:
        path = path.absolute()
        lock_fd = _lock(path)
        try:
            db = _connect(path)
        except BaseException:
            os.close(lock_fd)
            raise
        return cls(path, db, lock_fd)

    async def run(self, function: Callable[[Transaction], T]) -> T:
        """See Store.run."""
        if self._closed:
            raise StorageError("the metadata store is closed", context={"file": self._path})
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        self._jobs.put(_Job(function, future, loop))
        # A caller that gives up does not undo the transaction: it may be done already.
        return await future

    async def close(self) -> None:
        """Finishes what is queued, folds the log into the file, gives the lock back."""
        if self._closed:
            return
        self._closed = True
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        running = True
        while running:
            batch: list[_Job] = []
            job = self._jobs.get()
            while job is not None:
                batch.append(job)
                if len(batch) == BATCH_MAX:
                    break
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            running = job is not None
            if batch:
                self._run_batch(batch)
                _deliver(batch)
        try:
            self._db.close()
        except sqlite3.Error as error:
            log.error("closing the metadata store failed: %s", error)
        os.close(self._lock_fd)

    def _run_batch(self, batch: list[_Job]) -> None:
        if self._failed is not None:
            for job in batch:
                job.error = self._failed
            return
        try:
            self._db.execute("BEGIN IMMEDIATE")
            for job in batch:
                self._run_job(job)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            failure = self._failure(error)
            with contextlib.suppress(sqlite3.Error):
                self._db.execute("ROLLBACK")
            for job in batch:
                job.result, job.error = None, failure

    def _run_job(self, job: _Job) -> None:
        self._db.execute("SAVEPOINT job")
        try:
            job.result = job.function(_SqliteTransaction(self._db))
        except sqlite3.Error:
            raise  # the whole batch is in doubt
        except Exception as error:  # noqa: BLE001 - the caller's: _deliver hands it over
            job.error = error
            self._db.execute("ROLLBACK TO job")
        self._db.execute("RELEASE job")

    def _failure(self, error: sqlite3.Error) -> StorageError:
        name = getattr(error, "sqlite_errorname", "")
        context = {"file": self._path, "reason": f"{error} {name}".strip()}
        if name == "SQLITE_FULL":
            return StorageError(
                "the disk of the metadata store is full", context=context, hint="free some space"
            )
        failure = StorageError(
            "the metadata store failed",
            context=context,
            hint="check the disk; then restart the metadata server",
        )
        if name.startswith(("SQLITE_IOERR", "SQLITE_CORRUPT", "SQLITE_NOTADB")):
            # After a failed sync the kernel may have dropped the pages: a later success would lie.
            self._failed = failure
            log.critical("the metadata store stops: %s", failure)
        return failure


def _deliver(batch: list[_Job]) -> None:
    by_loop: dict[asyncio.AbstractEventLoop, list[_Job]] = {}
    for job in batch:
        by_loop.setdefault(job.loop, []).append(job)
    for loop, jobs in by_loop.items():
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            loop.call_soon_threadsafe(_resolve, jobs)


def _resolve(jobs: list[_Job]) -> None:
    for job in jobs:
        if job.future.done():
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)


def _lock(path: Path) -> int:
    lock_path = path.with_name(path.name + "-lock")
    try:
        fd = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StorageError(
            "cannot use the folder of the metadata store",
            context={"folder": path.parent, "reason": os.strerror(error.errno or 0)},
            hint="it must exist and be writable",
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise StorageError(
                "cannot lock the metadata store",
                context={"file": lock_path, "reason": os.strerror(error.errno or 0)},
            ) from error
        raise BusyError(
            "another metadata server uses this store",
            context={"file": path, "pid": holder},
            hint="stop it, or use another data folder",
        ) from error
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _connect(path: Path) -> sqlite3.Connection:
    db: sqlite3.Connection | None = None
    try:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        # Used from the store's thread after it was opened on another.
        db = sqlite3.connect(path, isolation_level=None, timeout=2, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        _migrate(db, path)
        _sync_folder(path.parent)
    except (sqlite3.Error, OSError) as error:
        if db is not None:
            db.close()
        raise StorageError(
            "cannot open the metadata store",
            context={"file": path, "reason": error},
            hint="is it a metadata store of Copygate, undamaged and writable?",
        ) from error
    except BaseException:
        if db is not None:
            db.close()
        raise
    return db


def _migrate(db: sqlite3.Connection, path: Path) -> None:
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise StorageError(
            "the metadata store was made by a newer version",
            context={"file": path, "schema": version, "known": len(MIGRATIONS)},
            hint="use that version",
        )
    mark = db.execute("PRAGMA application_id").fetchone()[0]
    tables = db.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
    if (version > 0 or tables > 0) and mark != APPLICATION_ID:
        raise StorageError(
            "the file is a database, but no metadata store",
            context={"file": path},
            hint="choose another file",
        )
    for number in range(version, len(MIGRATIONS)):
        db.execute("BEGIN IMMEDIATE")
        MIGRATIONS[number](db)
        db.execute(f"PRAGMA user_version = {number + 1}")
        db.execute("COMMIT")


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _after_prefix(prefix: bytes) -> bytes | None:
    """The first key after all that begin with ``prefix``; None if there is none."""
    trimmed = prefix.rstrip(b"\xff")
    if not trimmed:
        return None
    return trimmed[:-1] + bytes((trimmed[-1] + 1,))
