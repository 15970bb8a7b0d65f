"""Criteria that look at what samples show."""

from __future__ import annotations

import numpy as np

from edgekit.compress.channels.evidence import Evidence
from edgekit.compress.channels.groups import ChannelGroup
from edgekit.values import Array

BINS = 64


def activation(group: ChannelGroup, evidence: Evidence) -> Array:
    """The mean absolute value of each unit's channels (units,), where they are read.

    Where several tensors carry the group, each counts relative to its own mean.
    """
    return _mean_relative(evidence.observed[group.name])


def entropy(group: ChannelGroup, evidence: Evidence) -> Array:
    """The entropy of each unit's channels after global average pooling (units,), in nats.

    Luo and Wu, "An Entropy-based Pruning Method for CNN Compression" (2017), section 3: over the
    samples, a channel's pooled values are sorted into m bins between their smallest and largest,

        H = - sum_i p_i log p_i

    m is BINS. Where several tensors carry the group, the mean of theirs.
    """
    pooled = evidence.observed[group.name]  # (samples, tensors, units)
    low, high = pooled.min(0), pooled.max(0)
    span = np.where(high > low, high - low, 1.0)
    bins = np.minimum(((pooled - low) / span * BINS).astype(np.int64), BINS - 1)
    columns = bins.reshape(len(bins), -1)
    offsets = np.arange(columns.shape[1]) * BINS
    counts = np.bincount((columns + offsets).reshape(-1), minlength=BINS * columns.shape[1])
    shares = counts.reshape(-1, BINS) / len(bins)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    found: Array = -(shares * logs).sum(1).reshape(low.shape).mean(0)
    return found + 0.0  # no -0


def taylor(group: ChannelGroup, evidence: Evidence) -> Array:
    """The mean squared first-order change of the loss as each unit goes (units,).

    `evidence.gradients` has the formula, its source, and what the loss is without labels.
    """
    return evidence.observed[group.name]


def thinet(group: ChannelGroup, evidence: Evidence) -> Array:
    """What each unit adds to the damage as units go, the least harmful first (units,).

    Luo et al., "ThiNet" (2017), section 3.2: of the units that are left, always the one goes with
    which the output of the next layer changes least; here but for its mean, which a bias or a
    BatchNormalization gives back. With s the units that went and D as in `evidence.damage`, the
    damage is s' D s, and that of one more unit u is

        D[u, u] + 2 sum_{v gone} D[u, v]

    Scores have to rise in the order in which units go; where what one adds is less than what an
    earlier one did, their mean stands for both: the sums of the smallest scores are the greatest
    convex curve below the damage.
    """
    form = evidence.observed[group.name]
    order, damage = eliminate(form)
    scores = np.empty(len(order))
    scores[order] = np.maximum(_rising(np.diff(damage, prepend=0.0)), 0.0)
    # Among equals the one that went later counts more.
    hair = 1e-9 * max(damage[-1] if len(damage) else 0.0, 1e-30) / max(1, len(order)) ** 2
    scores[order] += hair * np.arange(len(order))
    return scores


def eliminate(form: Array) -> tuple[Array, Array]:
    """The order in which units go, and the damage after each, both (units,).

    `form` (units, units) is symmetric and positive semidefinite.
    """
    added = np.diag(form).copy()
    order = np.empty(len(form), np.int64)
    damage = np.empty(len(form))
    total = 0.0
    for step in range(len(form)):
        unit = int(np.argmin(added))
        total += float(added[unit])
        order[step], damage[step] = unit, total
        added += 2 * form[unit]
        added[unit] = np.inf
    return order, damage


def _rising(steps: Array) -> Array:
    """The nearest rising numbers, by pooling neighbours that fall into their mean."""
    pools: list[tuple[float, int]] = []
    for step in steps.tolist():
        total, count = step, 1
        while pools and pools[-1][0] * count >= total * pools[-1][1]:
            before, many = pools.pop()
            total, count = total + before, count + many
        pools.append((total, count))
    return np.repeat([total / count for total, count in pools], [count for _, count in pools])


def _mean_relative(observed: Array) -> Array:
    """The mean over rows (tensors) of each, over its own mean."""
    means = observed.mean(1, keepdims=True)
    shares = np.divide(observed, means, out=np.zeros_like(observed), where=means > 0)
    found: Array = shares.mean(0)
    return found
