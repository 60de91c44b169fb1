# SPDX-License-Identifier: BSD-3-Clause
"""The SQLite store: transactions, durability's settings, locks, and files that are no store."""

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading

import pytest

from gateway.errors import BusyError, StorageError
from gateway.mds.store import Space
from gateway.mds.store_sqlite import MIGRATIONS, SqliteStore

SPACE = Space.COUNTERS


def put(key, value):
    return lambda txn: txn.put(SPACE, key, value)


def everything(txn):
    return dict(txn.scan(SPACE))


async def test_what_a_transaction_wrote_is_there_after_opening_again(tmp_path):
    path = tmp_path / "db"
    store = await SqliteStore.open(path)
    await store.run(put(b"a", b"1"))
    await store.close()
    await store.close()
    with pytest.raises(StorageError, match="closed"):
        await store.run(everything)
    store = await SqliteStore.open(path)
    assert await store.run(everything) == {b"a": b"1"}
    await store.close()
    assert oct(path.stat().st_mode & 0o777) == "0o600"


async def test_transaction_that_raises_changes_nothing_even_among_others(tmp_path):
    store = await SqliteStore.open(tmp_path / "db")

    def failing(txn):
        txn.put(SPACE, b"bad", b"x")
        txn.delete(SPACE, b"good0")
        raise ValueError("no")

    jobs = [store.run(put(f"good{n}".encode(), b"1")) for n in range(50)]
    jobs[10:10] = [store.run(failing) for _ in range(5)]
    results = await asyncio.gather(*jobs, return_exceptions=True)
    assert [type(r) for r in results if r is not None] == [ValueError] * 5
    assert await store.run(everything) == {f"good{n}".encode(): b"1" for n in range(50)}
    await store.close()


async def test_concurrent_increments_lose_none(tmp_path):
    store = await SqliteStore.open(tmp_path / "db")

    def increment(txn):
        value = int(txn.get(SPACE, b"n") or b"0") + 1
        txn.put(SPACE, b"n", str(value).encode())
        return value

    assert sorted(await asyncio.gather(*(store.run(increment) for _ in range(500)))) == list(
        range(1, 501)
    )
    await store.close()


async def test_scan_gives_the_keys_of_a_prefix_in_order(tmp_path):
    store = await SqliteStore.open(tmp_path / "db")
    keys = [b"a", b"a\x00", b"a\xff", b"a\xff\xff", b"b", b"\xff", b"\xff\xff", b""]

    def fill(txn):
        for key in keys:
            txn.put(SPACE, key, b"")
        txn.put(Space.FILES, b"a", b"another space")

    await store.run(fill)

    def scan(prefix=b"", **kwargs):
        return store.run(lambda txn: [k for k, _ in txn.scan(SPACE, prefix, **kwargs)])

    assert await scan() == sorted(keys)
    assert await scan(b"a") == [b"a", b"a\x00", b"a\xff", b"a\xff\xff"]
    assert await scan(b"a\xff") == [b"a\xff", b"a\xff\xff"]
    assert await scan(b"\xff") == [b"\xff", b"\xff\xff"]
    assert await scan(b"a", after=b"a\x00", limit=1) == [b"a\xff"]
    assert await scan(after=b"b") == [b"\xff", b"\xff\xff"]
    assert await scan(b"x") == []
    await store.close()


async def test_every_commit_is_synced(tmp_path):
    store = await SqliteStore.open(tmp_path / "db")

    def settings(txn):
        db = txn._db
        return [db.execute(f"PRAGMA {n}").fetchone()[0] for n in ("journal_mode", "synchronous")]

    assert await store.run(settings) == ["wal", 2]
    await store.close()


async def test_second_server_on_the_same_file_is_told_who_has_it(tmp_path):
    store = await SqliteStore.open(tmp_path / "db")
    with pytest.raises(BusyError, match=f"pid: {os.getpid()}") as caught:
        await SqliteStore.open(tmp_path / "db")
    assert "stop it" in caught.value.hint
    await store.close()
    again = await SqliteStore.open(tmp_path / "db")
    await again.close()


def test_lock_of_a_killed_process_is_free(tmp_path):
    script = (
        "import asyncio, os, pathlib, sys\n"
        "from gateway.mds.store_sqlite import SqliteStore\n"
        "asyncio.run(SqliteStore.open(pathlib.Path(sys.argv[1])))\n"
        "os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-P", "-c", script, str(tmp_path / "db")], check=False)
    assert killed.returncode == -9
    store = asyncio.run(SqliteStore.open(tmp_path / "db"))
    assert store


async def test_file_that_is_no_store_is_refused_and_left_alone(tmp_path):
    text = tmp_path / "text"
    text.write_bytes(b"important words " * 1000)
    with pytest.raises(StorageError, match="not a database"):
        await SqliteStore.open(text)
    assert text.read_bytes() == b"important words " * 1000
    other = tmp_path / "other"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE mine (x)")
    db.close()
    with pytest.raises(StorageError, match="no metadata store"):
        await SqliteStore.open(other)


async def test_store_of_a_newer_version_is_refused(tmp_path):
    store = await SqliteStore.open(tmp_path / "db")
    await store.close()
    db = sqlite3.connect(tmp_path / "db")
    assert db.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(StorageError, match="newer version"):
        await SqliteStore.open(tmp_path / "db")


async def test_migration_runs_once_and_in_order(tmp_path, monkeypatch):
    store = await SqliteStore.open(tmp_path / "db")
    await store.run(put(b"a", b"1"))
    await store.close()
    steps = (
        *MIGRATIONS,
        lambda db: db.execute("UPDATE kv SET value = CAST(value || x'32' AS BLOB)"),
    )
    monkeypatch.setattr("gateway.mds.store_sqlite.MIGRATIONS", steps)
    for _ in range(2):
        store = await SqliteStore.open(tmp_path / "db")
        assert await store.run(everything) == {b"a": b"12"}
        await store.close()


async def test_missing_folder_and_folder_in_place_of_the_file_are_reported(tmp_path):
    with pytest.raises(StorageError, match="cannot use the folder"):
        await SqliteStore.open(tmp_path / "no" / "db")
    (tmp_path / "db").mkdir()
    with pytest.raises(StorageError, match="cannot open"):
        await SqliteStore.open(tmp_path / "db")


async def test_full_disk_refuses_the_write_and_keeps_what_was_there(tmp_path):
    store = await SqliteStore.open(tmp_path / "db")
    await store.run(put(b"a", b"1"))
    await store.run(lambda txn: txn._db.execute("PRAGMA max_page_count = 16").fetchone())
    with pytest.raises(StorageError, match="is full"):
        await store.run(put(b"big", bytes(1 << 20)))
    assert await store.run(everything) == {b"a": b"1"}
    await store.run(put(b"b", b"2"))
    await store.close()
    store = await SqliteStore.open(tmp_path / "db")
    assert await store.run(everything) == {b"a": b"1", b"b": b"2"}
    await store.close()


async def test_after_an_io_error_nothing_is_acknowledged_any_more(tmp_path):
    store = await SqliteStore.open(tmp_path / "db")

    def broken(txn):
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorname = "SQLITE_IOERR_FSYNC"
        raise error

    with pytest.raises(StorageError, match="failed"):
        await store.run(broken)
    with pytest.raises(StorageError, match="restart"):
        try:
            await store.run(put(b"a", b"1"))
        except StorageError as error:
            raise StorageError(f"{error} {error.hint}") from error
    await store.close()


async def test_caller_that_gives_up_does_not_stop_the_store(tmp_path):
    store = await SqliteStore.open(tmp_path / "db")
    gate = threading.Event()
    held = asyncio.create_task(store.run(lambda txn: gate.wait(5)))
    given_up = asyncio.create_task(store.run(put(b"a", b"1")))
    await asyncio.sleep(0.05)
    given_up.cancel()
    gate.set()
    await held
    await store.run(put(b"b", b"2"))
    await store.close()
