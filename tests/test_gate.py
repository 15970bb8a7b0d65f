"""The gate, as a table of what is known, what was asked, and what it says."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import pytest

from edgekit.errors import InputError
from edgekit.gate import (
    RULES,
    Estimate,
    Evidence,
    decide,
    evidence_from_json,
    evidence_to_json,
    measured_estimates,
)
from edgekit.values import Figure, Measurement, Unknown, Verdict

FAIL, PASS = Verdict.FAIL, Verdict.PASS
INCONCLUSIVE, INVALID, PENDING = Verdict.INCONCLUSIVE, Verdict.INVALID, Verdict.PENDING
NOBODY = Unknown("no sensor")


def evidence(estimates: Mapping[str, Estimate], **options: object) -> Evidence:
    return Evidence(
        **{"estimates": estimates, "on_device": True, "age_s": 60.0, **options}  # type: ignore[arg-type]
    )


def one(name: str, value: Figure, interval: tuple[float, float] | None = None) -> Evidence:
    return evidence({name: Estimate(value=value, interval=interval)})


@pytest.mark.parametrize(
    ("limits", "known", "verdict"),
    [
        # An exact figure
        ({"min_top1": 0.9}, one("top1", 0.93), PASS),
        ({"min_top1": 0.9}, one("top1", 0.9), PASS),
        ({"min_top1": 0.9}, one("top1", 0.8999), FAIL),
        ({"max_drop": 0.01}, one("drop", -0.002), PASS),
        ({"max_drop": 0.01}, one("drop", 0.011), FAIL),
        ({"max_size_mb": 1.0}, one("size_mb", 1.0), PASS),
        # An interval: its doubtful end decides
        ({"min_fps": 100}, one("fps", 110, (101, 119)), PASS),
        ({"min_fps": 100}, one("fps", 110, (100, 120)), PASS),
        ({"min_fps": 100}, one("fps", 110, (99, 121)), INCONCLUSIVE),
        ({"min_fps": 100}, one("fps", 90, (79, 101)), INCONCLUSIVE),
        ({"min_fps": 100}, one("fps", 90, (81, 99)), FAIL),
        ({"max_p99_ms": 5}, one("p99_ms", 4, (3.5, 4.9)), PASS),
        ({"max_p99_ms": 5}, one("p99_ms", 4, (3.5, 5.1)), INCONCLUSIVE),
        ({"max_p99_ms": 5}, one("p99_ms", 6, (5.1, 7)), FAIL),
        ({"min_fps": 100}, one("fps", 110, (math.nan, 120)), INCONCLUSIVE),
        ({"min_fps": 100}, one("fps", 110, (101, math.inf)), INCONCLUSIVE),
        ({"min_fps": 100}, one("fps", 110, (120, 101)), INCONCLUSIVE),
        # What nobody knows
        ({"min_fps": 100}, evidence({}), INCONCLUSIVE),
        ({"min_top1": 0.9}, evidence({}), INCONCLUSIVE),
        ({"min_fps": 100}, one("fps", NOBODY), INCONCLUSIVE),
        ({"min_top1": 0.9}, one("top1", NOBODY), INCONCLUSIVE),
        ({"min_top1": 0.9}, one("top1", math.nan), INCONCLUSIVE),
        ({"min_top1": 0.9}, one("top1", math.inf), INCONCLUSIVE),
        ({"max_drop": 0.01}, one("drop", math.nan), INCONCLUSIVE),
        ({"max_drop": 0.01}, one("drop", -math.inf), INCONCLUSIVE),
        ({"min_fps": 100}, evidence({"fps": Estimate(value=200, doubt="few")}), INCONCLUSIVE),
        ({"min_fps": 100}, evidence({"fps": Estimate(value=20, doubt="few")}), INCONCLUSIVE),
        # No device has measured it
        ({"min_fps": 100}, evidence({}, on_device=False), PENDING),
        ({"min_fps": 100}, evidence({"fps": Estimate(value=NOBODY)}, on_device=False), PENDING),
        ({"min_fps": 100}, evidence({"fps": Estimate(value=500)}, on_device=False), PENDING),
        ({"min_fps": 100}, evidence({"fps": Estimate(value=5)}, on_device=False), PENDING),
        ({"min_top1": 0.9}, evidence({"top1": Estimate(value=0.95)}, on_device=False), PENDING),
        ({"min_top1": 0.9}, evidence({"top1": Estimate(value=0.85)}, on_device=False), FAIL),
        ({"max_size_mb": 9}, evidence({}, on_device=False), PENDING),
        (
            {"min_top1": 0.9},
            evidence({"top1": Estimate(value=math.nan)}, on_device=False),
            INCONCLUSIVE,
        ),
        # Age
        ({"min_fps": 1}, evidence({"fps": Estimate(value=9)}, age_s=86400.0), PASS),
        ({"min_fps": 1}, evidence({"fps": Estimate(value=9)}, age_s=86401.0), INCONCLUSIVE),
        ({"min_fps": 1}, evidence({"fps": Estimate(value=0.5)}, age_s=86401.0), INCONCLUSIVE),
        ({"min_fps": 1}, evidence({"fps": Estimate(value=9)}, age_s=-1.0), INCONCLUSIVE),
        ({"min_fps": 1}, evidence({"fps": Estimate(value=9)}, age_s=math.nan), INCONCLUSIVE),
        ({"min_fps": 1}, evidence({"fps": Estimate(value=9)}, age_s=NOBODY), INCONCLUSIVE),
        ({"min_top1": 0.9}, evidence({"top1": Estimate(value=0.95)}, age_s=1e9), PASS),
        # Broken conditions: neither pass nor fail
        ({"min_fps": 1}, evidence({"fps": Estimate(value=9)}, invalid=("throttled",)), INVALID),
        ({"min_fps": 1}, evidence({"fps": Estimate(value=0.5)}, invalid=("throttled",)), INVALID),
        ({"min_top1": 0.9}, evidence({"top1": Estimate(value=1)}, invalid=("throttled",)), PASS),
        # No limit at all is no green light
        ({}, one("fps", 110, (101, 119)), PENDING),
        ({}, evidence({}), PENDING),
    ],
)
def test_the_table(limits: dict[str, float], known: Evidence, verdict: Verdict) -> None:
    decided = decide(known, limits)
    assert decided.verdict is verdict
    assert len(decided.checks) == len(limits)
    for check in decided.checks:
        assert check.because
        assert isinstance(check.value, Unknown) or math.isfinite(check.value)


def test_every_limit_has_a_rule_that_passes_fails_and_doubts() -> None:
    for name, rule in RULES.items():
        good, bad = (11.0, 9.0) if rule.at_least else (9.0, 11.0)
        for value, verdict in ((good, PASS), (bad, FAIL), (math.nan, INCONCLUSIVE)):
            assert decide(one(rule.figure, value), {name: 10}).verdict is verdict, name
        assert decide(evidence({}), {name: 10}).verdict is INCONCLUSIVE, name


def test_the_worst_check_decides() -> None:
    known = {
        "top1": Estimate(value=0.95), "drop": Estimate(value=0.5), "fps": Estimate(value=9),
    }  # fmt: skip
    passing = {"min_top1": 0.9}
    failing = {**passing, "max_drop": 0.1}
    assert decide(evidence(known), passing).verdict is PASS
    assert decide(evidence(known), failing).verdict is FAIL
    # fail before invalid before inconclusive before pending
    assert decide(evidence(known, invalid=("hot",)), {**failing, "min_fps": 1}).verdict is FAIL
    assert (
        decide(evidence(known, invalid=("hot",)), {"min_fps": 1, "min_sqnr_db": 9}).verdict
        is INVALID
    )
    known["sqnr_db"] = Estimate(value=math.nan)
    assert (
        decide(evidence(known, on_device=False), {"min_fps": 1, "min_sqnr_db": 9}).verdict
        is INCONCLUSIVE
    )
    assert decide(evidence(known, on_device=False), {"min_fps": 1, **passing}).verdict is PENDING


def test_a_decision_names_what_decided_it() -> None:
    known = {"top1": Estimate(value=0.85), "fps": Estimate(value=9)}
    assert decide(evidence(known), {"min_fps": 1, "min_top1": 0.9}).because == "fail: min_top1"
    assert decide(evidence(known), {"min_fps": 1}).because == "the limit is kept"
    assert decide(evidence(known), {}).because == "nothing was gated: no limit is set"
    pending = decide(evidence(known, on_device=False), {"min_top1": 0.8})
    assert pending.because == "no device has measured it yet"


def test_a_failed_check_says_by_which_side() -> None:
    (check,) = decide(one("fps", 90, (81, 99)), {"min_fps": 100}).checks
    assert check.because == "the whole interval is below the limit"
    assert (check.value, check.interval, check.limit) == (90, (81, 99), 100)


def test_an_unknown_limit_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError) as refusal:
        decide(evidence({}), {"min_fsp": 3})
    assert refusal.value.where == "gate.min_fsp"
    assert refusal.value.hint == 'Did you mean "min_fps"?'


@pytest.mark.parametrize("limit", [math.nan, math.inf, -math.inf])
def test_a_limit_that_is_no_number_is_refused(limit: float) -> None:
    with pytest.raises(InputError):
        decide(one("fps", 5), {"min_fps": limit})


def run_of(seconds: float, calls: int, rounds: int = 4, **options: object) -> Measurement:
    return Measurement(
        **{  # type: ignore[arg-type]
            "arm": "a", "quantity": "latency", "unit": "s", "samples": (seconds,) * calls,
            "rounds": tuple(range(0, calls, calls // rounds)), "batch": 1, "taken_at": 0.0,
            "figures": {"peak_memory_bytes": 50e6, "file_bytes": 280e3}, **options,
        }
    )  # fmt: skip


def test_a_run_becomes_figures_in_the_limits_units() -> None:
    found = measured_estimates(run_of(0.002, 800), run_of(0.004, 800))
    assert found["fps"].value == pytest.approx(500)
    assert found["p99_ms"].value == pytest.approx(2)
    assert found["memory_mb"].value == pytest.approx(50)
    assert found["size_mb"].value == pytest.approx(0.28)
    assert found["speedup"].value == pytest.approx(2)
    limits = {
        "min_fps": 400, "max_p99_ms": 2.5, "max_memory_mb": 60, "max_size_mb": 0.3,
        "min_speedup": 1.6,
    }  # fmt: skip
    assert decide(evidence(found), limits).verdict is PASS


def test_a_p99_of_few_calls_decides_nothing() -> None:
    found = measured_estimates(run_of(0.002, 400))
    assert found["p99_ms"].doubt == "p99 rests on 400 calls, 662 are needed"
    for limit in (1, 100):
        assert decide(evidence(found), {"max_p99_ms": limit}).verdict is INCONCLUSIVE


def test_one_round_decides_nothing_about_speed() -> None:
    found = measured_estimates(run_of(0.002, 800, rounds=1))
    assert decide(evidence(found), {"min_fps": 1}).verdict is INCONCLUSIVE


def test_memory_that_nobody_measured_stays_unknown() -> None:
    found = measured_estimates(run_of(0.002, 800, figures={"peak_memory_bytes": NOBODY}))
    assert found["memory_mb"].value == NOBODY
    assert isinstance(found["size_mb"].value, Unknown)
    assert decide(evidence(found), {"max_memory_mb": 100}).verdict is INCONCLUSIVE


def test_evidence_decides_the_same_after_a_file() -> None:
    known = evidence(
        {
            "fps": Estimate(value=110, interval=(99, 121)), "top1": Estimate(value=NOBODY),
            "p99_ms": Estimate(value=3, doubt="few"),
        },
        age_s=NOBODY, invalid=("hot",),
    )  # fmt: skip
    assert evidence_from_json(json.loads(json.dumps(evidence_to_json(known)))) == known


def test_a_decision_is_ready_for_json() -> None:
    stored = json.loads(json.dumps(decide(one("top1", math.nan), {"min_top1": 0.9}).to_json()))
    assert stored["verdict"] == "inconclusive"
    assert stored["gated"] == 1
    assert stored["checks"][0]["value"] == {"unknown": "it is nan, which is no number"}
