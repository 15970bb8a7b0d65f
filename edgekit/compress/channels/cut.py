"""Structured channel removal, whole: groups, scores, budget, cut."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.compress.channels.budget import choose_kept
from edgekit.compress.channels.criteria import criterion
from edgekit.compress.channels.groups import find_groups
from edgekit.compress.channels.plan import Plan
from edgekit.compress.channels.remove import remove_channels
from edgekit.errors import InputError
from edgekit.models.cost import Cost, total_cost
from edgekit.models.model import Model


@dataclass(frozen=True, kw_only=True)
class ChannelReport:
    """Costs before and after, units kept of how many by group, and what was frozen and why."""

    before: Cost
    after: Cost
    kept: Mapping[str, tuple[int, int]]
    frozen: Mapping[str, str]
    multiple: int
    plan: Plan

    def to_json(self) -> dict[str, object]:
        """JSON-ready, without the plan itself."""
        return {
            "macs_before": self.before.macs,
            "macs_after": self.after.macs,
            "parameters_before": self.before.parameters,
            "parameters_after": self.after.parameters,
            "multiple": self.multiple,
            "groups": {name: {"kept": k, "of": of} for name, (k, of) in self.kept.items()},
            "frozen": dict(self.frozen),
        }


def cut_channels(
    model: Model, *, macs: float, multiple: int = 8, criterion_name: str = "l2"
) -> tuple[Model, ChannelReport]:
    """The Model cut to at most `macs` (a share in (0, 1]) of its MACs, and a report.

    Raises InputError for a budget outside (0, 1], one that cannot be met, or a Model in which
    nothing can be cut.
    """
    if not 0 < macs <= 1:
        raise InputError(
            "the budget is not between 0 and 1", where="compress.channels.macs", got=f"{macs:g}",
            wanted="a share of the MACs, more than 0 and at most 1",
        )  # fmt: skip
    score = criterion(criterion_name)
    groups = find_groups(model)
    if not groups.groups and macs < 1:
        reasons = sorted(set(groups.frozen.values()))
        raise InputError(
            "no channel of this model can be removed", where=model.name,
            got="; ".join(reasons[:3]) or "no convolution or matrix with constant weights",
            hint="Leave [compress.channels] out of the recipe.",
        )  # fmt: skip
    scores = [score(group, model) for group in groups.groups]
    kept = choose_kept(model, groups.groups, scores, macs=macs, multiple=multiple)
    cut, plan = remove_channels(model, groups, kept)
    return cut, ChannelReport(
        before=total_cost(model),
        after=total_cost(cut),
        kept={
            group.name: (len(units), group.units)
            for group, units in zip(groups.groups, kept, strict=True)
        },
        frozen=groups.frozen,
        multiple=multiple,
        plan=plan,
    )
