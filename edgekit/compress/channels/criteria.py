"""How much each unit of a group matters: a criterion is one function from a group to scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from edgekit.compress.channels.groups import ChannelGroup, Member
from edgekit.errors import InputError
from edgekit.models.model import Model, attribute, constant_of
from edgekit.values import Array

Criterion = Callable[[ChannelGroup, Model], Array]


def l2(group: ChannelGroup, model: Model) -> Array:
    """The L2 norm of all the weights that make each unit (units,), over the group's mean.

    Where BatchNormalization follows a convolution, what counts is the kernel that the two make
    together, so each output channel's weights are taken times gamma / sqrt(var + eps).
    """
    squares = np.zeros(group.units)
    for member in group.members:
        if member.role != "produced":
            continue
        weight = np.asarray(constant_of(model.graph.initializers[member.parameter]), np.float32)
        axes = "abcdefgh"[: weight.ndim]
        # Summed in double precision in place: a matrix of VGG is 400 MB, its copies are not made.
        summed = f"{axes},{axes}->{axes[member.axis]}"
        energy = np.einsum(summed, weight, weight, dtype=np.float64)
        squares += (energy * _norm_gain(member) ** 2)[member.indices].sum(1)
    norms = np.sqrt(squares)
    return norms / (norms.mean() or 1.0)


def _norm_gain(member: Member) -> Array:
    if member.norm is None:
        return np.ones(())
    gamma, var = (np.asarray(constant_of(member.norm.inputs[i]), np.float64) for i in (1, 4))
    gain: Array = np.abs(gamma) / np.sqrt(var + attribute(member.norm, "epsilon", 1e-5))
    return gain


CRITERIA: Mapping[str, Criterion] = {"l2": l2}


def criterion(name: str) -> Criterion:
    """The function of that name. Raises InputError for an unknown one."""
    if name not in CRITERIA:
        raise InputError(
            f'there is no criterion called "{name}"',
            where="compress.channels.criterion",
            wanted=", ".join(CRITERIA),
        )
    return CRITERIA[name]
