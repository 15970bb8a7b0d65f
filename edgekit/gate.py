"""Whether what is known of an engine keeps the limits that were set for it. Pure: no I/O.

Every figure is decided on the side that doubts more. What nobody knows never passes.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.bench import statistics
from edgekit.errors import InputError
from edgekit.values import (
    Check,
    Figure,
    Measurement,
    Unknown,
    Verdict,
    figure_from_json,
    figure_to_json,
)

_DAY_S = 86400.0
_NOT_MEASURED = Unknown("no device has measured it")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What one limit looks at. `measured`: it takes a run on the device, and grows old."""

    figure: str
    at_least: bool
    measured: bool


# A new check is one row.
RULES: Mapping[str, Rule] = {
    "min_fps": Rule(figure="fps", at_least=True, measured=True),
    "max_p99_ms": Rule(figure="p99_ms", at_least=False, measured=True),
    "max_memory_mb": Rule(figure="memory_mb", at_least=False, measured=True),
    "min_speedup": Rule(figure="speedup", at_least=True, measured=True),
    "max_size_mb": Rule(figure="size_mb", at_least=False, measured=False),
    "min_top1": Rule(figure="top1", at_least=True, measured=False),
    "min_metric": Rule(figure="metric", at_least=True, measured=False),
    "max_drop": Rule(figure="drop", at_least=False, measured=False),
    "min_agreement": Rule(figure="agreement", at_least=True, measured=False),
    "min_sqnr_db": Rule(figure="sqnr_db", at_least=True, measured=False),
    "min_int8_share": Rule(figure="int8_share", at_least=True, measured=False),
    # An engine that a device built answers golden inputs as the model does.
    "max_golden_error": Rule(figure="golden_error", at_least=False, measured=False),
    "min_golden_cosine": Rule(figure="golden_cosine", at_least=True, measured=False),
    "min_golden_top1": Rule(figure="golden_top1", at_least=True, measured=False),
}

WORST_FIRST = (
    Verdict.FAIL, Verdict.INVALID, Verdict.INCONCLUSIVE, Verdict.PENDING, Verdict.PASS,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure as a gate sees it.

    `interval` is where the true value lies; None for one that is exact (a file's size, the
    accuracy on a given set). A `doubt` is a reason why the figure cannot carry a decision.
    """

    value: Figure
    interval: tuple[float, float] | None = None
    doubt: str = ""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """All that a gate looks at: `estimates` by figure (`RULES`), in the limits' units.

    `on_device`: whether the target itself has been measured. `age_s` is of that measurement,
    `invalid` says under which broken conditions it was taken (throttled, wrong power mode).
    """

    estimates: Mapping[str, Estimate]
    on_device: bool
    age_s: Figure = _NOT_MEASURED
    max_age_s: float = _DAY_S
    invalid: tuple[str, ...] = ()


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


def decide(evidence: Evidence, limits: Mapping[str, float]) -> Decision:
    """The verdict on the limits (by the names in `RULES`), a check for each, in their order.

    The order of badness is fail, invalid, inconclusive, pending, pass. A target that no device has
    measured is pending at best, whatever its checks say. Without any limit nothing is decided:
    pending, never pass, so that a forgotten `[gate]` is not a green light.

    Raises InputError for a limit that is unknown, or no finite number.
    """
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


def _check(name: str, limit: float, evidence: Evidence) -> Check:
    rule = _rule(name)
    if not math.isfinite(limit):
        raise InputError("a limit must be a number", where=f"gate.{name}", got=str(limit))
    estimate = evidence.estimates.get(rule.figure, Estimate(value=Unknown("nobody has it")))
    verdict, because = _judge(rule, limit, estimate, evidence)
    return Check(
        name=name,
        limit=limit,
        value=_checked(estimate.value),
        interval=estimate.interval if _is_interval(estimate.interval) else None,
        verdict=verdict,
        because=because,
    )


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
        return Verdict.PENDING, _NOT_MEASURED.reason
    if rule.measured and evidence.invalid:
        return Verdict.INVALID, "; ".join(evidence.invalid)
    value = _checked(value)
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


def _checked(value: Figure) -> Figure:
    """The figure, an Unknown in place of NaN and infinity."""
    if isinstance(value, Unknown) or math.isfinite(value):
        return value
    return Unknown(f"it is {value}, which is no number")


def measured_estimates(
    candidate: Measurement, baseline: Measurement | None = None
) -> dict[str, Estimate]:
    """What a run says: fps, p99_ms, memory_mb (the process's peak) and size_mb.

    With a baseline that took turns with it, its speedup too. A percentile from too few calls, and
    a rate from one round, carry a doubt.
    """
    p99 = statistics.percentile_estimate(candidate.samples, 99)
    count, enough = len(candidate.samples), statistics.enough_samples(99)
    few = f"p99 rests on {count} calls, {enough} are needed" if count < enough else ""
    found = {
        "fps": _from_statistics(statistics.fps(candidate)),
        "p99_ms": _from_statistics(p99, scale=1e3, doubt=few),
        "memory_mb": _megabytes(candidate, "peak_memory_bytes"),
        "size_mb": _megabytes(candidate, "file_bytes"),
    }
    if baseline is not None:
        found["speedup"] = _from_statistics(statistics.speedup(candidate, baseline))
    return found


def _from_statistics(
    estimated: statistics.Estimated, *, scale: float = 1.0, doubt: str = ""
) -> Estimate:
    value, interval = estimated.value * scale, estimated.interval
    if isinstance(interval, Unknown):
        return Estimate(value=value, doubt=doubt or interval.reason)
    return Estimate(value=value, interval=(interval[0] * scale, interval[1] * scale), doubt=doubt)


def _megabytes(measurement: Measurement, name: str) -> Estimate:
    found = measurement.figures.get(name, Unknown("it was not measured"))
    return Estimate(value=found if isinstance(found, Unknown) else found / 1e6)


def evidence_to_json(evidence: Evidence) -> dict[str, object]:
    """JSON-ready, enough to decide again elsewhere."""
    return {
        "on_device": evidence.on_device,
        "age_s": figure_to_json(evidence.age_s),
        "max_age_s": evidence.max_age_s,
        "invalid": list(evidence.invalid),
        "estimates": {
            name: {
                "value": figure_to_json(_checked(estimate.value)),
                "interval": list(estimate.interval) if estimate.interval else None,
                "doubt": estimate.doubt,
            }
            for name, estimate in evidence.estimates.items()
        },
    }


def evidence_from_json(stored: Mapping[str, Any]) -> Evidence:
    """What `evidence_to_json` made."""
    return Evidence(
        on_device=stored["on_device"],
        age_s=figure_from_json(stored["age_s"]),
        max_age_s=stored["max_age_s"],
        invalid=tuple(stored["invalid"]),
        estimates={
            name: Estimate(
                value=figure_from_json(estimate["value"]),
                interval=tuple(estimate["interval"]) if estimate["interval"] else None,
                doubt=estimate["doubt"],
            )
            for name, estimate in stored["estimates"].items()
        },
    )


def check_to_json(check: Check) -> dict[str, object]:
    """One line of a verdict, JSON-ready."""
    return {
        "name": check.name,
        "limit": check.limit,
        "value": figure_to_json(check.value),
        "interval": list(check.interval) if check.interval else None,
        "verdict": check.verdict.value,
        "because": check.because,
    }
