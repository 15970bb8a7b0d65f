"""The gate, as a table of what is known, what was asked, and what it says."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import pytest
from measurements import made

from edgekit.bench.comparison import Ratio
from edgekit.errors import InputError
from edgekit.evidence import paired_regression, regression_estimate, stored_regression
from edgekit.gate import (
    RULES,
    Estimate,
    Evidence,
    check_limits,
    decide,
    evidence_from_json,
    evidence_to_json,
    measured_estimates,
    undecided,
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


@pytest.mark.parametrize(
    ("limits", "known", "margin"),
    [
        ({"min_fps": 100}, one("fps", 110, (101, 119)), 1),
        ({"min_fps": 100}, one("fps", 110, (99, 121)), -1),
        ({"max_p99_ms": 5}, one("p99_ms", 4, (3.5, 4.9)), 0.1),
        ({"max_p99_ms": 5}, one("p99_ms", 6, (5.1, 7)), -2),
        ({"min_top1": 0.9}, one("top1", 0.93), 0.03),
    ],
)
def test_the_margin_is_of_the_doubtful_end(
    limits: dict[str, float], known: Evidence, margin: float
) -> None:
    (check,) = decide(known, limits).checks
    assert check.margin == pytest.approx(margin)
    # It is at least zero exactly where the check passes.
    assert (check.margin >= 0) == (check.verdict is PASS)  # type: ignore[operator]


def test_without_a_value_there_is_no_margin() -> None:
    (check,) = decide(one("fps", NOBODY), {"min_fps": 100}).checks
    assert check.margin == NOBODY


def test_a_relative_limit_under_the_noise_floor_is_an_error_of_the_configuration() -> None:
    known = evidence({"regression": Estimate(value=0.0, interval=(0, 0))}, noise_floor=0.0312)
    with pytest.raises(InputError) as refusal:
        decide(known, {"max_regression": 0.03})
    assert refusal.value.where == "gate.max_regression"
    assert refusal.value.wanted.startswith("at least 0.0312,")
    assert "--aa" in refusal.value.hint
    # The limit that the error names is one that the machine can hold.
    assert decide(known, {"max_regression": 0.0312}).verdict is PASS
    # An absolute limit, and a machine without a stored floor, are not held to it.
    assert decide(known, {"min_fps": 0.001}).verdict is INCONCLUSIVE
    assert decide(evidence(known.estimates), {"max_regression": 0.03}).verdict is PASS


def test_the_smallest_limit_named_holds_for_any_floor() -> None:
    for floor in (0.00001, 0.0123456, 0.05, 0.1, 1 / 3):
        with pytest.raises(InputError) as refusal:
            check_limits({"max_regression": floor * 0.9}, floor)
        check_limits({"max_regression": float(refusal.value.wanted.split()[2].strip(","))}, floor)


@pytest.mark.parametrize(
    ("slowdown", "verdict"), [(1.0, PASS), (0.9, PASS), (1.05, INCONCLUSIVE), (1.1, FAIL)]
)
def test_a_regression_of_rounds_taken_in_turn(slowdown: float, verdict: Verdict) -> None:
    before, now = made(0.002, seed=1), made(0.002 * slowdown, seed=2)
    found = paired_regression(now, before)
    assert found.value == pytest.approx(slowdown - 1, abs=0.01)
    assert decide(evidence({"regression": found}), {"max_regression": 0.05}).verdict is verdict


def test_a_regression_is_of_the_time_not_of_the_rate() -> None:
    found = regression_estimate(Ratio(value=1 / 1.1, interval=(1 / 1.2, 1 / 1.05)))
    assert found.value == pytest.approx(0.1)
    assert found.interval == pytest.approx((0.05, 0.2))


def test_a_stored_baseline_is_held_by_the_original_that_both_ran_beside() -> None:
    """The machine is 1.5 times slower at the second time; the candidate is as it was."""
    then = made(0.002, seed=1), made(0.004, arm="original", engine="b" * 64, seed=2)
    now = made(0.003, seed=3), made(0.006, arm="original", engine="b" * 64, seed=4)
    found = stored_regression(now[0], then[0], originals=(now[1], then[1]))
    assert found.value == pytest.approx(0, abs=0.01)
    assert decide(evidence({"regression": found}), {"max_regression": 0.05}).verdict is PASS
    assert "each beside the original" in found.source
    # Beside another original nothing cancels.
    other = made(0.006, arm="original", engine="c" * 64, seed=4)
    plain = stored_regression(now[0], then[0], originals=(other, then[1]), noise_floor=0.02)
    assert plain.value == pytest.approx(0.5, abs=0.02)
    assert decide(evidence({"regression": plain}), {"max_regression": 0.05}).verdict is FAIL


def test_two_times_without_a_noise_floor_decide_nothing() -> None:
    now, then = made(seed=1), made(seed=2)
    doubtful = stored_regression(now, then)
    assert isinstance(doubtful.value, Unknown)
    assert "edgekit bench --aa" in doubtful.value.reason
    decided = decide(evidence({"regression": doubtful}), {"max_regression": 9})
    assert decided.verdict is INCONCLUSIVE
    assert not undecided(decided)  # more rounds would not help
    narrow = stored_regression(now, then, noise_floor=0.0)
    wide = stored_regression(now, then, noise_floor=0.03)
    assert narrow.interval is not None
    assert wide.interval is not None
    for index, factor in ((0, 1 / 1.03), (1, 1.03)):
        assert 1 + wide.interval[index] == pytest.approx((1 + narrow.interval[index]) * factor)


def test_energy_that_was_measured_has_a_limit_and_unmeasured_energy_does_not_pass() -> None:
    ends = {"joules_per_sample_low": 0.018, "joules_per_sample_high": 0.023}
    known = measured_estimates(made(figures={"joules_per_sample": 0.02, **ends}))
    assert decide(evidence(known), {"max_joules": 0.03}).verdict is PASS
    assert decide(evidence(known), {"max_joules": 0.01}).verdict is FAIL
    assert decide(evidence(known), {"max_joules": 0.0225}).verdict is INCONCLUSIVE
    spread = measured_estimates(made(figures={"joules_per_sample": 0.02}))
    unknown = measured_estimates(made())
    for figures in (spread, unknown):
        assert decide(evidence(figures), {"max_joules": 0.03}).verdict is INCONCLUSIVE


def test_more_rounds_are_asked_for_only_where_they_may_decide() -> None:
    straddling = one("fps", 110, (99, 121))
    few = evidence({"p99_ms": Estimate(value=3, doubt="few")})
    assert undecided(decide(straddling, {"min_fps": 100}))
    assert undecided(decide(few, {"max_p99_ms": 5}))
    # What failed is decided; what nobody can measure stays unknown; accuracy has no rounds.
    both = evidence({**straddling.estimates, "top1": Estimate(value=0.5)})
    assert not undecided(decide(both, {"min_fps": 100, "min_top1": 0.9}))
    assert not undecided(decide(one("joules", NOBODY), {"max_joules": 1}))
    assert not undecided(decide(one("top1", NOBODY), {"min_top1": 0.9}))
    assert not undecided(decide(straddling, {"min_fps": 90}))
