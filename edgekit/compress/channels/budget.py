"""How many units to take from where, so that what is left fits its limits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from edgekit.compress.channels.budgeting.costs import CostModel, Costs, costs_of, named_costs
from edgekit.compress.channels.budgeting.knapsack import Knapsack, least_damage
from edgekit.compress.channels.budgeting.ladders import allowed_counts
from edgekit.compress.channels.budgeting.limits import Limits, Share, absolute
from edgekit.compress.channels.groups import ChannelGroup
from edgekit.errors import InputError
from edgekit.models.model import Model
from edgekit.values import Array

How = Literal["uniform", "global", "sensitivity", "latency"]

SHARES = (0.25, 0.5, 0.75)
"""The shares of a group's units at which a damage curve says what their loss costs."""

_CORRECTIONS = 4


def choose_kept(
    model: Model, groups: Sequence[ChannelGroup], scores: Sequence[Array], *, macs: float,
    multiple: int,
) -> tuple[Array, ...]:  # fmt: skip
    """For each group the units to keep, for at most a share of the MACs, by scores over all."""
    limits = Limits(macs=Share(macs))
    return choose(groups, scores, costs_of(model, groups), limits, how="global", multiple=multiple)


def choose(  # noqa: PLR0913
    groups: Sequence[ChannelGroup], scores: Sequence[Array], costs: Costs, limits: Limits, *,
    how: How, multiple: int, damage: Sequence[Array] | None = None, summed: bool = False,
) -> tuple[Array, ...]:  # fmt: skip
    """For each group the sorted indices of the units to keep, so that every limit holds.

        uniform      the same share of every group, as near as allowed counts come
        global       the least score lost: a unit counts once for each weight that makes or reads
                     it, but where scores are `summed` over these already
        sensitivity  the least damage; `damage[i]` (3,) is what was lost where 25, 50 and 75% of the
                     units of group i left, the lowest scores first; between, it follows the scores
        latency      for a limit in milliseconds: as `sensitivity` with `damage`, else as `global`

    Within a group the units of the highest scores stay. The result leaves no room in which another
    allowed count of any group would fit. Raises InputError for limits that cannot be met, naming
    the nearest that can; for scores or damage that are not finite numbers; and for a limit on the
    latency where nobody knows it.
    """
    wanted = limits.given()
    if how == "latency" and "latency_ms" not in wanted:
        raise InputError(
            "a budget by latency needs a limit in milliseconds",
            where="compress.channels.latency_ms",
            got=", ".join(wanted),
        )
    _check_scores(groups, scores)
    knapsack = knapsack_of(groups, costs, limits, multiple)
    every = _every_loss(groups, scores, summed=summed)
    losses = [loss[rungs] for loss, rungs in zip(every, knapsack.removed, strict=True)]
    if how == "sensitivity" or (how == "latency" and damage is not None):
        losses = _from_curves(groups, losses, every, damage)
    knapsack = replace(knapsack, damage=losses)
    rungs = _uniform(knapsack, groups) if how == "uniform" else least_damage(knapsack)
    return kept_at(knapsack, rungs, scores)


def knapsack_of(
    groups: Sequence[ChannelGroup], costs: Costs, limits: Limits, multiple: int
) -> Knapsack:
    """The counts that each group may keep, and what bounds them; no damage yet: all is zero.

    Raises InputError for limits that cannot be met, and on the latency where nobody knows it.
    """
    wanted = limits.given()
    models = _bounded(costs, tuple(wanted))
    most = np.array([
        absolute(limit, model.whole) for limit, model in zip(wanted.values(), models, strict=True)
    ])  # fmt: skip
    removed = [
        g.units - np.asarray(allowed_counts(g.units, multiple, g.channels_per_unit), np.int64)
        for g in groups
    ]
    damage = [np.zeros(len(rungs)) for rungs in removed]
    knapsack = Knapsack(removed=removed, damage=damage, models=models, limits=most)
    _check_reachable(knapsack, tuple(wanted), multiple)
    return knapsack


def kept_at(knapsack: Knapsack, rungs: Sequence[int], scores: Sequence[Array]) -> tuple[Array, ...]:
    """The sorted indices of the units of each group that stay at its rung: the highest scores."""
    return tuple(
        np.sort(_ranked(score)[: len(score) - int(removed[rung])])
        for score, removed, rung in zip(scores, knapsack.removed, rungs, strict=True)
    )


def _ranked(score: Array) -> Array:
    """The units by falling score."""
    found: Array = np.argsort(-np.asarray(score, np.float64), kind="stable")
    return found


@dataclass(frozen=True, kw_only=True)
class Really:
    """What a choice costs when it is really cut."""

    macs: float
    parameters: float


def choose_checked(
    choose_with: Callable[[Costs], tuple[Array, ...]], costs: Costs, limits: Limits,
    groups: Sequence[ChannelGroup], really: Callable[[Sequence[Array]], Really],
) -> tuple[Array, ...]:  # fmt: skip
    """What `choose_with` chooses, once its costs are what the really cut graph costs.

    Where they are not (a product of two activations that follows no single axis), what the models
    save is scaled to what was really saved, and the choice is made again, a few times at most. Of
    the choices that really fit the one that keeps the most is taken. Raises InputError where none
    does.
    """
    fitting: list[tuple[float, tuple[Array, ...]]] = []
    most = {
        name: absolute(limit, getattr(costs, name).whole)
        for name, limit in limits.given().items()
        if name != "latency_ms"
    }
    for _ in range(1 + _CORRECTIONS):
        kept = choose_with(costs)
        found = really(kept)
        removed = np.array(
            [g.units - len(units) for g, units in zip(groups, kept, strict=True)], np.float64
        )
        if all(getattr(found, name) <= limit * (1 + 1e-9) for name, limit in most.items()):
            fitting.append((found.macs + found.parameters, kept))
        expected = Really(
            macs=costs.macs.total(removed), parameters=costs.parameters.total(removed)
        )
        if _alike(found, expected):
            break
        costs = replace(
            costs,
            macs=costs.macs.corrected(removed, found.macs),
            parameters=costs.parameters.corrected(removed, found.parameters),
        )
    if not fitting:
        raise InputError(
            "no choice of channels was found that really fits the budget",
            where="compress.channels", got=str(limits), hint="Ask for a little more or less.",
        )  # fmt: skip
    return max(fitting, key=lambda choice: choice[0])[1]


def _alike(found: Really, expected: Really) -> bool:
    return bool(
        np.isclose(found.macs, expected.macs, rtol=1e-9, atol=0.5)
        and np.isclose(found.parameters, expected.parameters, rtol=1e-9, atol=0.5)
    )


def _bounded(costs: Costs, names: tuple[str, ...]) -> tuple[CostModel, ...]:
    known = named_costs(costs)
    found = []
    for name in names:
        model = known[name]
        if model is None:
            raise InputError(
                "the latency of this network is not known", where=f"compress.channels.{name}",
                hint="Measure its layers with `edgekit table MODEL --target NAME`.",
            )  # fmt: skip
        found.append(model)
    return tuple(found)


def _check_scores(groups: Sequence[ChannelGroup], scores: Sequence[Array]) -> None:
    for group, score in zip(groups, scores, strict=True):
        bad = np.flatnonzero(~np.isfinite(score))
        if len(score) != group.units or len(bad):
            raise InputError(
                "the scores of a group are no finite numbers",
                where=group.name,
                got=f"{len(bad)} of {len(score)} are not" if len(bad) else f"{len(score)} scores",
                wanted=f"{group.units} finite numbers",
                hint="NaN in the weights makes NaN scores: see the model's file.",
            )


def _every_loss(
    groups: Sequence[ChannelGroup], scores: Sequence[Array], *, summed: bool
) -> list[Array]:
    """For each group what is lost with 0, 1, ... of its units, the lowest scores first.

    A unit's loss counts once for each weight that makes it or reads it: taking a channel out of a
    residual stream hurts every layer on the stream. Scores count from the smallest of all, if that
    is negative: a loss is never a gain.
    """
    lowest = min((float(score.min()) for score in scores if len(score)), default=0.0)
    found = []
    for group, score in zip(groups, scores, strict=True):
        weight = 1 if summed else sum(member.role != "along" for member in group.members)
        ascending = np.asarray(score, np.float64)[_ranked(score)[::-1]] - min(lowest, 0.0)
        found.append(weight * np.concatenate([[0.0], np.cumsum(ascending)]))
    return found


def _from_curves(
    groups: Sequence[ChannelGroup], losses: Sequence[Array], every: Sequence[Array],
    damage: Sequence[Array] | None,
) -> list[Array]:  # fmt: skip
    """The measured damage at each allowed count.

    A line between the shares that were measured, over the score that is lost instead of the number
    of units; where less damage was seen at a larger share, the larger of the two stands.
    """
    if damage is None or len(damage) != len(groups):
        raise InputError(
            "a budget by sensitivity needs a curve of damage for each group",
            where="compress.channels.damage",
            got="none" if damage is None else f"{len(damage)} curves",
            wanted=f"{len(groups)} curves", hint="`edgekit sensitivity` measures them.",
        )  # fmt: skip
    found = []
    for group, loss, whole, curve in zip(groups, losses, every, damage, strict=True):
        if np.shape(curve) != (len(SHARES),) or not np.isfinite(curve).all():
            raise InputError(
                "a curve of damage is not three finite numbers", where=group.name, got=str(curve)
            )
        units = np.concatenate([[0.0], np.asarray(SHARES) * group.units])
        knots = np.interp(units, np.arange(group.units + 1), whole)
        heights = np.maximum.accumulate(np.concatenate([[0.0], curve]))
        found.append(np.interp(loss, knots, heights))
    return found


def _check_reachable(knapsack: Knapsack, names: tuple[str, ...], multiple: int) -> None:
    narrowest = np.array([float(rungs[-1]) for rungs in knapsack.removed])
    for name, model, most in zip(names, knapsack.models, knapsack.limits, strict=True):
        least = model.total(narrowest)
        if least > most * (1 + 1e-12):
            unit = {"macs": " MACs", "latency_ms": " ms"}.get(name, f" {name}")
            raise InputError(
                "this budget cannot be met",
                where=f"compress.channels.{name}",
                got=f"{most / model.whole:.3f} of the whole, {most:.6g}{unit}",
                wanted=f"at least {_rounded_up(least / model.whole)}, that is {least:.6g}{unit}: "
                f"the narrowest cut with multiples of {multiple}",
                hint="Ask for more, or see `edgekit inspect` for what cannot be cut and why.",
            )


def _rounded_up(share: float) -> str:
    """The share with three digits, so that asking for it succeeds."""
    return f"{np.ceil(share * 1000 - 1e-9) / 1000:.3f}"


def _uniform(knapsack: Knapsack, groups: Sequence[ChannelGroup]) -> list[int]:
    """The rungs at which every group keeps nearly the same share of its units.

    The largest share that fits when each group takes its nearest allowed count; then one rung more,
    always for the group that keeps the smallest share of those whose next one fits.
    """
    units = np.array([group.units for group in groups], np.float64)
    shares = [1 - rungs / n for rungs, n in zip(knapsack.removed, units, strict=True)]

    def at(share: float) -> list[int]:
        return [int(np.abs(own - share).argmin()) for own in shares]

    low, high = 0.0, 1.0
    if knapsack.fits(knapsack.state(at(high))):
        return at(high)
    for _ in range(40):
        middle = (low + high) / 2
        if knapsack.fits(knapsack.state(at(middle))):
            low = middle
        else:
            high = middle
    rungs = at(low)
    while True:
        below = sorted(
            (i for i, rung in enumerate(rungs) if rung), key=lambda i: shares[i][rungs[i]]
        )  # fmt: skip
        wider = ([*rungs[:i], rungs[i] - 1, *rungs[i + 1 :]] for i in below)
        fitting = next((one for one in wider if knapsack.fits(knapsack.state(one))), None)
        if fitting is None:
            return rungs
        rungs = fitting
