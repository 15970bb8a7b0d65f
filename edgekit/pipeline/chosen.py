"""Which of the candidates measured side by side is taken, and what the gate says of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgekit import gate, machine
from edgekit.bench import statistics
from edgekit.bench.measurement import age_s
from edgekit.engines.base import Engine
from edgekit.pipeline.candidates import Candidate
from edgekit.pipeline.past import ORIGINAL, Past, Rival
from edgekit.pipeline.publish import (
    accuracy_estimates,
    accuracy_evidence,
    engine_estimates,
    limits_of,
)
from edgekit.recipe import Recipe
from edgekit.targets import Precision
from edgekit.values import Figure, Measurement, Unknown, Verdict
from edgekit.verify import VerifyReport

MOST_RUNS = 3
"""An undecided gate asks for more rounds, up to so many runs."""

_ACCURACY = ("min_top1", "min_map", "min_metric", "max_drop", "min_agreement", "min_sqnr_db")


@dataclass(frozen=True, kw_only=True)
class Grounds:
    """All that is known beside the measurement, by precision; `engines` are by arm."""

    recipe: Recipe
    candidates: Sequence[Candidate]
    reports: Mapping[Precision, VerifyReport]
    shares: Mapping[Precision, Figure]
    engines: Mapping[str, Engine]
    past: Past
    rival: Rival | None


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The candidate that was taken, why, and what the gate says of it."""

    chosen: Candidate
    why: str
    evidence: gate.Evidence
    decision: gate.Decision
    age_s: float


def judge(grounds: Grounds, measured: Sequence[Measurement]) -> Judged:
    """Takes a candidate and asks the gate about it.

    The gate may be asked `MOST_RUNS` times, each time with more rounds. So that it errs no more
    often than if it were asked once, its intervals are as much wider.
    """
    by_arm = {m.arm: m for m in measured}
    recipe, reports = grounds.recipe, grounds.reports
    chosen, why = _choose(grounds.candidates, by_arm, reports, recipe.gate.limits())
    precision = chosen.precision
    limits, taken = limits_of(recipe, precision), by_arm[precision]
    confidence = statistics.look_confidence(MOST_RUNS)
    age = age_s(taken, time.time())
    evidence = accuracy_evidence(reports[precision], recipe, grounds.shares[precision])
    estimates = {
        **evidence.estimates,
        **engine_estimates(grounds.engines[precision]),
        **gate.measured_estimates(taken, by_arm[ORIGINAL], confidence),
    }
    if "max_regression" in limits:
        estimates["regression"] = grounds.past.regression(
            measured, precision, confidence, grounds.rival
        )
    evidence = replace(
        evidence, estimates=estimates, on_device=True, age_s=age, invalid=taken.broken,
        unchecked=taken.unchecked, noise_floor=grounds.past.noise_floor(taken.conditions),
    )  # fmt: skip
    decision = gate.decide(evidence, limits)
    return Judged(chosen=chosen, why=why, evidence=evidence, decision=decision, age_s=age)


def undecided(judged: Judged) -> bool:
    """Whether more rounds could decide: an interval straddles its limit, or was too few's."""
    return not judged.evidence.unchecked and gate.undecided(judged.decision)


def _choose(
    candidates: Sequence[Candidate], by_arm: Mapping[str, Measurement],
    reports: Mapping[Precision, VerifyReport], limits: Mapping[str, float],
) -> tuple[Candidate, str]:  # fmt: skip
    """The fastest candidate that keeps the gate's accuracy, and why; of two alike the smaller."""
    accuracy = {name: limit for name, limit in limits.items() if name in _ACCURACY}

    def good_enough(candidate: Candidate) -> bool:
        if not accuracy:
            return True
        estimates = accuracy_estimates(reports[candidate.precision])
        found = gate.decide(gate.Evidence(estimates=estimates, on_device=True), accuracy)
        return found.verdict is Verdict.PASS

    good = [c for c in candidates if good_enough(c)]
    chosen, *others = good or candidates
    for other in others:
        if _better(by_arm[other.precision], by_arm[chosen.precision]):
            chosen = other
    if len(candidates) == 1:
        return chosen, ""
    compared = [_compared(by_arm, chosen, c) for c in candidates if c is not chosen]
    why = f"{chosen.precision} was chosen: {', '.join(compared)}"
    if good and len(good) < len(candidates):
        why += "; what was left out does not keep the gate's accuracy"
    if not good:
        why += "; none keeps the gate's accuracy"
    if not machine.cpu_flags() & {"avx512_vnni", "avx_vnni", "i8mm", "asimddp"}:
        why += "; this CPU has no 8-bit dot product, so INT8 gains little here"
    return chosen, why


def _better(one: Measurement, other: Measurement) -> bool:
    """Whether one is faster beyond doubt, or as fast (as far as 95% can tell) and smaller."""
    interval = statistics.speedup(one, other).interval
    low, high = (1.0, 1.0) if isinstance(interval, Unknown) else interval
    if low > 1 or high < 1:
        return low > 1
    sizes = [m.figures.get("file_bytes", 0.0) for m in (one, other)]
    return not any(isinstance(size, Unknown) for size in sizes) and sizes[0] < sizes[1]  # type: ignore[operator]


def _compared(by_arm: Mapping[str, Measurement], chosen: Candidate, other: Candidate) -> str:
    found = statistics.speedup(by_arm[chosen.precision], by_arm[other.precision])
    if isinstance(found.interval, Unknown):
        return f"{found.value:.2f} times the FPS of {other.precision}"
    low, high = found.interval
    said = f"{found.value:.2f} times the FPS of {other.precision} ({low:.2f} to {high:.2f})"
    return f"{said}, no clear difference, and smaller" if low <= 1 <= high else said
