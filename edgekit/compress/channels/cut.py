"""Structured channel removal, whole: groups, scores, budget, cut, and the closed-form repair."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

import numpy as np

from edgekit.compress.channels.budget import (
    How,
    Really,
    choose,
    choose_checked,
    kept_at,
    knapsack_of,
)
from edgekit.compress.channels.budgeting.costs import Costs, costs_of
from edgekit.compress.channels.budgeting.latency import Latency
from edgekit.compress.channels.budgeting.limits import Limits
from edgekit.compress.channels.criteria import DAMAGE_CRITERIA, score_groups
from edgekit.compress.channels.groups import ChannelGroup, Groups, groups_to_cut
from edgekit.compress.channels.plan import Plan
from edgekit.compress.channels.reconstruct import (
    ReconstructOptions,
    ReconstructReport,
    reconstruct,
)
from edgekit.compress.channels.remove import remove_channels
from edgekit.compress.channels.search import improve, looks, rungs_of
from edgekit.data.batches import Batches
from edgekit.errors import InputError
from edgekit.models.cost import Cost, total_cost
from edgekit.models.model import Model
from edgekit.values import Array

AUTO: Literal["auto"] = "auto"

OnFraction: TypeAlias = Callable[[float, str], None]
LatencyOf: TypeAlias = Callable[[Model, Sequence[ChannelGroup]], Latency]
"""How long a Model takes as a function of what leaves its groups."""
DamageOf: TypeAlias = Callable[[Model, Sequence[ChannelGroup], Sequence[Array]], Sequence[Array]]
"""What the outputs lose as each group alone loses 25, 50, 75% of its units by these scores."""

_FITTED_MACS = 3e11  # of the original, over all samples that a repair looks at
_LEAST_FITTED = 32
SCORED, _CHOSEN = 0.2, 0.4  # of the time, where there are data; of what is left for each way
_LOOKED_MACS = 5e11  # of the original, over all samples of all share-outs that a search looks at
_LOOKED_SAMPLES = (32, 128)
SEARCHED = "search"

FidelityOf: TypeAlias = Callable[[Model, Sequence[Model]], Sequence[float]]
"""How near the outputs of several Models are to the first one's, 1 at most (`metrics.fidelity`)."""


@dataclass(frozen=True, kw_only=True)
class CutOptions:
    """How much to take, from where, and what counts as little loss.

    `auto`: the criterion is taylor with samples and l2 without, the budget goes by latency where
    that is limited (with samples several ways to share it out are tried), else over all groups.
    `multiple`: what kept counts are multiples of (`ladders.allowed_counts`). `samples` are looked
    at by criteria that look at data. `repair`: with data, the weights that are left are fitted anew
    (`reconstruct`), on up to 2,048 samples.
    """

    limits: Limits
    criterion: str = AUTO
    budget: How | Literal["auto"] = AUTO
    multiple: int = 8
    samples: int = 512
    repair: bool = True
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """What a cut may go by beside the graph: samples, a device's latency, measured damage.

    With `fidelity_of` a budget by latency is shared out in several ways, and the best is kept; in
    a small network a search goes on from there (`search.improve`).
    """

    batches: Batches | None = None
    latency_of: LatencyOf | None = None
    damage_of: DamageOf | None = None
    fidelity_of: FidelityOf | None = None


@dataclass(frozen=True, kw_only=True)
class ExpectedLatency:
    """Milliseconds of the whole and of the cut network, and where they are from."""

    before_ms: float
    after_ms: float
    source: str


@dataclass(frozen=True, kw_only=True)
class ChannelReport:
    """Costs before and after, units kept of how many by group, and what was frozen and why.

    `latency` is there where a limit was on it, `repair` where the weights were fitted anew; `tried`
    has the fidelity of each way to share the budget out, where there were several.
    """

    before: Cost
    after: Cost
    kept: Mapping[str, tuple[int, int]]
    frozen: Mapping[str, str]
    options: CutOptions
    plan: Plan
    latency: ExpectedLatency | None = None
    repair: ReconstructReport | None = None
    tried: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """JSON-ready, without the plan itself."""
        found: dict[str, object] = {
            "macs_before": self.before.macs,
            "macs_after": self.after.macs,
            "parameters_before": self.before.parameters,
            "parameters_after": self.after.parameters,
            "criterion": self.options.criterion,
            "budget": self.options.budget,
            "multiple": self.options.multiple,
            "groups": {name: {"kept": k, "of": of} for name, (k, of) in self.kept.items()},
            "frozen": dict(self.frozen),
        }
        if self.latency is not None:
            found["latency_ms"] = {
                "before": self.latency.before_ms, "after": self.latency.after_ms,
                "source": self.latency.source,
            }  # fmt: skip
        if self.tried:
            found["tried"] = dict(self.tried)
        if self.repair is not None:
            found["repair"] = self.repair.to_json()
        return found


def cut_channels(
    model: Model, options: CutOptions, guidance: Guidance | None = None, *,
    on_fraction: OnFraction = lambda share, said: None,
) -> tuple[Model, ChannelReport]:  # fmt: skip
    """The Model cut to its limits, and a report.

    With samples it is repaired: weights that lost inputs are fitted anew by least squares, without
    labels. Raises InputError for limits outside their range or out of reach, a Model in which
    nothing can be cut, and as `score_groups`, `choose` and `reconstruct` do.
    """
    guidance = guidance or Guidance()
    given = options.limits.given()
    options = _decided(options, guidance)
    groups = groups_to_cut(model)
    scores = score_groups(
        options.criterion, model, groups.groups, batches=guidance.batches, seed=options.seed,
        samples=options.samples,
        on_fraction=lambda share: on_fraction(SCORED * share, options.criterion),
    )  # fmt: skip
    costs = costs_of(model, groups.groups)
    if "latency_ms" in given and guidance.latency_of is not None:
        costs = replace(costs, latency=guidance.latency_of(model, groups.groups))
    on_fraction(SCORED, "cut")
    problem = _Problem(
        model=model, groups=groups, scores=scores, costs=costs, options=options, guidance=guidance
    )  # fmt: skip
    best, tried = _best(problem, lambda share, said: on_fraction(_after_scores(share), said))
    return best.cut, ChannelReport(
        before=total_cost(model),
        after=total_cost(best.cut),
        kept={
            group.name: (len(units), group.units)
            for group, units in zip(groups.groups, best.kept, strict=True)
        },
        frozen=groups.frozen,
        options=options,
        plan=best.plan,
        latency=_expected(costs, groups, best.kept),
        repair=best.repair,
        tried=tried,
    )


def _after_scores(share: float) -> float:
    return SCORED + (1 - SCORED) * share


@dataclass(frozen=True, kw_only=True)
class _Problem:
    """What is cut, by what, within which limits."""

    model: Model
    groups: Groups
    scores: Sequence[Array]
    costs: Costs
    options: CutOptions
    guidance: Guidance

    def fidelity(self, cuts: Sequence[Model]) -> Sequence[float]:
        """How near the outputs of cut networks are to the original's."""
        assert self.guidance.fidelity_of is not None
        return self.guidance.fidelity_of(self.model, cuts)


def _best(problem: _Problem, on_fraction: OnFraction) -> tuple[_Attempt, dict[str, float]]:
    """The best attempt, and the fidelity of each way where there were several."""
    ways = _ways(problem.options, problem.guidance)
    samples = _looked_samples(problem) if len(ways) > 1 else 0
    tried_share = 1 / 3 if samples else 1.0
    attempts: dict[str, _Attempt] = {}
    for index, how in enumerate(ways):

        def on_part(share: float, said: str, index: int = index) -> None:
            on_fraction(tried_share * (index + share) / len(ways), said)

        kept = _choose(problem, how)
        on_part(_CHOSEN, "repair")
        attempts[how] = _attempt(problem, kept, on_part)
    if len(ways) == 1:
        return attempts[ways[0]], {}
    fidelities = problem.fidelity([one.cut for one in attempts.values()])
    tried = dict(zip(attempts, fidelities, strict=True))
    if samples:
        best = attempts[max(tried, key=lambda how: tried[how])]
        kept = _searched(
            problem, best, samples,
            lambda share, said: on_fraction(tried_share + (1 - tried_share) * share, said),
        )  # fmt: skip
        attempts[SEARCHED] = _attempt(problem, kept, lambda share, said: None)
        tried[SEARCHED] = problem.fidelity([attempts[SEARCHED].cut])[0]
    return attempts[max(tried, key=lambda how: tried[how])], tried


@dataclass(frozen=True, kw_only=True)
class _Attempt:
    """One way to share a budget out, cut and repaired."""

    kept: tuple[Array, ...]
    cut: Model
    plan: Plan
    repair: ReconstructReport | None


def _attempt(problem: _Problem, kept: tuple[Array, ...], on_fraction: OnFraction) -> _Attempt:
    model, options, batches = problem.model, problem.options, problem.guidance.batches
    cut, plan = remove_channels(model, problem.groups, kept)
    repair = None
    if batches is not None and options.repair:
        cut, repair = reconstruct(
            cut, model, plan, batches,
            options=ReconstructOptions(samples=_fitted_samples(model), seed=options.seed),
            on_fraction=lambda share: on_fraction(_CHOSEN + (1 - _CHOSEN) * share, "repair"),
        )  # fmt: skip
    return _Attempt(kept=kept, cut=cut, plan=plan, repair=repair)


def _searched(
    problem: _Problem, start: _Attempt, samples: int, on_fraction: OnFraction
) -> tuple[Array, ...]:
    """What a search from `start` keeps; each share-out is repaired on a few samples."""
    batches = problem.guidance.batches
    assert batches is not None
    quick = replace(problem, guidance=replace(problem.guidance, batches=batches.take(samples)))
    options, scores = problem.options, problem.scores
    knapsack = knapsack_of(problem.groups.groups, problem.costs, options.limits, options.multiple)

    def fidelity_at(rungs: Sequence[int]) -> float:
        one = _attempt(quick, kept_at(knapsack, rungs, scores), lambda share, said: None)
        return problem.fidelity([one.cut])[0]

    found = improve(
        rungs_of(knapsack, removed_of(problem.groups, start.kept)), knapsack, fidelity_at,
        on_look=lambda done, most: on_fraction(done / most, f"{done} share-outs compared"),
    )  # fmt: skip
    return kept_at(knapsack, found.rungs, scores)


def _looked_samples(problem: _Problem) -> int:
    """On how many samples the share-outs of a search are repaired; 0 where it would take long."""
    options = problem.options
    if tuple(options.limits.given()) != ("latency_ms",) or not options.repair:
        return 0
    least, most = _LOOKED_SAMPLES
    macs = max(1, total_cost(problem.model).macs)
    affordable = _LOOKED_MACS / (macs * looks(len(problem.groups.groups)))
    return 0 if affordable < least else int(min(most, affordable))


def removed_of(groups: Groups, kept: Sequence[Array]) -> Array:
    """How many units leave each group (g,)."""
    return np.array([g.units - len(units) for g, units in zip(groups.groups, kept, strict=True)])


def _ways(options: CutOptions, guidance: Guidance) -> tuple[How, ...]:
    """How the budget is shared out: one way; by latency, with samples, every way is tried.

    What a group alone loses says little of what all lose together once half of the time is gone,
    so that no single way is always the best; and what was cut and repaired can simply be compared.
    """
    assert options.budget != AUTO
    if options.budget == "latency" and guidance.fidelity_of is not None:
        return ("latency", "global", "uniform")
    return (options.budget,)


def _decided(options: CutOptions, guidance: Guidance) -> CutOptions:
    """The options with `auto` replaced."""
    criterion: str = options.criterion
    if criterion == AUTO:
        criterion = "l2" if guidance.batches is None else "taylor"
    budget = options.budget
    if budget == AUTO:
        budget = "global" if options.limits.latency_ms is None else "latency"
    return replace(options, criterion=criterion, budget=budget)


def _choose(problem: _Problem, how: How) -> tuple[Array, ...]:
    model, groups, scores = problem.model, problem.groups, problem.scores
    options, guidance = problem.options, problem.guidance
    damage = None
    if how == "sensitivity" and guidance.damage_of is None:
        raise InputError(
            "a budget by sensitivity needs samples", where="compress.channels.budget",
            hint="Give --data; labels are not needed.",
        )  # fmt: skip
    if how in ("sensitivity", "latency") and guidance.damage_of is not None:
        damage = guidance.damage_of(model, groups.groups, scores)

    def choose_with(costs: Costs) -> tuple[Array, ...]:
        return choose(
            groups.groups, scores, costs, options.limits,
            how=how, multiple=options.multiple, damage=damage,
            summed=options.criterion in DAMAGE_CRITERIA,
        )  # fmt: skip

    def really(kept: Sequence[Array]) -> Really:
        cost = total_cost(remove_channels(model, groups, kept)[0])
        return Really(macs=cost.macs, parameters=cost.parameters)

    return choose_checked(choose_with, problem.costs, options.limits, groups.groups, really)


def _fitted_samples(model: Model) -> int:
    """On how many samples the repair fits: fewer for a large network, so that it takes minutes."""
    affordable = _FITTED_MACS / max(1, total_cost(model).macs)
    return int(min(ReconstructOptions().samples, max(_LEAST_FITTED, affordable)))


def _expected(costs: Costs, groups: Groups, kept: Sequence[Array]) -> ExpectedLatency | None:
    latency = costs.latency
    if not isinstance(latency, Latency):
        return None
    removed = removed_of(groups, kept)
    return ExpectedLatency(
        before_ms=latency.whole, after_ms=latency.total(removed), source=latency.source
    )
