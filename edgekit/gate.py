"""Whether what is known of an engine keeps the limits that were set for it. Pure: no I/O.

Every figure is decided on the side that doubts more. What nobody knows never passes.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.errors import InputError
from edgekit.evidence import (
    NOT_MEASURED,
    Estimate,
    Evidence,
    evidence_from_json,
    evidence_to_json,
    finite,
    measured_estimates,
)
from edgekit.values import Check, Figure, Unknown, Verdict, figure_to_json

__all__ = [
    "RULES", "WORST_FIRST", "Decision", "Estimate", "Evidence", "Rule", "check_limits",
    "check_to_json", "decide", "evidence_from_json", "evidence_to_json", "measured_estimates",
    "undecided",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What one limit looks at.

    `measured`: it takes a run on the device, and grows old. `relative`: it holds against another
    run, so it cannot be finer than the noise of the machine.
    """

    figure: str
    at_least: bool
    measured: bool
    relative: bool = False


# A new check is one row.
RULES: Mapping[str, Rule] = {
    "min_fps": Rule(figure="fps", at_least=True, measured=True),
    "max_p99_ms": Rule(figure="p99_ms", at_least=False, measured=True),
    "max_memory_mb": Rule(figure="memory_mb", at_least=False, measured=True),
    "max_joules": Rule(figure="joules", at_least=False, measured=True),
    "min_speedup": Rule(figure="speedup", at_least=True, measured=True),
    "max_regression": Rule(figure="regression", at_least=False, measured=True, relative=True),
    "max_size_mb": Rule(figure="size_mb", at_least=False, measured=False),
    "min_top1": Rule(figure="top1", at_least=True, measured=False),
    "min_map": Rule(figure="map", at_least=True, measured=False),
    "min_metric": Rule(figure="metric", at_least=True, measured=False),
    "max_drop": Rule(figure="drop", at_least=False, measured=False),
    "min_agreement": Rule(figure="agreement", at_least=True, measured=False),
    "min_sqnr_db": Rule(figure="sqnr_db", at_least=True, measured=False),
    "min_int8_share": Rule(figure="int8_share", at_least=True, measured=False),
    "max_dla_fallbacks": Rule(figure="dla_fallbacks", at_least=False, measured=False),
    # An engine that a device built answers golden inputs as the model does.
    "max_golden_error": Rule(figure="golden_error", at_least=False, measured=False),
    "min_golden_cosine": Rule(figure="golden_cosine", at_least=True, measured=False),
    "min_golden_top1": Rule(figure="golden_top1", at_least=True, measured=False),
}

WORST_FIRST = (
    Verdict.FAIL, Verdict.INVALID, Verdict.INCONCLUSIVE, Verdict.PENDING, Verdict.PASS,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The worst of the checks, and why in a sentence."""

    verdict: Verdict
    checks: tuple[Check, ...]
    because: str

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "verdict": self.verdict.value,
            "because": self.because,
            "gated": len(self.checks),
            "checks": [check_to_json(check) for check in self.checks],
        }


def check_limits(limits: Mapping[str, float], noise_floor: Figure) -> None:
    """Raises InputError for a limit that is unknown or no finite number.

    And for a relative one under the noise floor: on that machine an engine would fail against
    itself. The error names the smallest limit that the machine can hold.
    """
    for name, limit in limits.items():
        rule = _rule(name)
        if not math.isfinite(limit):
            raise InputError("a limit must be a number", where=f"gate.{name}", got=str(limit))
        if rule.relative and not isinstance(noise_floor, Unknown) and limit < noise_floor:
            smallest = math.ceil(round(noise_floor * 1e4, 6)) / 1e4
            raise InputError(
                "this limit is finer than the machine can tell: two runs of one engine differ more",
                where=f"gate.{name}", got=f"{limit:g}",
                wanted=f"at least {smallest:g}, the smallest that this machine can hold",
                hint="Raise the limit, or quiet the machine and measure its noise floor again: "
                "edgekit bench ENGINE --aa.",
            )  # fmt: skip


def decide(evidence: Evidence, limits: Mapping[str, float]) -> Decision:
    """The verdict on the limits (by the names in `RULES`), a check for each, in their order.

    The order of badness is fail, invalid, inconclusive, pending, pass. A target that no device has
    measured is pending at best, whatever its checks say. Without any limit nothing is decided:
    pending, never pass, so that a forgotten `[gate]` is not a green light.

    Raises InputError as `check_limits` does.
    """
    check_limits(limits, evidence.noise_floor)
    checks = tuple(_check(name, limit, evidence) for name, limit in limits.items())
    if not checks:
        said = "nothing was gated: no limit is set"
        return Decision(verdict=Verdict.PENDING, checks=(), because=said)
    found = {check.verdict for check in checks}
    if not evidence.on_device:
        found.add(Verdict.PENDING)
    verdict = next(verdict for verdict in WORST_FIRST if verdict in found)
    return Decision(verdict=verdict, checks=checks, because=_because(verdict, checks))


def _because(verdict: Verdict, checks: tuple[Check, ...]) -> str:
    if verdict is Verdict.PASS:
        return f"all {len(checks)} limits are kept" if len(checks) > 1 else "the limit is kept"
    named = [check.name for check in checks if check.verdict is verdict]
    if not named:
        return "no device has measured it yet"
    return f"{verdict.value}: {', '.join(named)}"


def undecided(decision: Decision) -> bool:
    """Whether more rounds could decide: an interval straddles its limit, or was too few's.

    What nobody knows (no sensor, no baseline) is not known after more rounds either.
    """
    return decision.verdict is Verdict.INCONCLUSIVE and any(
        check.verdict is Verdict.INCONCLUSIVE
        and RULES[check.name].measured
        and not isinstance(check.value, Unknown)
        for check in decision.checks
    )


def _check(name: str, limit: float, evidence: Evidence) -> Check:
    rule = _rule(name)
    estimate = evidence.estimates.get(rule.figure, Estimate(value=Unknown("nobody has it")))
    verdict, because = _judge(rule, limit, estimate, evidence)
    interval = estimate.interval if _is_interval(estimate.interval) else None
    return Check(
        name=name,
        limit=limit,
        value=finite(estimate.value),
        interval=interval,
        verdict=verdict,
        because=because,
        margin=_margin(rule, limit, finite(estimate.value), interval),
        source=estimate.source,
    )


def _margin(
    rule: Rule, limit: float, value: Figure, interval: tuple[float, float] | None
) -> Figure:
    """How far the doubtful end is on the good side of the limit, in its unit; below zero: not."""
    if isinstance(value, Unknown):
        return value
    low, high = interval or (value, value)
    return low - limit if rule.at_least else limit - high


def _rule(name: str) -> Rule:
    if name not in RULES:
        near = difflib.get_close_matches(name, RULES, n=1)
        raise InputError(
            f'there is no limit called "{name}"',
            where=f"gate.{name}", wanted=", ".join(RULES),
            hint=f'Did you mean "{near[0]}"?' if near else "",
        )  # fmt: skip
    return RULES[name]


def _judge(rule: Rule, limit: float, estimate: Estimate, evidence: Evidence) -> tuple[Verdict, str]:
    """The verdict on one figure, and the reason: the first of these that holds."""
    value = estimate.value
    if not evidence.on_device and isinstance(value, Unknown):
        return Verdict.PENDING, value.reason
    if not evidence.on_device and rule.measured:
        # There is a number, but it was foretold, or comes from another machine.
        return Verdict.PENDING, NOT_MEASURED.reason
    if rule.measured and evidence.invalid:
        return Verdict.INVALID, "; ".join(evidence.invalid)
    if rule.measured and evidence.unchecked:
        return Verdict.INCONCLUSIVE, "; ".join(evidence.unchecked)
    value = finite(value)
    if isinstance(value, Unknown):
        return Verdict.INCONCLUSIVE, value.reason
    if rule.measured and (stale := _stale(evidence)):
        return Verdict.INCONCLUSIVE, stale
    if estimate.doubt:
        return Verdict.INCONCLUSIVE, estimate.doubt
    low, high = estimate.interval or (value, value)
    if not _is_interval((low, high)):
        return Verdict.INCONCLUSIVE, f"({low}, {high}) is no interval"
    return _compare(rule, limit, low, high)


def _compare(rule: Rule, limit: float, low: float, high: float) -> tuple[Verdict, str]:
    exact = low == high
    kept, broken = (low >= limit, high < limit) if rule.at_least else (high <= limit, low > limit)
    if kept:
        said = "at least the limit" if rule.at_least else "at most the limit"
        return Verdict.PASS, said if exact else f"the whole interval is {said}"
    if broken:
        said = "below the limit" if rule.at_least else "above the limit"
        return Verdict.FAIL, said if exact else f"the whole interval is {said}"
    return Verdict.INCONCLUSIVE, "the limit lies within the interval"


def _stale(evidence: Evidence) -> str:
    age = evidence.age_s
    if isinstance(age, Unknown) or not math.isfinite(age):
        return "nobody knows how old the measurement is"
    if age < 0:
        return "the measurement is from the future: the clock was changed"
    if age > evidence.max_age_s:
        return f"the measurement is {age / 3600:.1f} h old, over {evidence.max_age_s / 3600:g} h"
    return ""


def _is_interval(interval: tuple[float, float] | None) -> bool:
    return interval is not None and all(map(math.isfinite, interval)) and interval[0] <= interval[1]


def check_to_json(check: Check) -> dict[str, object]:
    """One line of a verdict, JSON-ready."""
    return {
        "name": check.name,
        "limit": check.limit,
        "value": figure_to_json(check.value),
        "interval": list(check.interval) if check.interval else None,
        "margin": figure_to_json(check.margin),
        "verdict": check.verdict.value,
        "because": check.because,
        "source": check.source,
    }
