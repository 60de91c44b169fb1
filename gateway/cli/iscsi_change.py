# SPDX-License-Identifier: BSD-3-Clause
"""Changing the records of exports: from options to a record in the MDS."""

from __future__ import annotations

import logging
import stat
import sys
from pathlib import Path

from gateway.cli.app import App
from gateway.cli.cluster import Cluster
from gateway.errors import BusyError, ConfigError, InvalidArgumentError
from gateway.iscsi import records, rules
from gateway.iscsi.plan import Account
from gateway.iscsi.records import Access, Change

log = logging.getLogger("gateway.iscsi")

# Somebody else may change a record between our look and our change.
CHANGE_TRIES = 5


def read_secret(path: Path | None, option: str) -> bytes | None:
    """A secret from the first line of a file; '-' is standard input."""
    if path is None:
        return None
    try:
        if str(path) == "-":
            data = sys.stdin.buffer.readline()
        else:
            data = path.read_bytes()
            if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
                log.warning("%s: others may read %s; better: chmod 600", option, path)
    except OSError as error:
        raise ConfigError(
            f"cannot read the secret of {option}: {error.strerror}", context={"file": path}
        ) from error
    return data.split(b"\n", 1)[0].rstrip(b"\r")


def account(user: str | None, path: Path | None, option: str) -> Account | None:
    """A CHAP account from its two options, which go together."""
    if (user is None) != (path is None):
        raise InvalidArgumentError(
            f"{option} and {option}-secret-file go together",
            hint="the secret comes from a file of 12 to 16 characters, never from the command line",
        )
    secret = read_secret(path, option)
    if user is None or secret is None:
        return None
    rules.check_user(user, option)
    return Account(user, rules.check_secret(secret, option).decode())


def access_of(app: App, gateway: str) -> Access:
    """How the gateway's modules reach the store."""
    password = app.root_password_file
    path = str(password.absolute()) if password is not None else None
    # The metadata servers alone have commas between them, which are written otherwise for tgtd.
    texts = {"--mds": app.mds.replace(",", ""), "--owner": app.owner, "the password file": path}
    for name, text in texts.items():
        if text is not None and any(separator in text for separator in records.SEPARATORS):
            raise InvalidArgumentError(
                f"{name} has a ',', ';' or '|'",
                context={name: text},
                hint="tgtd and its module separate their options by them",
            )
    if app.owner == "root" and path is None:
        raise ConfigError(
            "the owner root needs --root-password-file",
            hint="tgtd's module reads it: the environment is not passed on",
        )
    return records.Access(rules.check_gateway(gateway), app.mds, app.owner, path)


def put_change(cluster: Cluster, change: Change) -> tuple[str, int, bool]:
    """Records a change; returns the target's name, the revision, and whether anything changed."""
    for attempt in range(CHANGE_TRIES):
        revision, entries = cluster.exports()
        shown = [entry.record for entry in entries]
        chosen = records.choose(shown, change)
        known = next((entry for entry in entries if entry.record.iqn == chosen.iqn), None)
        full = cluster.export(chosen.iqn) if known is not None else None
        record = full.record if full is not None else chosen
        others = [other for other in shown if other.iqn != record.iqn]
        new = records.changed(record, change, others)
        if full is not None and new == record:
            return record.iqn, revision, False
        try:
            return record.iqn, cluster.put_export(new, full.revision if full else 0), True
        except BusyError:
            if attempt + 1 == CHANGE_TRIES:
                raise
    raise AssertionError("the loop returns or raises")


def remove_export(cluster: Cluster, path: str, gateway: str | None) -> tuple[str | None, int]:
    """Takes an export back; returns its target's name, None if there was none."""
    for attempt in range(CHANGE_TRIES):
        revision, entries = cluster.exports()
        known = records.find((entry.record for entry in entries), path)
        if known is None:
            return None, revision
        try:
            full = cluster.export(known.iqn)
            left = records.without(full.record, path, gateway)
            if left is None:
                cluster.delete_export(known.iqn, full.revision)
            else:
                cluster.put_export(left, full.revision)
            return known.iqn, cluster.exports()[0]
        except BusyError:
            if attempt + 1 == CHANGE_TRIES:
                raise
    raise AssertionError("the loop returns or raises")
