"""From a share-out to a better one: against all share-outs of small cases."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.compress.channels.budgeting.costs import Quadratic
from edgekit.compress.channels.budgeting.knapsack import Knapsack
from edgekit.compress.channels.search import improve, looks, rungs_of


def knapsack(prices: Sequence[float], rungs: int, limit: float) -> Knapsack:
    """Groups of `rungs` units; a unit of group g costs prices[g]."""
    groups = len(prices)
    whole = float(sum(prices) * rungs)
    cost = Quadratic(
        whole=whole, linear=-np.asarray(prices, float), matrix=np.zeros((groups, groups))
    )
    return Knapsack(
        removed=[np.arange(rungs) for _ in prices],
        damage=[np.zeros(rungs) for _ in prices],
        models=(cost,),
        limits=np.array([limit * whole]),
    )


def fitting(problem: Knapsack) -> list[tuple[int, ...]]:
    every = itertools.product(*(range(len(steps)) for steps in problem.removed))
    return [rungs for rungs in every if problem.fits(problem.state(rungs))]


@given(
    prices=st.lists(st.floats(0.2, 5.0), min_size=3, max_size=3),
    hurts=st.lists(st.floats(0.02, 0.3), min_size=3, max_size=3),
    pick=st.integers(0, 10**6),
)
def test_the_result_fits_and_is_never_worse_than_the_start(
    prices: list[float], hurts: list[float], pick: int
) -> None:
    problem = knapsack(prices, 4, 0.5)
    possible = fitting(problem)
    start = possible[pick % len(possible)]

    def fidelity(rungs: Sequence[int]) -> float:
        return float(np.exp(-sum(hurt * rung**2 for hurt, rung in zip(hurts, rungs, strict=True))))

    found = improve(start, problem, fidelity)
    assert problem.fits(problem.state(found.rungs))
    assert found.fidelity == fidelity(found.rungs) >= fidelity(start)


def test_units_go_from_the_group_that_hardly_matters_to_the_one_that_does() -> None:
    problem = knapsack([1.0, 1.0, 1.0, 1.0], 4, 0.7)
    hurts = [0.3, 0.001, 0.3, 0.001]

    def fidelity(rungs: Sequence[int]) -> float:
        return float(np.exp(-sum(hurt * rung for hurt, rung in zip(hurts, rungs, strict=True))))

    best = max(fitting(problem), key=fidelity)
    found = improve((2, 1, 2, 1), problem, fidelity)
    assert found.fidelity == pytest.approx(fidelity(best), abs=2e-3)
    assert found.rungs[0] == found.rungs[2] == 0


def test_groups_that_only_matter_together_are_seen_where_the_cut_is() -> None:
    """Alone neither group hurts; together they do: only a look at the real cut can tell."""
    problem = knapsack([1.0, 1.0, 1.0], 4, 0.6)

    def fidelity(rungs: Sequence[int]) -> float:
        return 1 - 0.1 * rungs[0] * rungs[1] / 9 - 0.02 * rungs[2]

    found = improve((3, 2, 0), problem, fidelity)
    assert found.fidelity > fidelity((3, 2, 0))
    assert found.rungs[0] * found.rungs[1] < 6


def test_no_more_is_looked_at_than_was_announced() -> None:
    problem = knapsack([1.0, 2.0, 3.0], 4, 0.5)
    looked: list[tuple[int, ...]] = []

    def fidelity(rungs: Sequence[int]) -> float:
        looked.append(tuple(rungs))
        return -float(sum(rungs)) / 100

    found = improve((3, 3, 3), problem, fidelity)
    assert len(looked) == len(set(looked)) == found.looked_at <= looks(3)


def test_rungs_are_found_by_what_they_remove() -> None:
    problem = knapsack([1.0, 1.0], 4, 0.5)
    assert rungs_of(problem, np.array([3, 1])) == (3, 1)
