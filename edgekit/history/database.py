"""The file of the history: made, opened, checked, and its errors said in plain words."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

from edgekit import files
from edgekit.errors import InputError, ResourceError

FORMAT = 1

_APPLICATION = 0x65646765  # "edge": says whose file this is
_WAIT_S = 30.0
_TABLES = """
CREATE TABLE measurement (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    run TEXT NOT NULL,
    model TEXT NOT NULL,
    target TEXT NOT NULL,
    arm TEXT NOT NULL,
    engine TEXT NOT NULL,
    place TEXT NOT NULL,
    quantity TEXT NOT NULL,
    batch INTEGER NOT NULL,
    taken_at REAL NOT NULL,
    commit_id TEXT NOT NULL,
    changed INTEGER NOT NULL,
    tags TEXT NOT NULL,
    fps TEXT NOT NULL,
    p99_ms TEXT NOT NULL,
    verdict TEXT NOT NULL DEFAULT '',
    because TEXT NOT NULL DEFAULT '',
    accepted INTEGER NOT NULL DEFAULT 0,
    digest TEXT NOT NULL,
    content BLOB NOT NULL,
    UNIQUE (run, arm)
);
CREATE INDEX of_model ON measurement (model, target);
"""


def history_file(named: str = "") -> Path:
    """Where the history lies: as named, else in the user's data folder (XDG_DATA_HOME)."""
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_DATA_HOME", "")
    # The specification: a relative path there is to be ignored.
    folder = Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "share"
    return folder / "edgekit" / "history.sqlite"


@contextlib.contextmanager
def opened(path: Path, *, make: bool = True) -> Iterator[sqlite3.Connection]:
    """Lends the history in that file; a new one is made, unless `make` is false.

    Raises InputError for a file that is damaged, of a newer edgekit, of another program or not to
    be written, and ResourceError for a full disk or a lock that does not fall in half a minute.
    """
    if not make and not path.is_file():
        raise InputError(
            "there is no history yet", where=str(path),
            hint="`edgekit build` on a target that is this machine begins one.",
        )  # fmt: skip
    with files.translated_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with translated(path):
        connection = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
    try:
        with translated(path):
            _prepare(connection, path)
        yield connection
    finally:
        connection.close()


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    connection.execute("PRAGMA synchronous = FULL")
    if _is_current(connection, path):
        return
    with writing(connection):
        if not _is_current(connection, path):  # another process may have been quicker
            for statement in filter(str.strip, _TABLES.split(";")):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {_APPLICATION}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")


def _is_current(connection: sqlite3.Connection, path: Path) -> bool:
    """Whether the tables are there; False for a new file. Raises InputError for a foreign one."""
    # In this order: another process may be making the tables, and marks the file with them.
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (owner,) = connection.execute("PRAGMA application_id").fetchone()
    if not tables and not version:
        return False
    if owner != _APPLICATION:
        raise InputError(
            "this file is no history of edgekit's", where=str(path),
            hint="Name another file: [bench] history, or --history.",
        )  # fmt: skip
    if version != FORMAT:
        raise InputError(
            "a newer edgekit made this history" if version > FORMAT else "this history is too old",
            where=str(path), got=f"format {version}", wanted=f"format {FORMAT}",
            hint="It was left as it is. Use that edgekit, or name another file with --history.",
        )  # fmt: skip
    return True


@contextlib.contextmanager
def writing(connection: sqlite3.Connection) -> Iterator[None]:
    """All of the block or nothing: what fails or is interrupted in it is taken back."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextlib.contextmanager
def translated(path: Path) -> Iterator[None]:
    """Turns what SQLite says of the file into an EdgekitError about it."""
    try:
        yield
    except sqlite3.Error as error:
        said = str(error)
        if "full" in said or "disk I/O" in said:
            raise ResourceError(
                "the disk is full, or does not answer", where=str(path), got=said,
                hint="Free some space and run the same command again: what was measured is kept "
                "beside the build, and the history as it was.",
            ) from error  # fmt: skip
        if "locked" in said:
            raise ResourceError(
                f"another process has held the history for {_WAIT_S:.0f} s", where=str(path),
                hint="Wait for it, or end it.",
            ) from error  # fmt: skip
        if "readonly" in said or "unable to open" in said:
            raise InputError(
                "the history cannot be written", where=str(path), got=said,
                hint='Name another file: [bench] history = "history.sqlite".',
            ) from error  # fmt: skip
        raise InputError(
            "the history is damaged", where=str(path), got=said,
            hint="It was left as it is. Move it away, and a new one is begun; "
            f"`sqlite3 {path.name} .recover` may save what is in it.",
        ) from error  # fmt: skip
