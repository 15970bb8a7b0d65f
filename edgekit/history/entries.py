"""What the history keeps of one measurement, as values and as a row of its table."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from edgekit import files
from edgekit.bench import statistics
from edgekit.bench.measurement import from_json, to_json
from edgekit.values import Figure, Measurement, Unknown, Verdict, figure_from_json, figure_to_json

LISTED = (
    "id, run, model, target, arm, engine, place, quantity, batch, taken_at, commit_id, changed, "
    "tags, fps, p99_ms, verdict, because, accepted"
)
"""The columns that make an Entry, in its order."""


@dataclass(frozen=True, kw_only=True)
class Revision:
    """Which commit of the user's repository was measured; empty where there is none.

    `changed`: files differed from it. `tags` are those that name the commit.
    """

    commit: str = ""
    changed: bool = False
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One measurement as it is listed. `verdict` is None for an arm that no gate was asked about.

    `accepted`: somebody has taken it for a baseline by hand. `run` is shared by the arms that took
    turns. `place` is where the engine lay, empty where nobody said.
    """

    id: int
    run: str
    model: str
    target: str
    arm: str
    engine: str
    quantity: str
    batch: int
    taken_at: float
    revision: Revision
    fps: Figure
    p99_ms: Figure
    verdict: Verdict | None
    because: str
    accepted: bool
    place: str = ""

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "id": self.id, "run": self.run, "model": self.model, "target": self.target,
            "arm": self.arm, "engine_sha256": self.engine, "quantity": self.quantity,
            "batch": self.batch, "taken_at": self.taken_at, "commit": self.revision.commit,
            "changed": self.revision.changed, "tags": list(self.revision.tags),
            "fps": figure_to_json(self.fps), "p99_ms": figure_to_json(self.p99_ms),
            "verdict": self.verdict.value if self.verdict is not None else None,
            "because": self.because, "accepted": self.accepted,
        }  # fmt: skip


def run_name(measurements: Sequence[Measurement]) -> str:
    """The name of a run: the hash of when its arms began, which engines they ran, and where.

    Rounds that join a run later keep its name.
    """
    told = [
        [m.arm, m.taken_at, m.batch, m.quantity, m.conditions.get("engine_sha256", ""),
         m.conditions.get("host", "")]
        for m in measurements
    ]  # fmt: skip
    return files.digest_bytes(json.dumps(told, sort_keys=True).encode())[:16]


def row_of(
    measurement: Measurement, run: str, model: str, target: str, revision: Revision,
    place: str,
) -> dict[str, object]:  # fmt: skip
    """The columns of a measurement that is added, by name; its samples are compressed JSON."""
    text = json.dumps(to_json(measurement), separators=(",", ":")).encode()
    count = len(measurement.samples)
    fps: Figure = statistics.fps(measurement).value if count else Unknown("no call ended")
    p99: Figure = Unknown(f"{count} calls are too few")
    if count >= statistics.enough_samples(99):
        p99 = 1e3 * statistics.percentile(measurement.samples, 99)
    return {
        "run": run,
        "model": model,
        "target": target,
        "arm": measurement.arm,
        "engine": measurement.conditions.get("engine_sha256", ""),
        "place": place,
        "quantity": measurement.quantity,
        "batch": measurement.batch,
        "taken_at": measurement.taken_at,
        "commit_id": revision.commit,
        "changed": int(revision.changed),
        "tags": json.dumps(list(revision.tags)),
        "fps": json.dumps(figure_to_json(fps)),
        "p99_ms": json.dumps(figure_to_json(p99)),
        "digest": files.digest_bytes(text),
        "content": zlib.compress(text, 6),
    }


def entry_of(row: Sequence[Any]) -> Entry:
    """The entry in a row of the columns `LISTED`."""
    (number, run, model, target, arm, engine, place, quantity, batch, taken_at, commit, changed,
     tags, fps, p99_ms, verdict, because, accepted) = row  # fmt: skip
    return Entry(
        id=number, run=run, model=model, target=target, arm=arm, engine=engine, place=place,
        quantity=quantity, batch=batch, taken_at=taken_at,
        revision=Revision(commit=commit, changed=bool(changed), tags=tuple(json.loads(tags))),
        fps=figure_from_json(json.loads(fps)), p99_ms=figure_from_json(json.loads(p99_ms)),
        verdict=Verdict(verdict) if verdict else None, because=because, accepted=bool(accepted),
    )  # fmt: skip


def content_of(digest: str, content: bytes) -> Measurement:
    """The measurement in a row's blob. Raises ValueError, KeyError or TypeError where damaged."""
    try:
        text = zlib.decompress(content)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if files.digest_bytes(text) != digest:
        raise ValueError("its hash is another one")
    return from_json(json.loads(text))
