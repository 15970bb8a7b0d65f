"""What criteria may look at: the weights, and what samples show of each group's channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from edgekit.compress.channels.groups import ChannelGroup
from edgekit.data.batches import Batches
from edgekit.errors import MissingPackageError
from edgekit.models.model import Model
from edgekit.values import Array

Kind = Literal["magnitudes", "pooled", "changes", "damage"]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The Model, a seed, and by the group's name what samples have shown of it.

    Which array `observed` has depends on what was asked for: "magnitudes" (tensors, units) mean
    absolute values in each tensor with the group's channels; "pooled" (samples, tensors, units)
    means over space; "changes" (units,) mean squared first-order changes of the loss as a unit goes
    (`gradients`); "damage" (units, units) the quadratic form D by which removing the units of a
    0/1 vector s costs s' D s, as a share of the variance of what reads them (`damage`).
    """

    model: Model
    seed: int = 0
    observed: Mapping[str, Array] = field(default_factory=dict)


def gather(
    kind: Kind, model: Model, groups: Sequence[ChannelGroup], batches: Batches, *, seed: int,
    on_fraction: Callable[[float], None],
) -> Iterator[tuple[Sequence[ChannelGroup], Evidence]]:  # fmt: skip
    """Some groups at a time, in their order, and the Evidence of them.

    One pass over the samples shows all groups, unless that took more than about 1 GiB at a time:
    then it is one pass for as many groups as fit. Memory does not grow with the samples, but for
    "pooled", which keeps a number for each sample and channel.

    Raises InputError where the samples do not fit the Model, or where a tensor becomes NaN or
    infinite; MissingPackageError without torch.
    """
    try:
        from edgekit.compress.channels.evidence.gradients import observe_changes
        from edgekit.compress.channels.evidence.stream import observe_tensors
    except ImportError as error:
        raise MissingPackageError(
            "criteria that look at data run the network, which needs torch",
            where="compress.channels.criterion", hint="pip install 'edgekit[compress]'",
        ) from error  # fmt: skip
    if kind == "changes":
        changes = observe_changes(model, groups, batches, seed=seed, on_fraction=on_fraction)
        yield groups, Evidence(model=model, seed=seed, observed=changes)
        return
    for part, observed in observe_tensors(
        kind, model, groups, batches, seed=seed, on_fraction=on_fraction
    ):
        yield part, Evidence(model=model, seed=seed, observed=observed)
