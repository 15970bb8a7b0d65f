"""What a gate said, for a report; and a gate that is asked again on stored evidence."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgekit import gate
from edgekit.errors import InputError
from edgekit.gate import Decision, Evidence
from edgekit.pipeline.result import BuildResult, TargetResult
from edgekit.values import Check, Figure, Unknown, Verdict, figure_to_json

EVIDENCE_FILE = "evidence.json"
EVIDENCE_FORMAT = 2
_READ = (1, EVIDENCE_FORMAT)  # 1 did not say what was decided, nor where a figure is from


@dataclass(frozen=True, kw_only=True)
class Ruling:
    """The verdict on one model and target. `age_s` is of the measurement that it rests on.

    `refused` says why there is no engine to decide on; the verdict is then a failure.
    `counts`: whether a pending verdict is one that stops a release (`edgekit gate`, `--strict`).
    """

    model: str
    target: str
    verdict: Verdict
    because: str
    checks: tuple[Check, ...]
    age_s: Figure
    notes: tuple[str, ...] = ()
    refused: str = ""
    counts: bool = True

    @property
    def exit_code(self) -> int:
        """As `edgekit gate` ends."""
        return self.verdict.exit_code

    @property
    def decision(self) -> Decision:
        """The verdict and its checks alone."""
        return Decision(verdict=self.verdict, checks=self.checks, because=self.because)

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "model": self.model, "target": self.target, **self.decision.to_json(),
            "measured_age_s": figure_to_json(self.age_s), "notes": list(self.notes),
        }  # fmt: skip


def evidence_document(
    result: TargetResult, evidence: Evidence, limits: Mapping[str, float], *, model: str,
    taken_at: float,
) -> dict[str, object]:  # fmt: skip
    """What `evidence.json` holds: all that was known, and what was decided on it, and when."""
    return {
        "format": EVIDENCE_FORMAT,
        "model": model,
        "target": result.target,
        "limits": dict(limits),
        "taken_at": taken_at,
        "decided_at": time.time(),
        "verdict": result.verdict.value,
        "evidence": gate.evidence_to_json(evidence),
    }


def gate_file(path: Path, *, replay: bool = False) -> Ruling:
    """Decides on the evidence in a target's folder of a build, or in its file, as old as it is now.

    With `replay` as old as it was when it was decided on: the same evidence gives the same verdict
    on any day and machine, and a note says where it does not. Raises InputError where there is no
    evidence, or where it cannot be read.
    """
    place = path / EVIDENCE_FILE if path.is_dir() else path
    stored = _read(place)
    try:
        evidence = gate.evidence_from_json(stored["evidence"])
        limits = {str(name): float(limit) for name, limit in stored["limits"].items()}
        taken_at = float(stored["taken_at"])
        said = Verdict(stored["verdict"]) if "verdict" in stored else None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _unreadable(place, error) from error
    age: Figure = evidence.age_s
    if evidence.on_device and not replay:
        age = time.time() - taken_at
    decision = gate.decide(replace(evidence, age_s=age), limits)
    return Ruling(
        model=str(stored.get("model", "model")), target=str(stored.get("target", "target")),
        verdict=decision.verdict, because=decision.because, checks=decision.checks, age_s=age,
        notes=_compared(said, decision.verdict, replay=replay),
    )  # fmt: skip


def _compared(then: Verdict | None, now: Verdict, *, replay: bool) -> tuple[str, ...]:
    if then is None:
        return ("what was decided at its time is not stored",) if replay else ()
    if then is not now:
        return (f"decided at its time: {then.value}; decided again: {now.value}",)
    return (f"decided again, as at its time: {now.value}",) if replay else ()


def _read(place: Path) -> Mapping[str, Any]:
    try:
        stored: Mapping[str, Any] = json.loads(place.read_text())
        version = stored["format"]
    except FileNotFoundError as error:
        raise InputError(
            "there is no evidence here", where=str(place),
            hint="Name a target's folder of a build: build/MODEL/TARGET.",
        ) from error  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(place, error) from error
    if version not in _READ:
        raise InputError(
            "this evidence is of another version", where=str(place), got=str(version),
            wanted=str(EVIDENCE_FORMAT), hint="Build again, or use the edgekit that wrote it.",
        )  # fmt: skip
    return stored


def _unreadable(place: Path, error: Exception) -> InputError:
    return InputError(
        "this evidence cannot be read", where=str(place), got=f"{type(error).__name__}: {error}"
    )


def rulings_of(built: BuildResult) -> tuple[Ruling, ...]:
    """The rulings of a build, one for each target; one that was refused is among them."""
    refused = tuple(
        Ruling(
            model=built.model, target=refusal.target, verdict=Verdict.FAIL,
            because=refusal.error.what, checks=(), age_s=Unknown("there is no engine"),
            refused=str(refusal.error), counts=True,
        )
        for refusal in built.refused
    )  # fmt: skip
    return (*(_ruling(target, built) for target in built.targets), *refused)


def _ruling(target: TargetResult, built: BuildResult) -> Ruling:
    return Ruling(
        model=built.model, target=target.target, verdict=target.verdict, because=target.because,
        checks=target.checks, age_s=target.measured_age_s, notes=target.notes, counts=built.strict,
    )  # fmt: skip
