"""Which step of a build lost what: every graph and engine against the last one and the first.

All are asked for the same samples, so that what two neighbours differ by is the doing of the steps
between them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from edgekit.values import Figure, Unknown, figure_from_json, figure_to_json

ORIGINAL = "original"
ENGINE = "engine"
GOLDEN = "engine on the device"


@dataclass(frozen=True, kw_only=True)
class PartApart:
    """How far a part of an output is from the other's: signal over noise, in decibels."""

    output: str
    part: str
    sqnr_db: Figure


@dataclass(frozen=True, kw_only=True)
class Apart:
    """How far one's outputs are from another's on the same samples.

    `agreement` is the share of samples with the same top-1, `relative_error` the largest
    max|a - b| / max|b| of any output, b being the other's; `parts` may be empty where only the
    outputs as a whole were compared.
    """

    agreement: Figure
    relative_error: Figure
    parts: tuple[PartApart, ...] = ()

    @property
    def worst(self) -> PartApart | None:
        """The part with the least signal over noise; None where no part differs."""
        known = [one for one in self.parts if not isinstance(one.sqnr_db, Unknown)]
        return min(known, key=lambda one: _number(one.sqnr_db), default=None)

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "agreement": figure_to_json(self.agreement),
            "relative_error": figure_to_json(self.relative_error),
            "parts": [
                {"output": p.output, "part": p.part, "sqnr_db": figure_to_json(p.sqnr_db)}
                for p in self.parts
            ],
        }


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What the build had after `step`, on `samples` samples, and how it was asked: `through`.

    `last` and `first` are None for the original, `first` also where only the last one's answers
    are known.
    """

    step: str
    through: str
    samples: int
    metric: Figure
    last: Apart | None
    first: Apart | None

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "step": self.step,
            "through": self.through,
            "samples": self.samples,
            "metric": figure_to_json(self.metric),
            "last": None if self.last is None else self.last.to_json(),
            "first": None if self.first is None else self.first.to_json(),
        }


def blamed(stages: Sequence[Stage], metric: str) -> str:
    """The step after which the metric fell most, and by how much, in a sentence.

    Where it never falls, the step whose outputs are farthest from those before it.
    """
    pairs = [
        (after.step, float(before.metric), float(after.metric))
        for before, after in pairwise(stages)
        if not isinstance(before.metric, Unknown) and not isinstance(after.metric, Unknown)
    ]
    step, before, after = max(pairs, key=lambda pair: pair[1] - pair[2], default=("", 0.0, 0.0))
    if before > after:
        return f"{metric} falls most by {step}: {before:.4f} -> {after:.4f}"
    apart = [
        (stage.step, stage.last.worst)
        for stage in stages
        if stage.last is not None and stage.last.worst is not None
    ]
    named = [(step, part) for step, part in apart if part is not None]
    if not named:
        return f"no step lowers {metric} or changes the outputs" if pairs else ""
    step, part = min(named, key=lambda one: _number(one[1].sqnr_db))
    return (
        f"no step lowers {metric}; the outputs change most by {step}: "
        f"{_number(part.sqnr_db):.1f} dB"
    )


def stages_to_json(stages: Sequence[Stage], metric: str) -> dict[str, object]:
    """The stages and the sentence of `blamed`, JSON-ready."""
    return {
        "metric": metric,
        "said": blamed(stages, metric),
        "stages": [stage.to_json() for stage in stages],
    }


def stages_from_json(stored: Mapping[str, Any]) -> tuple[Stage, ...]:
    """The stages that `stages_to_json` wrote."""
    return tuple(
        Stage(
            step=str(one["step"]),
            through=str(one["through"]),
            samples=int(one["samples"]),
            metric=figure_from_json(one["metric"]),
            last=_apart_from_json(one["last"]),
            first=_apart_from_json(one["first"]),
        )
        for one in stored["stages"]
    )


def _apart_from_json(stored: Mapping[str, Any] | None) -> Apart | None:
    if stored is None:
        return None
    return Apart(
        agreement=figure_from_json(stored["agreement"]),
        relative_error=figure_from_json(stored["relative_error"]),
        parts=tuple(
            PartApart(
                output=str(one["output"]),
                part=str(one["part"]),
                sqnr_db=figure_from_json(one["sqnr_db"]),
            )
            for one in stored["parts"]
        ),
    )


def _number(value: Figure) -> float:
    assert not isinstance(value, Unknown)
    return float(value)
