"""The timed loops against Sessions that are functions of a clock of their own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from edgekit.bench.loops import (
    EmptySession,
    Rotation,
    Until,
    arriving,
    back_to_back,
    harness_ns,
    one_after_the_other,
    poisson_gaps,
    several_at_once,
    whole_batches,
)
from edgekit.values import Array, Feeds

SECOND = 1_000_000_000


class Fake(EmptySession):
    """Staging takes 1 ms, fetching 2 ms, execution what `execute_ms` gives, on `now`."""

    def __init__(self, execute_ms: Callable[[int], float] = lambda call: 7.0) -> None:
        self.now, self.calls, self.seen = 0, 0, list[Feeds]()
        self._execute_ms = execute_ms

    def stage(self, feeds: Feeds) -> None:
        self.seen.append(feeds)
        self.now += 1_000_000

    def execute(self) -> None:
        self.now += int(1e6 * self._execute_ms(self.calls))
        self.calls += 1

    def fetch(self) -> dict[str, Array]:
        self.now += 2_000_000
        return {}

    def clock(self) -> int:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += int(seconds * 1e9) + 50_000

    def ticking(self) -> int:
        """A clock that a waiting loop moves on."""
        self.now += 1000
        return self.now


def rotation(count: int = 3) -> Rotation:
    return Rotation([{"x": np.array([i])} for i in range(count)])


def test_every_call_is_kept_in_order_with_its_parts() -> None:
    fake = Fake(lambda call: 5.0 + 90.0 * (call == 4))
    taken = one_after_the_other(fake, rotation(), Until(seconds=0.2), fake.clock)
    assert list(taken.whole)[:6] == [8_000_000] * 4 + [98_000_000, 8_000_000]  # nothing trimmed
    assert sum(taken.whole) == fake.now >= 0.2 * SECOND
    assert set(taken.stage) == {1_000_000}
    assert taken.execute[4] == 95_000_000


def test_inputs_take_turns() -> None:
    fake = Fake()
    one_after_the_other(fake, rotation(), Until(seconds=0.1), fake.clock)
    assert [int(feeds["x"][0]) for feeds in fake.seen] == [i % 3 for i in range(10)]


@pytest.mark.parametrize(
    ("until", "calls"),
    [(Until(seconds=0.05), 5), (Until(seconds=0.05, least=9, most_seconds=9), 9),
     (Until(seconds=0.05, least=9, most_seconds=0.07), 7), (Until(seconds=0.05, least=2), 5)],
)  # fmt: skip
def test_a_turn_ends_by_time_and_count_and_never_long_after_its_limit(
    until: Until, calls: int
) -> None:
    fake = Fake()
    assert len(one_after_the_other(fake, rotation(), until, fake.clock).whole) == calls


def test_a_query_of_several_calls_is_one_sample() -> None:
    fake = Fake()
    taken = several_at_once(fake, rotation(), Until(seconds=0.1), 4, fake.clock)
    assert list(taken.whole) == [40_000_000] * 3
    assert list(taken.stage) == [4_000_000] * 3
    assert list(taken.execute) == [28_000_000] * 3
    assert fake.calls == 12


def test_offline_leaves_nothing_out_between_answers() -> None:
    fake = Fake()
    taken = back_to_back(fake, rotation(), Until(seconds=0.1), fake.ticking)
    assert sum(taken.whole) == fake.now - 1000  # every tick from the first reading on
    assert sum(taken.stage) + sum(taken.execute) < sum(taken.whole)


def every(milliseconds: float) -> Iterator[int]:
    return itertools.repeat(int(1e6 * milliseconds))


def test_an_idle_server_answers_in_the_time_of_a_call() -> None:
    fake = Fake()
    taken = arriving(fake, rotation(), Until(seconds=0.5), every(50), fake.ticking, fake.sleep)
    assert len(taken.whole) == 9
    assert all(10_000_000 <= ns < 10_100_000 for ns in taken.whole)


def test_a_queue_makes_those_behind_wait() -> None:
    # One call of 100 ms where others take 10, an arrival each 20 ms: by hand 103, then 10 less
    # waiting with every one that follows, until the queue is empty.
    fake = Fake(lambda call: 100.0 if call == 1 else 7.0)
    taken = arriving(fake, rotation(), Until(seconds=0.4), every(20), fake.ticking, fake.sleep)
    waits = [round(ns / 1e6) for ns in taken.whole]
    assert waits[:10] == [10, 103, 93, 83, 73, 63, 53, 43, 33, 23]
    assert waits[-1] == 10


def test_what_nobody_came_to_is_counted_and_gets_no_latency() -> None:
    fake = Fake()
    until = Until(seconds=0.4, most_seconds=0.5)
    taken = arriving(fake, rotation(), until, every(5), fake.ticking, fake.sleep)
    arrived = math.ceil(0.4 / 0.005) - 1
    assert len(taken.whole) + taken.unanswered == arrived
    assert 45 <= len(taken.whole) <= 51
    assert max(taken.whole) < 0.5 * SECOND


@pytest.mark.parametrize("rate", [10.0, 5000.0])
def test_arrivals_are_poisson_and_the_same_for_one_seed(rate: float) -> None:
    gaps = np.array(list(itertools.islice(poisson_gaps(rate, 7), 20_000))) / 1e9
    assert gaps.mean() == pytest.approx(1 / rate, rel=0.03)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.03)  # of an exponential they are equal
    assert np.abs(np.corrcoef(gaps[:-1], gaps[1:])[0, 1]) < 0.03
    again = np.array(list(itertools.islice(poisson_gaps(rate, 7), 20_000))) / 1e9
    assert (gaps == again).all()


def test_a_random_server_waits_as_long_as_queueing_theory_says() -> None:
    # M/D/1: the mean wait is rho / (2 (1 - rho)) service times (Pollaczek and Khinchine).
    fake, rho = Fake(), 0.6
    until = Until(seconds=1500.0)
    taken = arriving(fake, rotation(), until, poisson_gaps(rho / 0.01, 3), fake.ticking, fake.sleep)
    waits = np.array(taken.whole) / 1e9 - 0.01
    assert len(waits) > 80_000
    assert waits.mean() == pytest.approx(0.01 * rho / (2 * (1 - rho)), rel=0.08)


def test_an_empty_session_costs_microseconds() -> None:
    assert 0 < harness_ns({"x": np.zeros(1)}) < 20_000


@pytest.mark.parametrize(("count", "batch", "rows"), [(5, 1, 5), (5, 2, 2), (3, 8, 1), (8, 8, 1)])
def test_batches_are_whole_and_contiguous(count: int, batch: int, rows: int) -> None:
    found = whole_batches({"x": np.arange(2 * count).reshape(count, 2)}, batch)
    assert len(found) == rows
    assert all(b["x"].shape == (batch, 2) and b["x"].flags.c_contiguous for b in found)
    assert [int(row[0]) for b in found for row in b["x"]] == [
        2 * (i % count) for i in range(rows * batch)
    ]
