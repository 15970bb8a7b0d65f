"""The least damage within limits: each group takes one of its rungs, costs join them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from edgekit.compress.channels.budgeting.costs import CostModel
from edgekit.values import Array

_BISECTIONS = 20
_SWEEPS = 12
_REBALANCED = 3
_SWAPS = 60
_FEW_GROUPS = 16
_PAIRED = 400  # so many moves are tried in pairs
_SLACK = 1e-12


@dataclass(frozen=True, kw_only=True)
class Knapsack:
    """For each group its rungs, the widest first: units removed, and the damage, which rises.

    `models` are the quantities that `limits` bound, in their order.
    """

    removed: Sequence[Array]
    damage: Sequence[Array]
    models: Sequence[CostModel]
    limits: Array

    def state(self, rungs: Sequence[int]) -> Array:
        """The units that leave each group at these rungs (g,)."""
        chosen = zip(self.removed, rungs, strict=True)
        return np.array([float(steps[rung]) for steps, rung in chosen])

    def totals(self, state: Array) -> Array:
        """The quantities where these units leave."""
        return np.array([model.total(state) for model in self.models])

    def fits(self, state: Array) -> bool:
        """Whether all limits hold there."""
        return bool((self.totals(state) <= self.limits * (1 + _SLACK)).all())

    def lost(self, rungs: Sequence[int]) -> float:
        """The damage in all."""
        return float(sum(d[rung] for d, rung in zip(self.damage, rungs, strict=True)))

    @cached_property
    def neighbours(self) -> list[list[int]]:
        """For each group those others whose costs change when it moves."""
        joined = np.any([model.joined for model in self.models], 0)
        np.fill_diagonal(joined, False)
        return [np.flatnonzero(row).tolist() for row in joined]

    @cached_property
    def groups(self) -> int:
        """How many groups there are."""
        return len(self.removed)


def least_damage(knapsack: Knapsack) -> list[int]:
    """The rung of each group at which all limits hold and the damage is as small as was found.

    Lagrange's way (Everett, Operations Research 11, 1963): for a price of each quantity every group
    in turn takes the rung of the least damage plus price times cost, the others being where they
    are, until none moves; the price is found by bisection. What a price cannot reach (the optimum
    between two of its solutions, two groups that would have to move together) is looked for
    afterwards: rungs are given back while they fit, then one or two groups move while that lessens
    the damage and fits. Not exact: how near it comes to all choices of small networks is held by
    tests/compress/test_budget.py.
    """
    widest = [0] * knapsack.groups
    if knapsack.fits(knapsack.state(widest)):
        return widest
    for model, limit in zip(knapsack.models, knapsack.limits, strict=True):
        alone = replace(knapsack, models=(model,), limits=np.array([limit]))
        around = _around_the_price(alone, np.array([1 / model.whole]))
        if knapsack.fits(knapsack.state(around[0])):  # the other limits do not bind
            return _best_polished(knapsack, around)
    found: list[list[int]] = []
    prices = np.array([1 / model.whole for model in knapsack.models])
    for _ in range(_REBALANCED):
        fits, _ = _around_the_price(knapsack, prices)
        found.append(fits)
        # The quantity that is nearest to its limit gets dearer, the others cheaper.
        prices = prices * (knapsack.totals(knapsack.state(fits)) / knapsack.limits) ** 4
    return _best_polished(knapsack, sorted(found, key=knapsack.lost))


def _around_the_price(knapsack: Knapsack, prices: Array) -> tuple[list[int], list[int]]:
    """The rungs on both sides of the least multiple of these prices at which all limits hold.

    The first fits, the second does not.
    """
    best = [len(steps) - 1 for steps in knapsack.removed]
    scale = max(knapsack.lost(best), 1e-300)
    low, high = 1e-6 * scale, 1e3 * scale
    start = _Descent(knapsack, [0] * knapsack.groups)
    for _ in range(_BISECTIONS):
        price = float(np.sqrt(low * high))
        descent = start.copy()
        descent.settle(price * prices)
        if knapsack.fits(descent.state):
            high = price
            best = min(best, descent.rungs, key=knapsack.lost)
        else:
            low, start = price, descent
    return best, start.rungs


def _best_polished(knapsack: Knapsack, starts: Sequence[list[int]]) -> list[int]:
    """The best of what comes of these and of the widest rungs; those that do not fit are narrowed.

    From the widest ones, rung by rung where the least is lost for the room that it makes, is how a
    budget is spent greedily. With many groups all starts end within 0.1% of one another (seen), so
    the first is enough.
    """
    several = [*starts, [0] * knapsack.groups]
    found = []
    for rungs in several if knapsack.groups <= _FEW_GROUPS else starts[:1]:
        descent = _Descent(knapsack, rungs)
        while not knapsack.fits(descent.state):
            _narrow(descent)
        found.append(_polished(descent))
    return min(found, key=knapsack.lost)


def _narrow(descent: _Descent) -> None:
    """One group takes its next rung: the one that loses the least for the excess that it takes."""
    knapsack = descent.knapsack
    excess = np.maximum(knapsack.totals(descent.state) - knapsack.limits, 0.0)
    moves = _moves(descent, 1)
    moves = moves.only(moves.by > 0)
    saved = (np.minimum(-moves.cost, excess[:, None]) / np.maximum(excess, 1e-300)[:, None]).sum(0)
    rate = np.where(saved > 0, moves.damage / np.where(saved > 0, saved, 1.0), np.inf)
    one = int(rate.argmin()) if np.isfinite(rate).any() else 0
    descent.move(int(moves.group[one]), int(moves.rung[one]))


class _Descent:
    """A choice of rungs, and what every group's rungs would cost where the others are.

    A group's costs are looked up again only after a move of a group that it shares a weight with.
    """

    def __init__(self, knapsack: Knapsack, rungs: Sequence[int]) -> None:
        self.knapsack = knapsack
        self.rungs = list(rungs)
        self.state = knapsack.state(rungs)
        self._costs: list[Array | None] = [None] * knapsack.groups

    def copy(self) -> _Descent:
        """The same choice, to go on from."""
        other = _Descent(self.knapsack, self.rungs)
        other._costs = list(self._costs)
        return other

    def costs(self, group: int) -> Array:
        """What each rung of the group would change of each quantity (models, rungs)."""
        found = self._costs[group]
        if found is None:
            steps = self.knapsack.removed[group]
            found = np.stack([m.along(self.state, group, steps) for m in self.knapsack.models])
            self._costs[group] = found
        return found - found[:, self.rungs[group], None]

    def move(self, group: int, rung: int) -> None:
        """Puts a group on another rung."""
        self.rungs[group] = rung
        self.state[group] = float(self.knapsack.removed[group][rung])
        for other in self.knapsack.neighbours[group]:
            self._costs[other] = None

    def settle(self, prices: Array) -> None:
        """Moves group after group until none gains by moving alone, at these prices."""
        for _ in range(_SWEEPS):
            moved = False
            for group, damage in enumerate(self.knapsack.damage):
                if len(damage) == 1:
                    continue
                rung = int((damage + prices @ self.costs(group)).argmin())
                if rung != self.rungs[group]:
                    self.move(group, rung)
                    moved = True
            if not moved:
                break


@dataclass(frozen=True)
class _Moves:
    """Moves of single groups: whose, to which rung, by how many units, and what they change."""

    group: Array
    rung: Array
    by: Array
    damage: Array
    cost: Array

    def only(self, chosen: Array) -> _Moves:
        """Some of them."""
        return _Moves(
            self.group[chosen], self.rung[chosen], self.by[chosen], self.damage[chosen],
            self.cost[:, chosen],
        )  # fmt: skip


def _moves(descent: _Descent, reach: int) -> _Moves:
    """The moves of every group by at most `reach` rungs."""
    found: list[tuple[Array, Array, Array, Array, Array]] = []
    for group, steps in enumerate(descent.knapsack.removed):
        at, damage = descent.rungs[group], descent.knapsack.damage[group]
        own = np.arange(max(0, at - reach), min(len(steps), at + reach + 1))
        own = own[own != at]
        if len(own):
            whose = np.full(len(own), group)
            by = (steps[own] - steps[at]).astype(np.float64)
            found.append((whose, own, by, damage[own] - damage[at], descent.costs(group)[:, own]))
    return _Moves(*(np.concatenate(parts, -1) for parts in zip(*found, strict=True)))


def _polished(descent: _Descent) -> list[int]:
    """The rungs after every move of one or two groups that fits and lessens the damage."""
    knapsack = descent.knapsack
    reach = max(1, _PAIRED // max(1, 2 * knapsack.groups))
    for _ in range(_SWAPS):
        room = knapsack.limits * (1 + _SLACK) - knapsack.totals(descent.state)
        moves = _moves(descent, reach)
        better = _filling(moves, room)
        if better is None:
            better = _swapping(knapsack, moves, room, descent.rungs)
        if better is None:
            break
        for group, rung in better:
            descent.move(group, rung)
    return descent.rungs


def _filling(moves: _Moves, room: Array) -> list[tuple[int, int]] | None:
    """The wider rung that fits and saves the most damage for the room that it takes.

    One that costs nothing comes first: channels whose loss buys no time stay.
    """
    fits = (moves.by < 0) & (moves.cost <= room[:, None]).all(0)
    if not fits.any():
        return None
    chosen = np.flatnonzero(fits)
    share = np.maximum(moves.cost[:, chosen] / np.maximum(room, 1e-300)[:, None], 1e-12).max(0)
    gain = (1e-300 - moves.damage[chosen]) / share
    one = chosen[int(gain.argmax())]
    return [(int(moves.group[one]), int(moves.rung[one]))]


def _swapping(
    knapsack: Knapsack, moves: _Moves, room: Array, rungs: Sequence[int]
) -> list[tuple[int, int]] | None:
    """Two groups of which one gets wider and one narrower, for the largest gain that fits."""
    wider, narrower = moves.only(moves.by < 0), moves.only(moves.by > 0)
    damage = wider.damage[:, None] + narrower.damage[None, :]
    least = -1e-9 * max(knapsack.lost(rungs), 1e-300)
    possible = (damage < least) & (wider.group[:, None] != narrower.group[None, :])
    for place, model in enumerate(knapsack.models):
        cost = wider.cost[place][:, None] + narrower.cost[place][None, :]
        cost = cost + model.together((wider.group, wider.by), (narrower.group, narrower.by))
        possible &= cost <= room[place]
    rows, columns = np.nonzero(possible)
    for one in np.argsort(damage[rows, columns], kind="stable")[:8]:
        a, b = int(rows[one]), int(columns[one])
        pair = [
            (int(wider.group[a]), int(wider.rung[a])),
            (int(narrower.group[b]), int(narrower.rung[b])),
        ]
        after = list(rungs)
        for index, rung in pair:
            after[index] = rung
        if knapsack.fits(knapsack.state(after)):  # a table's costs do not simply add up
            return pair
    return None
