"""Percentiles, rates, ratios, and how often their intervals hold what they should."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.bench.statistics import (
    enough_samples,
    fps,
    percentile,
    percentile_estimate,
    round_samples,
    round_spread,
    speedup,
)
from edgekit.values import Measurement, Unknown


def measured(rounds: Sequence[Sequence[float]], batch: int = 1) -> Measurement:
    starts = np.cumsum([0, *(len(r) for r in rounds[:-1])])
    return Measurement(
        arm="arm", quantity="latency", unit="s", samples=tuple(x for r in rounds for x in r),
        rounds=tuple(int(s) for s in starts), batch=batch, taken_at=0.0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("percent", "wanted"), [(1, 1), (50, 3), (60, 3), (61, 4), (80, 4), (99, 5), (100, 5)]
)
def test_a_percentile_is_the_nearest_rank(percent: float, wanted: float) -> None:
    assert percentile([5, 3, 1, 4, 2], percent) == wanted


def test_a_rank_is_not_pushed_up_by_floating_point() -> None:
    samples = list(range(1, 1001))
    assert percentile(samples, 99.9) == 999
    assert percentile(samples, 99) == 990
    assert percentile(samples, 29) == 290


@given(
    st.lists(st.floats(0, 1e6, allow_nan=False), min_size=1, max_size=50), st.integers(1, 100)
)  # fmt: skip
def test_at_least_that_share_of_the_samples_is_not_above(samples: list[float], p: int) -> None:
    value = percentile(samples, p)
    assert value in samples
    assert sum(x <= value for x in samples) * 100 >= p * len(samples)
    smaller = [x for x in samples if x < value]
    assert len(smaller) * 100 < p * len(samples)


@pytest.mark.parametrize(("samples", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_a_percentile_of_nothing_is_none(samples: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        percentile(samples, percent)


def test_the_samples_that_mlperf_wants() -> None:
    # inference_rules.adoc and LoadGen: 64 for p90, 662 for p99; 130 for p95 by the same formula.
    assert [enough_samples(p) for p in (90, 95, 99)] == [64, 130, 662]


def test_ranks_of_a_medians_interval_are_those_of_the_sign_test() -> None:
    # n = 10: the textbook's 97.9% interval for the median is the 2nd to the 9th value.
    found = percentile_estimate([5, 9, 2, 7, 1, 10, 4, 6, 8, 3], 50)
    assert found.interval == (2.0, 9.0)
    assert found.value == 5


def test_the_top_percentile_of_few_samples_has_no_interval() -> None:
    # 0.99^367 = 0.02500..: even the largest of 366 is not above the p99 often enough.
    mixed = np.random.default_rng(1).permutation(3680)
    assert isinstance(percentile_estimate(mixed[:366], 99).interval, Unknown)
    assert not isinstance(percentile_estimate(mixed, 99).interval, Unknown)


@pytest.mark.parametrize(("percent", "n"), [(50, 40), (90, 200), (99, 1200)])
def test_a_percentiles_interval_holds_the_true_one_in_95_of_100_runs(percent: int, n: int) -> None:
    rng = np.random.default_rng(11)
    true = -math.log(1 - percent / 100)  # of the exponential distribution
    held = 0
    for _ in range(500):
        interval = percentile_estimate(rng.exponential(size=n), percent).interval
        assert not isinstance(interval, Unknown)
        held += interval[0] <= true <= interval[1]
    assert 465 <= held <= 499


def test_fps_is_batch_times_calls_over_their_time() -> None:
    # 4 calls of 2 images: 0.1 + 0.1 + 0.2 + 0.1 s = 0.5 s, 8 images.
    found = fps(measured([[0.1, 0.1], [0.2, 0.1]], batch=2))
    assert found.value == pytest.approx(16)
    # Rounds: 4/0.2 = 20 and 4/0.3 = 13.33; mean 16.67, s = 4.714, t(1) = 12.706.
    half = 12.7062 * 4.714045 / math.sqrt(2)
    assert found.interval == pytest.approx((50 / 3 - half, 50 / 3 + half), rel=1e-5)


def test_one_round_gives_no_interval() -> None:
    assert isinstance(fps(measured([[0.1, 0.2, 0.1]])).interval, Unknown)


def test_the_interval_of_fps_holds_the_true_rate_in_95_of_100_runs() -> None:
    rng = np.random.default_rng(5)
    held = 0
    for _ in range(1000):
        # Each round has its own speed, normal about 100 a second.
        rates = rng.normal(100, 3, 6)
        interval = fps(measured([[1 / rate] * 20 for rate in rates])).interval
        assert not isinstance(interval, Unknown)
        held += interval[0] <= 100 <= interval[1]
    assert 930 <= held <= 970


def test_a_drift_that_slows_both_arms_cancels_in_the_ratio() -> None:
    slowing = [1.0, 1.3, 1.7, 2.2]
    baseline = measured([[0.2 * s, 0.2 * s] for s in slowing])
    candidate = measured([[0.1 * s] * 4 for s in slowing])
    found = speedup(candidate, baseline)
    assert found.value == pytest.approx(2)
    assert found.interval == pytest.approx((2, 2))


def test_a_burst_in_two_rounds_of_twelve_moves_no_ratio() -> None:
    baseline = measured([[0.2]] * 12)
    candidate = measured([[0.1]] * 5 + [[0.9]] + [[0.1]] * 5 + [[0.01]])
    found = speedup(candidate, baseline)
    assert found.value == pytest.approx(2)
    assert found.interval == pytest.approx((2, 2))


def test_the_interval_of_a_ratio_holds_the_true_one_in_at_least_95_of_100_runs() -> None:
    rng = np.random.default_rng(6)
    held = 0
    for _ in range(1000):
        ratios = 2 * np.exp(rng.standard_t(2, 12) * 0.02)  # heavy tails
        found = speedup(measured([[0.1 / r] for r in ratios]), measured([[0.1]] * 12))
        assert not isinstance(found.interval, Unknown)
        held += found.interval[0] <= 2 <= found.interval[1]
    assert 945 <= held <= 975  # ranks 3 and 10 of 12: 96.1%


def test_the_ratio_of_two_rounds_is_their_geometric_mean() -> None:
    found = speedup(measured([[0.1], [0.1]]), measured([[0.1], [0.4]]))
    assert found.value == pytest.approx(2)  # of 1 and 4
    backwards = speedup(measured([[0.1], [0.4]]), measured([[0.1], [0.1]]))
    assert backwards.value == pytest.approx(0.5)


def test_a_ratio_needs_the_same_rounds() -> None:
    with pytest.raises(ValueError, match="rounds"):
        speedup(measured([[0.1]]), measured([[0.1], [0.1]]))


def test_samples_are_parted_where_rounds_begin() -> None:
    parts = round_samples(measured([[1.0, 2.0], [3.0], [4.0, 5.0]]))
    assert [list(part) for part in parts] == [[1, 2], [3], [4, 5]]


def test_spread_is_between_the_fastest_and_the_slowest_round() -> None:
    assert round_spread(measured([[0.1], [0.125]])) == pytest.approx((10 - 8) / 9)
