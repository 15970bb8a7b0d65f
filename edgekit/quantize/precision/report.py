"""What a search for mixed precision was asked, tried, and found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from edgekit.models.model import Model
from edgekit.values import Figure, Unknown, figure_from_json, figure_to_json

Ended = Literal["done", "tries", "deadline", "interrupted", "not worth it"]


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions:
    """What a mixed model must satisfy, and how long to look for it.

    `max_drop` is the floor, in the metric's unit; `most_ms` a limit on the expected latency, under
    which the least drop is looked for; at least one of the two. `min_int8_share` is the least
    share of the MACs of Conv, ConvTranspose, Gemm and MatMul in INT8. `evaluation` names what
    `evaluate` does (a digest of its data and metric): a state file of another one is not taken up.
    """

    max_drop: float | None = 0.01
    most_ms: float | None = None
    min_int8_share: float = 0.95
    most_tries: int = 64
    deadline_s: float | None = None
    evaluation: str = ""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One candidate: who is left in floating point, what it lost, what it is expected to take."""

    excluded: tuple[str, ...]
    drop: float
    ms: Figure
    int8_share: float

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "excluded": list(self.excluded), "drop": self.drop, "ms": figure_to_json(self.ms),
            "int8_share": self.int8_share,
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class PrecisionReport:
    """What the search found.

    `best` satisfies every limit where `met`, else it is the one with the least drop of those that
    were seen (None where none was). `worth_it` is False where INT8 saves no time on the target;
    nothing is tried then. `tried` are all candidates in the order in which they were tried.
    """

    best: Tried | None
    met: bool
    worth_it: bool
    ended: Ended
    tried: tuple[Tried, ...]
    options: PrecisionOptions
    precision: str
    source: str
    saved_ms: Figure
    because: str = ""

    @property
    def front(self) -> tuple[Tried, ...]:
        """Those that no other one beats in drop and in time (in the share of MACs, if unknown)."""
        found = [
            one
            for one in self.tried
            if not any(_beats(other, one) for other in self.tried if other is not one)
        ]
        unique = {(one.drop, price_of(one)): one for one in reversed(found)}
        return tuple(sorted(unique.values(), key=lambda one: (price_of(one), one.drop)))

    def __str__(self) -> str:
        if not self.worth_it:
            return f"not worth it here: {self.because}"
        if self.best is None:
            return f"nothing was evaluated: {self.because}"
        left = len(self.best.excluded)
        kept = f"{left} left in {self.precision.upper()}" if left else "all in INT8"
        said = f"drop {self.best.drop:.4g}, {kept}, {self.best.int8_share:.1%} of the MACs in INT8"
        return said if self.met else f"{said}; the limits are not met: {self.because}"

    def to_json(self) -> dict[str, object]:
        """JSON-ready, the candidates too."""
        return {
            "said": str(self), "met": self.met, "worth_it": self.worth_it, "ended": self.ended,
            "because": self.because, "precision": self.precision, "source": self.source,
            "saved_ms": figure_to_json(self.saved_ms),
            "best": None if self.best is None else self.best.to_json(),
            "front": [one.to_json() for one in self.front],
            "tried": [one.to_json() for one in self.tried],
            "limits": {
                "max_drop": self.options.max_drop, "most_ms": self.options.most_ms,
                "min_int8_share": self.options.min_int8_share,
            },
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class SearchEvent:
    """A candidate was tried; `best` is the best so far, `model` what was tried, to keep it."""

    tried: Tried
    best: Tried
    is_best: bool
    met: bool
    model: Model | None
    resumed: bool


def report_from_json(stored: Mapping[str, Any], options: PrecisionOptions) -> PrecisionReport:
    """What `PrecisionReport.to_json` made, with the options that it was made with."""
    return PrecisionReport(
        best=None if stored["best"] is None else _tried(stored["best"]), met=stored["met"],
        worth_it=stored["worth_it"], ended=stored["ended"], because=stored["because"],
        tried=tuple(map(_tried, stored["tried"])), options=options,
        precision=stored["precision"], source=stored["source"],
        saved_ms=figure_from_json(stored["saved_ms"]),
    )  # fmt: skip


def _tried(stored: Mapping[str, Any]) -> Tried:
    return Tried(
        excluded=tuple(stored["excluded"]), drop=stored["drop"],
        ms=figure_from_json(stored["ms"]), int8_share=stored["int8_share"],
    )  # fmt: skip


def _beats(one: Tried, other: Tried) -> bool:
    """Whether one is at least as good in both, and better in one."""
    first, second = (one.drop, price_of(one)), (other.drop, price_of(other))
    return first[0] <= second[0] and first[1] <= second[1] and first != second


def price_of(one: Tried) -> float:
    """The expected milliseconds, or the share of MACs in floating point where nobody knows them."""
    return 1 - one.int8_share if isinstance(one.ms, Unknown) else one.ms
