"""From a share-out that fits its limits to a better one, by looking at what is really cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgekit.compress.channels.budgeting.knapsack import Knapsack, least_damage
from edgekit.values import Array

_ROUNDS = 3
_EXCHANGES = 3  # of the most promising ones that are looked at in a round, beside the knapsack's
_LEAST_GAIN = 1e-3  # in fidelity: less is noise of the few samples

FidelityAt = Callable[[Sequence[int]], float]
"""How near the outputs are to the original's, 1 at most, with each group at one of its rungs."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """The rungs that were found, their fidelity, and how many share-outs were looked at."""

    rungs: tuple[int, ...]
    fidelity: float
    looked_at: int


def improve(
    start: Sequence[int], knapsack: Knapsack, fidelity_at: FidelityAt, *,
    on_look: Callable[[int, int], None] = lambda done, most: None,
) -> Found:  # fmt: skip
    """The best share-out that single steps from `start` lead to.

    A round looks at every group one rung wider and one narrower, the others staying: what that
    gains and costs here, not where nothing else is cut. From these numbers the knapsack's best
    neighbour and the best exchanges of two groups are looked at in turn; the best of them is where
    the next round starts, until none is better. `knapsack` says what fits; its damage is not used.
    `on_look` hears how many share-outs were looked at, and of how many at most.
    """
    seen: dict[tuple[int, ...], float] = {}
    most = looks(knapsack.groups)

    def look(rungs: Sequence[int]) -> float:
        key = tuple(rungs)
        if key not in seen:
            seen[key] = fidelity_at(key)
            on_look(len(seen), most)
        return seen[key]

    best = tuple(start)
    for _ in range(_ROUNDS):
        here = look(best)
        gains = {
            (group, by): look(moved) - here
            for group in range(knapsack.groups)
            for by in (-1, 1)
            if (moved := _moved(knapsack, best, {group: by})) is not None
        }
        candidates = list(_candidates(knapsack, best, gains))
        better = max(candidates, key=look, default=best)
        if look(better) < here + _LEAST_GAIN:
            break
        best = better
    return Found(rungs=best, fidelity=look(best), looked_at=len(seen))


def looks(groups: int) -> int:
    """How many share-outs `improve` looks at, at most."""
    return 1 + _ROUNDS * (2 * groups + 1 + _EXCHANGES)


def _candidates(
    knapsack: Knapsack, rungs: tuple[int, ...], gains: dict[tuple[int, int], float]
) -> Iterator[tuple[int, ...]]:
    """Neighbours that fit and that the gains promise to be better, the most promising first."""
    whole = _best_neighbour(knapsack, rungs, gains)
    if whole != rungs:
        yield whole
    exchanges = sorted(
        (
            (gain + loss, {wider: -1, narrower: 1})
            for (wider, up), gain in gains.items()
            for (narrower, down), loss in gains.items()
            if up < 0 < down and wider != narrower and gain + loss > 0
        ),
        key=lambda one: -one[0],
    )
    fitting = (
        moved
        for _, moves in exchanges
        if (moved := _moved(knapsack, rungs, moves)) is not None
        and moved != whole
        and knapsack.fits(knapsack.state(moved))
    )
    for moved, _ in zip(fitting, range(_EXCHANGES), strict=False):
        yield moved


def _best_neighbour(
    knapsack: Knapsack, rungs: tuple[int, ...], gains: dict[tuple[int, int], float]
) -> tuple[int, ...]:
    """The knapsack's choice where each group may move by one rung, the gains simply adding up."""
    allowed, damage = [], []
    for group, rung in enumerate(rungs):
        steps = [by for by in (-1, 0, 1) if by == 0 or (group, by) in gains]
        allowed.append([rung + by for by in steps])
        lost = [-gains.get((group, by), 0.0) for by in steps]
        damage.append(np.maximum.accumulate(np.asarray(lost)))
    narrow = replace(
        knapsack,
        removed=[steps[own] for steps, own in zip(knapsack.removed, allowed, strict=True)],
        damage=damage,
    )
    chosen = least_damage(narrow)
    return tuple(own[rung] for own, rung in zip(allowed, chosen, strict=True))


def _moved(
    knapsack: Knapsack, rungs: tuple[int, ...], moves: dict[int, int]
) -> tuple[int, ...] | None:
    """The rungs after these moves; None where one of them leads off its group's ladder."""
    found = list(rungs)
    for group, by in moves.items():
        found[group] += by
        if not 0 <= found[group] < len(knapsack.removed[group]):
            return None
    return tuple(found)


def rungs_of(knapsack: Knapsack, removed: Array) -> tuple[int, ...]:
    """The rung of each group at which these units leave."""
    return tuple(
        int(np.flatnonzero(steps == units)[0])
        for steps, units in zip(knapsack.removed, removed, strict=True)
    )
