"""Criteria that look at the weights alone."""

from __future__ import annotations

import zlib

import numpy as np
import onnx_ir as ir

from edgekit.compress.channels.evidence import Evidence
from edgekit.compress.channels.evidence.carriers import norms_of
from edgekit.compress.channels.groups import ChannelGroup, Member
from edgekit.models.model import Model, attribute, constant_of
from edgekit.values import Array

_COLUMNS = 1 << 12  # of all filters side by side that are compared at a time


def l1(group: ChannelGroup, evidence: Evidence) -> Array:
    """The sum of the magnitudes of all the weights that make each unit (units,).

    Where BatchNormalization follows a convolution, what counts is the kernel that the two make
    together, so each output channel's weights are taken times |gamma| / sqrt(var + eps).
    Li et al., "Pruning Filters for Efficient ConvNets" (2017), section 3.1.
    """
    sums = np.zeros(group.units)
    for member, weight in _producers(group, evidence.model):
        magnitude = np.abs(weight).sum(_others(weight, member.axis), dtype=np.float64)
        sums += (magnitude * np.abs(_norm_gain(member)))[member.indices].sum(1)
    return sums


def l2(group: ChannelGroup, evidence: Evidence) -> Array:
    """The L2 norm of all the weights that make each unit (units,); BatchNormalization as in l1."""
    squares = np.zeros(group.units)
    for member, weight in _producers(group, evidence.model):
        axes = "abcdefgh"[: weight.ndim]
        # Summed in double precision in place: a matrix of VGG is 400 MB, its copies are not made.
        summed = f"{axes},{axes}->{axes[member.axis]}"
        energy = np.einsum(summed, weight, weight, dtype=np.float64)
        squares += (energy * _norm_gain(member) ** 2)[member.indices].sum(1)
    norms: Array = np.sqrt(squares)
    return norms


def bn_scale(group: ChannelGroup, evidence: Evidence) -> Array:
    """The sum of |gamma| over the BatchNormalizations of each unit's channels (units,).

    Liu et al., "Learning Efficient Convolutional Networks through Network Slimming" (2017),
    section 3; one that stands before the weights that read the channels counts too. A group
    without any is scored by `l2`: `groups_without_norm` names those.
    """
    found = norms_of(evidence.model, group)
    if not found:
        return l2(group, evidence)
    scales = np.zeros(group.units)
    for node, member in found:
        scales += np.abs(_constant(node.inputs[1]))[member.indices].sum(1)
    return scales


def groups_without_norm(model: Model, groups: tuple[ChannelGroup, ...]) -> tuple[str, ...]:
    """The names of the groups over whose channels no BatchNormalization stands."""
    return tuple(group.name for group in groups if not norms_of(model, group))


def fpgm(group: ChannelGroup, evidence: Evidence) -> Array:
    """The sum of the distances of each unit's filter to those of all other units (units,).

    He et al., "Filter Pruning via Geometric Median" (2019), equation 7: a filter near the
    geometric median is replaceable by the others. All weights that make a unit together are its
    filter, BatchNormalization as in l1 but with its sign, since a filter and its negative are not
    alike.

        d(i, j)^2 = |f_i|^2 + |f_j|^2 - 2 f_i . f_j
    """
    products = np.zeros((group.units, group.units))
    for member, weight in _producers(group, evidence.model):
        gain = np.broadcast_to(_norm_gain(member), weight.shape[member.axis])[member.indices]
        rows = np.moveaxis(weight, member.axis, 0).reshape(weight.shape[member.axis], -1)
        for begin in range(0, rows.shape[1], _COLUMNS):
            some = rows[:, begin : begin + _COLUMNS][member.indices] * gain[:, :, None]
            filters = some.reshape(group.units, -1)
            products += filters @ filters.T
    norms = np.diag(products)
    squares = norms[:, None] + norms[None, :] - 2 * products
    # Equal filters differ by rounding alone, of which the root would make much.
    squares[squares < 1e-12 * norms.max(initial=0.0)] = 0.0
    distances: Array = np.sqrt(squares).sum(1)
    return distances


def random(group: ChannelGroup, evidence: Evidence) -> Array:
    """Numbers in [0, 1) from the seed and the group's name (units,): the control."""
    rng = np.random.default_rng([evidence.seed, zlib.crc32(group.name.encode())])
    return rng.random(group.units)


def _producers(group: ChannelGroup, model: Model) -> list[tuple[Member, Array]]:
    return [
        (member, _constant(model.graph.initializers[member.parameter]))
        for member in group.members
        if member.role == "produced"
    ]


def _constant(value: ir.Value | None) -> Array:
    """The numbers of a constant, half precision in single."""
    stored = constant_of(value)
    assert stored is not None
    return stored if stored.dtype == np.float64 else np.asarray(stored, np.float32)


def _others(array: Array, axis: int) -> tuple[int, ...]:
    return tuple(i for i in range(array.ndim) if i != axis)


def _norm_gain(member: Member) -> Array:
    """gamma / sqrt(var + eps) of the BatchNormalization behind a convolution, else 1; float64."""
    if member.norm is None:
        return np.ones(())
    gamma, var = (np.asarray(constant_of(member.norm.inputs[i]), np.float64) for i in (1, 4))
    gain: Array = gamma / np.sqrt(var + attribute(member.norm, "epsilon", 1e-5))
    return gain
