"""How much each unit of a group matters: a criterion is one function from a group to scores.

A new criterion is one function `(ChannelGroup, Evidence) -> (units,)`, larger for a unit that is
rather to be kept, named in CRITERIA.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgekit.compress.channels.criteria.observed import activation, entropy, taylor, thinet
from edgekit.compress.channels.criteria.weights import (
    bn_scale,
    fpgm,
    groups_without_norm,
    l1,
    l2,
    random,
)
from edgekit.compress.channels.evidence import Evidence, Kind, gather
from edgekit.compress.channels.groups import ChannelGroup
from edgekit.data.batches import Batches
from edgekit.errors import InputError
from edgekit.models.model import Model, constant_of
from edgekit.values import Array

logger = logging.getLogger(__name__)

_WHERE = "compress.channels.criterion"
_MOST_POOLED = 2048  # samples that `entropy` keeps numbers of


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """A function from a group to scores (units,), and the kind of evidence that it wants.

    `is_damage`: its scores are estimates of one and the same damage in all groups, and every weight
    that reads the channels is counted in them; others only rank the units of one group.
    """

    score: Callable[[ChannelGroup, Evidence], Array]
    observes: Kind | None = None
    is_damage: bool = False


CRITERIA: Mapping[str, Criterion] = {
    "l1": Criterion(score=l1),
    "l2": Criterion(score=l2),
    "bn_scale": Criterion(score=bn_scale),
    "fpgm": Criterion(score=fpgm),
    "taylor": Criterion(score=taylor, observes="changes", is_damage=True),
    "activation": Criterion(score=activation, observes="magnitudes"),
    "entropy": Criterion(score=entropy, observes="pooled"),
    "thinet": Criterion(score=thinet, observes="damage", is_damage=True),
    "random": Criterion(score=random),
}
DATA_CRITERIA = frozenset(name for name, one in CRITERIA.items() if one.observes)
DAMAGE_CRITERIA = frozenset(name for name, one in CRITERIA.items() if one.is_damage)


def score_groups(  # noqa: PLR0913  every option of every criterion
    name: str, model: Model, groups: Sequence[ChannelGroup], *, batches: Batches | None = None,
    seed: int = 0, samples: int = 512, on_fraction: Callable[[float], None] = lambda share: None,
) -> tuple[Array, ...]:  # fmt: skip
    """For each group the score of each unit (units,), float64, larger for one rather to be kept.

    Scores of DAMAGE_CRITERIA are shares: of `thinet`, of the variance that the layers which read
    the unit put out, summed over these layers; of `taylor`, of the changes that all units of all
    groups make together. Those of the others are relative to the mean of their group.

    At most `samples` are looked at, evenly spaced over `batches`; of labels only `taylor` knows.

    Raises InputError for an unknown name, for data that are needed and not there or do not fit, for
    numbers that are not finite, and for `bn_scale` where there is no BatchNormalization at all;
    MissingPackageError where data are looked at and torch is not there.
    """
    criterion = _named(name)
    _refuse_infinite(model, groups)
    if name == "bn_scale":
        _tell_without_norm(model, groups)
    found: list[Array] = []
    if criterion.observes is None:
        evidence = Evidence(model=model, seed=seed)
        found.extend(criterion.score(group, evidence) for group in groups)
        on_fraction(1.0)
    elif groups:
        some = _some_of(batches, name, samples)
        for part, evidence in gather(
            criterion.observes, model, groups, some, seed=seed, on_fraction=on_fraction
        ):
            found.extend(criterion.score(group, evidence) for group in part)
    return _comparable(name, [np.asarray(scores, np.float64) for scores in found])


def _comparable(name: str, scores: Sequence[Array]) -> tuple[Array, ...]:
    """The scores in units in which groups compare, as `score_groups` says."""
    if name == "thinet":
        return tuple(scores)
    if name in DAMAGE_CRITERIA:
        total = float(sum(one.sum() for one in scores))
        return tuple(one / (total or 1.0) for one in scores)
    return tuple(one / (one.mean() or 1.0) for one in scores)


def _named(name: str) -> Criterion:
    if name not in CRITERIA:
        near = difflib.get_close_matches(name, CRITERIA, 1)
        raise InputError(
            f'there is no criterion called "{name}"', where=_WHERE, wanted=", ".join(CRITERIA),
            hint=f'Did you mean "{near[0]}"?' if near else "",
        )  # fmt: skip
    return CRITERIA[name]


def _some_of(batches: Batches | None, name: str, samples: int) -> Batches:
    if batches is None or not batches.count:
        raise InputError(
            f'the criterion "{name}" looks at samples, and there are none', where=_WHERE,
            hint="Give --data; unlabelled samples of what the device will see will do.",
        )  # fmt: skip
    if samples < 1:
        raise InputError(
            "no sample is to be looked at", where=_WHERE, got=str(samples), wanted="1 or more"
        )
    return batches.take(min(samples, _MOST_POOLED) if name == "entropy" else samples)


def _refuse_infinite(model: Model, groups: Sequence[ChannelGroup]) -> None:
    names = dict.fromkeys(member.parameter for group in groups for member in group.members)
    for name in names:
        array = constant_of(model.graph.initializers[name])
        if array is None or not np.issubdtype(array.dtype, np.floating):
            continue
        if not np.isfinite(array).all():
            raise InputError(
                f'the weight "{name}" holds NaN or infinity', where=model.name,
                hint="The training diverged: export an earlier checkpoint.",
            )  # fmt: skip


def _tell_without_norm(model: Model, groups: Sequence[ChannelGroup]) -> None:
    without = groups_without_norm(model, tuple(groups))
    if groups and len(without) == len(groups):
        raise InputError(
            "no channel that can be removed passes a BatchNormalization", where=model.name,
            wanted="BatchNormalization, whose gamma bn_scale reads", hint='Choose "l2".',
        )  # fmt: skip
    if without:
        logger.warning(
            "bn_scale: %d of %d groups have no BatchNormalization and are scored by l2: %s",
            len(without), len(groups), ", ".join(without),
        )  # fmt: skip
