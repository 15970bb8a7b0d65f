"""Ratios over processes, looks, Student's quantiles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest

from edgekit.bench.statistics import (
    Estimated,
    look_confidence,
    noise_floor,
    over_processes,
    ratio_of_processes,
    speedup,
    undisturbed_ratio,
)
from edgekit.bench.statistics.intervals import student_quantile
from edgekit.values import Array, Measurement, Unknown


def measured(processes: Sequence[Sequence[Array]], batch: int = 1) -> Measurement:
    """Of rounds, process by process."""
    turns = [turn for process in processes for turn in process]
    starts = [0, *np.cumsum([len(t) for t in turns])[:-1].tolist()]
    firsts = [0, *np.cumsum([len(p) for p in processes])[:-1].tolist()]
    return Measurement(
        arm="arm", quantity="latency", unit="s", batch=batch, taken_at=0.0,
        samples=tuple(np.concatenate(turns).tolist()), rounds=tuple(starts),
        processes=tuple(starts[i] for i in firsts),
    )  # fmt: skip


def taken(
    rng: np.random.Generator, slower: float, processes: int = 8, starved: int = 0
) -> Measurement:
    """Eight processes of ten turns of 30 calls; a third of the calls are disturbed."""
    found = []
    for index in range(processes):
        own = 1e-3 * slower * (1 + 0.003 * rng.normal())
        share = 0.95 if index < starved else 0.3
        quiet = own * (1 + 0.01 * rng.random((10, 30)))
        disturbed = np.where(rng.random((10, 30)) < share, 1 + 5 * rng.random((10, 30)), 1)
        found.append(list(quiet * disturbed))
    return measured(found)


@pytest.mark.parametrize(
    ("probability", "degrees", "wanted"),
    # Any printed table of Student's distribution.
    [(0.975, 1, 12.7062), (0.975, 2, 4.3027), (0.975, 5, 2.5706), (0.995, 10, 3.1693),
     (0.95, 30, 1.6973), (0.975, 120, 1.9799), (0.975, 1000, 1.9623), (0.025, 7, -2.3646)],
)  # fmt: skip
def test_students_quantiles(probability: float, degrees: int, wanted: float) -> None:
    assert student_quantile(probability, degrees) == pytest.approx(wanted, abs=6e-5)


def test_of_few_processes_the_ratio_is_their_mean_with_students_interval() -> None:
    logs = np.array([0.01, 0.02, 0.06])
    found = over_processes(logs)
    half = 4.302653 * logs.std(ddof=1) / math.sqrt(3)
    assert found.value == pytest.approx(math.exp(0.03))
    assert found.interval == pytest.approx((math.exp(0.03 - half), math.exp(0.03 + half)))


def test_one_process_that_starved_decides_nothing() -> None:
    calm = np.array([-0.02, -0.01, 0.0, 0.0, 0.01, 0.02, 0.01])
    found, starved = (over_processes(np.append(calm, last)) for last in (0.02, 3.0))
    assert starved == found


def test_an_interval_over_processes_holds_the_truth_in_95_of_100_runs() -> None:
    rng = np.random.default_rng(4)
    held = 0
    for _ in range(1000):
        interval = over_processes(0.01 * rng.normal(size=8)).interval
        assert not isinstance(interval, Unknown)
        held += interval[0] <= 1 <= interval[1]
    assert 930 <= held <= 970


def test_what_differs_between_processes_is_in_the_ratios_interval() -> None:
    rng = np.random.default_rng(1)
    logs = [shift + 0.001 * rng.normal(size=50) for shift in (-0.03, 0.0, 0.03)]
    apart = ratio_of_processes(logs).interval
    mixed = ratio_of_processes([np.concatenate(logs)]).interval
    assert not isinstance(apart, Unknown)
    assert not isinstance(mixed, Unknown)
    assert apart[0] < 0.95
    assert apart[1] > 1.05
    assert mixed[1] - mixed[0] < (apart[1] - apart[0]) / 2


@pytest.mark.parametrize("slower", [1.0, 1.1])
def test_neighbours_do_not_hide_how_fast_undisturbed_calls_are(slower: float) -> None:
    rng = np.random.default_rng(9)
    for _ in range(10):
        before, now = taken(rng, 1.0), taken(rng, slower, starved=1)
        found = undisturbed_ratio(now, before)
        assert found.value == pytest.approx(1 / slower, rel=0.01)
        assert not isinstance(found.interval, Unknown)
        assert found.interval[1] - found.interval[0] < 0.03


def test_slow_calls_that_the_undisturbed_do_not_show_keep_the_ratio_open() -> None:
    rng = np.random.default_rng(3)
    calm = [[1e-3 * (1 + 0.01 * rng.random(30)) for _ in range(10)] for _ in range(8)]
    # Every second call takes twice as long: the lower decile does not see it, the rates do.
    halting = [[turn * np.where(np.arange(30) % 2, 2.0, 1.0) for turn in p] for p in calm]
    found = undisturbed_ratio(measured(halting), measured(calm))
    assert found.value == pytest.approx(1, rel=0.01)
    assert not isinstance(found.interval, Unknown)
    assert found.interval[0] == pytest.approx(1 / 1.5, rel=0.01)
    assert found.interval[1] >= found.value


def test_without_processes_it_is_the_ratio_of_the_rates() -> None:
    rng = np.random.default_rng(3)
    one, other = ([[1e-3 * (1 + 0.1 * rng.random(5)) for _ in range(12)]] for _ in range(2))
    assert undisturbed_ratio(measured(one), measured(other)) == speedup(
        measured(one), measured(other)
    )


def test_a_batch_of_two_in_twice_the_time_is_as_fast() -> None:
    rng = np.random.default_rng(3)
    turns = [[1e-3 * (1 + 0.01 * rng.random(30)) for _ in range(10)] for _ in range(6)]
    doubled = [[2 * turn for turn in process] for process in turns]
    found = undisturbed_ratio(measured(doubled, batch=2), measured(turns))
    assert found.value == pytest.approx(1)


def test_three_looks_are_each_at_a_third_of_the_risk() -> None:
    assert look_confidence(1) == pytest.approx(0.95)
    assert look_confidence(3) == pytest.approx(1 - 0.05 / 3)


def test_the_noise_floor_is_the_farthest_that_an_aa_run_reaches() -> None:
    runs = [
        Estimated(value=1.0, interval=(0.99, 1.02)),
        Estimated(value=0.98, interval=(0.96, 1.0)),
    ]
    assert noise_floor(runs) == pytest.approx(1 / 0.96 - 1)
    assert isinstance(noise_floor([]), Unknown)
    assert noise_floor([Estimated(value=1.0, interval=Unknown("few"))]) == Unknown("few")
