"""Every measurement that was taken, with its conditions and its verdict, in one SQLite file.

Only ever added to: a row is written when a run ends, and gets its verdict when the gate has spoken.
The order is that in which rows were added, whatever the clock said. Several processes may write.
A file that is damaged, or that a newer edgekit made, is an error and stays as it is.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.bench.comparison import barriers
from edgekit.errors import InputError
from edgekit.history.database import history_file, opened, translated, writing
from edgekit.history.entries import LISTED, Entry, Revision, content_of, entry_of, row_of, run_name
from edgekit.values import Measurement, Unknown, Verdict

__all__ = [
    "LAST_PASSED", "Baseline", "Entry", "History", "Revision", "history_file", "open_history",
    "run_name", "to_document",
]  # fmt: skip

LAST_PASSED = "last-passed"

_LEAST_PREFIX = 7  # of a commit's hash, as git abbreviates it


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A measurement of earlier to hold a new one against, and the original of its run, if any."""

    entry: Entry
    measurement: Measurement
    original: Measurement | None


@contextlib.contextmanager
def open_history(path: Path, *, make: bool = True) -> Iterator[History]:
    """Lends the history in that file; a new one is made, unless `make` is false.

    Raises InputError for a file that is damaged, of a newer edgekit, of another program or not to
    be written, and ResourceError for a full disk or a lock that does not fall in half a minute.
    """
    with opened(path, make=make) as connection:
        yield History(connection, path)


class History:
    """An open history. Made by `open_history`."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection, self._path = connection, path

    def record(
        self, measurements: Sequence[Measurement], *, model: str, target: str, revision: Revision,
        places: Mapping[str, str] | None = None,
    ) -> str:  # fmt: skip
        """Adds the arms of one run, all or none, and returns the run's name.

        A run that is there already is written anew with the rounds that it has got since. `places`
        says where the arms' engines lie.
        """
        run = run_name(measurements)
        with translated(self._path), writing(self._connection):
            for measurement in measurements:
                place = (places or {}).get(measurement.arm, "")
                row = row_of(measurement, run, model, target, revision, place)
                there = self._connection.execute(
                    "SELECT id FROM measurement WHERE run = ? AND arm = ?", (run, measurement.arm)
                ).fetchone()
                if there is None:
                    marks = ", ".join("?" * len(row))
                    self._connection.execute(
                        f"INSERT INTO measurement ({', '.join(row)}) VALUES ({marks})",
                        tuple(row.values()),
                    )
                else:
                    self._connection.execute(
                        "UPDATE measurement SET fps = :fps, p99_ms = :p99_ms, digest = :digest, "
                        "content = :content WHERE id = :id", {**row, "id": there[0]},
                    )  # fmt: skip
        return run

    def judge(self, run: str, arm: str, verdict: Verdict, because: str) -> None:
        """Writes down what the gate said of one arm of a run; the last word stands."""
        with translated(self._path), writing(self._connection):
            self._connection.execute(
                "UPDATE measurement SET verdict = ?, because = ? WHERE run = ? AND arm = ?",
                (verdict.value, because, run, arm),
            )

    def accept(self, number: int, *, model: str) -> None:
        """Takes a measurement for a baseline by hand, whatever its verdict.

        Raises InputError where the model has no such measurement.
        """
        with translated(self._path), writing(self._connection):
            changed = self._connection.execute(
                "UPDATE measurement SET accepted = 1 WHERE id = ? AND model = ?", (number, model)
            ).rowcount
        if not changed:
            raise self._none(number, f" of {model}")

    def entries(
        self, model: str, target: str = "", *, arm: str = "", most: int | None = None
    ) -> tuple[Entry, ...]:
        """The measurements of a model, in the order in which they came; the last `most`."""
        asked = {"model": model, "target": target, "arm": arm}
        given = {name: value for name, value in asked.items() if value}
        where = " AND ".join(f"{name} = ?" for name in given)
        with translated(self._path):
            found = self._connection.execute(
                f"SELECT {LISTED} FROM measurement WHERE {where} ORDER BY id DESC LIMIT ?",
                (*given.values(), -1 if most is None else most),
            ).fetchall()
        return tuple(map(entry_of, reversed(found)))

    def models(self) -> tuple[str, ...]:
        """The names of the models that were measured."""
        with translated(self._path):
            found = self._connection.execute("SELECT DISTINCT model FROM measurement").fetchall()
        return tuple(sorted(name for (name,) in found))

    def measurement(self, number: int) -> Measurement:
        """All samples of one entry. Raises InputError where they are not what was written."""
        with translated(self._path):
            row = self._connection.execute(
                "SELECT digest, content FROM measurement WHERE id = ?", (number,)
            ).fetchone()
        if row is None:
            raise self._none(number)
        try:
            return content_of(*row)
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"measurement {number} of the history is damaged", where=str(self._path),
                got=str(error), hint="It was left as it is; choose another baseline.",
            ) from error  # fmt: skip

    def picked(
        self, pick: str, *, model: str, target: str, not_run: str = ""
    ) -> tuple[Entry, ...] | Unknown:
        """The entries that `pick` may mean and that passed or were accepted, the newest last."""
        judged = [
            entry for entry in self.entries(model, target)
            if (entry.verdict is not None or entry.accepted) and entry.run != not_run
        ]  # fmt: skip
        named = [entry for entry in judged if _is_picked(entry, pick)]
        good = [entry for entry in named if entry.accepted or entry.verdict is Verdict.PASS]
        return tuple(good) if good else Unknown(_nothing(pick, model, target, named))

    def baseline(
        self, pick: str, new: Measurement, *, model: str, target: str, not_run: str = "",
        original: str = "original",
    ) -> Baseline | Unknown:  # fmt: skip
        """The measurement to hold a new one against, or why there is none.

        `pick` is "last-passed", a tag or the beginning of a commit's hash; of several the newest
        that may be compared with `new`. One that passed the gate, or was accepted, is wanted even
        for a commit. `not_run` is the run that `new` is of: nothing is its own baseline.
        """
        good = self.picked(pick, model=model, target=target, not_run=not_run)
        if isinstance(good, Unknown):
            return good
        why = ""
        for entry in reversed(good):
            measurement = self.measurement(entry.id)
            found = barriers(measurement, new)
            if not found:
                beside = [e for e in self._run(entry.run) if e.arm == original and e != entry]
                return Baseline(
                    entry=entry, measurement=measurement,
                    original=self.measurement(beside[0].id) if beside else None,
                )  # fmt: skip
            why = why or f"the newest, {entry.id}, differs in {found[0]}"
        return Unknown(f"no measurement in the history is comparable: {why}")

    def _run(self, run: str) -> list[Entry]:
        with translated(self._path):
            found = self._connection.execute(
                f"SELECT {LISTED} FROM measurement WHERE run = ?", (run,)
            ).fetchall()
        return list(map(entry_of, found))

    def _none(self, number: int, of: str = "") -> InputError:
        return InputError(
            f"there is no such measurement{of} in the history", where=str(self._path),
            got=str(number), hint="`edgekit history MODEL` lists them.",
        )  # fmt: skip


def _nothing(pick: str, model: str, target: str, named: Sequence[Entry]) -> str:
    of = f"{model} on {target}"
    if pick == LAST_PASSED:
        said = f"no measurement of {of} has passed yet"
    elif named:
        said = f'none of the {len(named)} measurements of {of} at "{pick}" has passed'
    else:
        said = f'the history has no measurement of {of} at "{pick}"'
    return f"{said}; `edgekit history {model} --accept NUMBER` takes one for a baseline"


def _is_picked(entry: Entry, pick: str) -> bool:
    if pick == LAST_PASSED or pick in entry.revision.tags:
        return True
    return len(pick) >= _LEAST_PREFIX and entry.revision.commit.startswith(pick.lower())


def to_document(entries: Sequence[Entry], path: Path) -> Mapping[str, object]:
    """JSON-ready."""
    return {"history": str(path), "entries": [entry.to_json() for entry in entries]}
