"""The time of a network as a function of what leaves its groups: measured, or by the roofline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from edgekit.compress.channels.budgeting.layers import Layer, Network, network_of
from edgekit.compress.channels.groups import ChannelGroup
from edgekit.errors import InputError
from edgekit.models.cost.fusion import Runtime
from edgekit.models.cost.roofline import Rates, estimate
from edgekit.models.cost.sizes import forms
from edgekit.models.model import Model
from edgekit.targets import Precision
from edgekit.values import Array, Unknown

Source = Literal["measured", "roofline"]
_SHARES = np.linspace(0.125, 1.0, 8)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds where r units leave: constant + linear . r + a table for each layer.

    A table's axes are the shares that are left of what the layer reads (n, p) and makes (n, q),
    rising, the last one repeated where a layer has fewer; `ms` (n, p, q) rises along both. Between
    the knots it is bilinear, outside them it is flat. `source` says where the numbers are from.
    """

    source: Source
    constant: float
    linear: Array
    reads: Array
    makes: Array
    knots_read: Array
    knots_made: Array
    ms: Array

    @cached_property
    def whole(self) -> float:
        """The milliseconds where nothing leaves."""
        return self.total(np.zeros(len(self.linear)))

    @cached_property
    def joined(self) -> Array:
        """Which groups share a layer (g, g), bool."""
        either = ((self.reads != 0) | (self.makes != 0)).astype(np.float64)
        found: Array = either.T @ either > 0
        return found

    def total(self, removed: Array) -> float:
        """The milliseconds where these units leave."""
        r = np.asarray(removed, np.float64)
        every = np.arange(len(self.reads))
        looked = self._looked_up(every, 1 - self.reads @ r[:, None], 1 - self.makes @ r[:, None])
        return float(self.constant + self.linear @ r + looked.sum())

    def along(self, removed: Array, group: int, to: Array) -> Array:
        """How much it changes where one group loses `to` (n,) units instead: (n,)."""
        touched = self._touched[group]
        by = np.concatenate([[0.0], to - removed[group]])
        read = 1 - (self.reads[touched] @ removed)[:, None] - self.reads[touched, group, None] * by
        made = 1 - (self.makes[touched] @ removed)[:, None] - self.makes[touched, group, None] * by
        looked = self._looked_up(touched, read, made).sum(0)
        change: Array = looked[1:] - looked[0] + self.linear[group] * by[1:]
        return change

    def together(self, first: tuple[Array, Array], second: tuple[Array, Array]) -> Array:
        """Nothing: what two moves change together is looked up when they are made."""
        return np.zeros((len(first[0]), len(second[0])))

    @cached_property
    def _touched(self) -> list[Array]:
        either = (self.reads != 0) | (self.makes != 0)
        return [np.flatnonzero(either[:, group]) for group in range(len(self.linear))]

    def _looked_up(self, layers: Array, read: Array, made: Array) -> Array:
        """The milliseconds of some layers at shares (k, n) that each reads and makes."""
        i, u = _place(self.knots_read[layers], read)
        j, v = _place(self.knots_made[layers], made)
        rows, ms = np.arange(len(layers))[:, None], self.ms[layers]
        below = ms[rows, i, j] * (1 - u) + ms[rows, i + 1, j] * u
        above = ms[rows, i, j + 1] * (1 - u) + ms[rows, i + 1, j + 1] * u
        found: Array = below * (1 - v) + above * v
        return found


@dataclass(frozen=True, kw_only=True)
class LayerTable:
    """Seconds of each layer on one device, and of all else by the bytes that it moves.

    `scale` is what the sum over the network was off by: measured whole / sum of the parts.
    `multiple` is what the widths are multiples of; a budget may choose among others.
    """

    runtime: Runtime
    batch: int
    precision: Precision
    multiple: int
    seconds: Mapping[Layer, float]
    bytes_per_s: float
    scale: float = 1.0


def measured_latency(
    model: Model, groups: Sequence[ChannelGroup], table: LayerTable
) -> Latency:  # fmt: skip
    """The Latency of a Model from a measured table of its layers.

    A narrower layer that was seen slower than a wider one, which is noise or a slower kernel, is
    taken to be as slow: cutting it buys nothing. Raises InputError where layers are missing.
    """
    network = network_of(
        model, groups, runtime=table.runtime, batch=table.batch, precision=table.precision
    )
    missing = [
        str(layer)
        for placed in network.layers
        for row in placed.points(table.multiple)
        for layer in row
        if layer not in table.seconds
    ]
    if missing:
        raise InputError(
            "the table lacks layers of this network", got=", ".join(missing[:3]),
            wanted=f"{len(missing)} more", where="compress.channels.table",
            hint="Measure this very model: edgekit table MODEL --target NAME.",
        )  # fmt: skip
    knots, values = [], []
    for placed in network.layers:
        read, made = placed.grid(table.multiple)
        knots.append((
            np.asarray(read) / placed.layer.channels_in,
            np.asarray(made) / placed.layer.channels_out,
        ))  # fmt: skip
        seconds = [[table.seconds[layer] for layer in row] for row in placed.points(table.multiple)]
        values.append(1e3 * table.scale * rising(np.asarray(seconds)))
    other = 1e3 * table.scale * network.other_bytes / table.bytes_per_s
    return _latency("measured", network, knots, values, (0.0, other))


def roofline_latency(
    model: Model, groups: Sequence[ChannelGroup], rates: Rates, *,
    precision: Precision, batch: int = 1,
) -> Latency:  # fmt: skip
    """The Latency of a Model from what its device can do at most: an estimate, by

        max(2 MACs x y / (P e), (x read + x y weights + y written) / (B e_memory)) + start

    for a layer that reads a share x and makes a share y (letters as in `models.cost.roofline`).
    Raises InputError where a rate or a cost is not known.
    """
    known = forms(model, batch=batch)
    found = estimate(model, known, rates, precision=precision, batch=batch)
    if isinstance(found.latency_s, Unknown):
        raise InputError(
            "there is no estimate of this network's latency", got=found.latency_s.reason,
            where="compress.channels.latency_ms",
            hint="Give the target's peak rates and bandwidth in its file.",
        )  # fmt: skip
    network = network_of(model, groups, runtime=rates.runtime, batch=batch)
    times = dict(enumerate(found.kernels))
    knots, values = [], []
    x, y = np.meshgrid(_SHARES, _SHARES, indexing="ij")
    for placed in network.layers:
        time = times.pop(placed.position)
        layer, share = placed.layer, rates.efficiency
        y_here = x if placed.whole_groups else y
        weights, read, written = _parts(layer)
        whole = weights + read + written
        arithmetic = time.arithmetic_s / share.of(time.kind)
        moving = time.bytes_s / share.memory
        xy = x if placed.whole_groups else x * y
        moved = moving * (xy * weights + x * read + y_here * written) / whole
        values.append(1e3 * (np.maximum(arithmetic * xy, moved) + share.start_s))
        knots.append((_SHARES, _SHARES))
    starts = 1e3 * rates.efficiency.start_s * len(times)
    other = 1e3 * sum(time.seconds for time in times.values())
    return _latency("roofline", network, knots, values, (starts, other - starts))


def rising(seconds: Array) -> Array:
    """The nearest table, by the largest difference, that rises along both axes.

    (a + b) / 2 of a, the largest value at or below a width, and b, the smallest at or above it
    (Ubhaya, Isotone optimization, Journal of Approximation Theory 12, 1974).
    """
    a, b = np.asarray(seconds, np.float64), np.asarray(seconds, np.float64)
    for axis in range(a.ndim):
        a = np.maximum.accumulate(a, axis)
        b = np.flip(np.minimum.accumulate(np.flip(b, axis), axis), axis)
    middle: Array = (a + b) / 2
    return middle


def _parts(layer: Layer) -> tuple[float, float, float]:
    """The elements of a layer's weights, of what it reads and of what it makes."""
    per_group = layer.channels_in / layer.group if layer.op != "MatMul" else layer.channels_in
    weights = per_group * layer.channels_out * float(np.prod(layer.kernel or (1,)))
    place = float(np.prod(layer.inner or (1,))) * layer.batch
    stride = float(np.prod(layer.strides or (1,)))
    made = place * stride if layer.op == "ConvTranspose" else place / stride
    return weights, place * layer.channels_in, made * layer.channels_out


def _latency(
    source: Source, network: Network, knots: Sequence[tuple[Array, Array]],
    values: Sequence[Array], other: tuple[float, float],
) -> Latency:  # fmt: skip
    """The tables stacked; `other` is what all else takes: always, and as long as nothing leaves."""
    groups = len(network.other_row)
    p = max((len(read) for read, _ in knots), default=1) + 1
    q = max((len(made) for _, made in knots), default=1) + 1
    count = len(knots)
    padded = np.zeros((count, p, q))
    for one, table in zip(padded, values, strict=True):
        one[...] = np.pad(table, [(0, p - table.shape[0]), (0, q - table.shape[1])], mode="edge")
    layers = network.layers
    return Latency(
        source=source,
        constant=sum(other),
        linear=-other[1] * network.other_row,
        reads=np.array([layer.reads for layer in layers]).reshape(count, groups),
        makes=np.array([layer.makes for layer in layers]).reshape(count, groups),
        knots_read=_stacked([read for read, _ in knots], p),
        knots_made=_stacked([made for _, made in knots], q),
        ms=padded,
    )


def _stacked(knots: Sequence[Array], width: int) -> Array:
    return np.array([
        np.pad(np.asarray(one, np.float64), (0, width - len(one)), mode="edge") for one in knots
    ]).reshape(len(knots), width)  # fmt: skip


def _place(knots: Array, at: Array) -> tuple[Array, Array]:
    """For shares (k, n) the knots (k, p) to their left, and how far they are to the next."""
    inside = np.clip(at, knots[:, :1], knots[:, -1:])
    left = (knots[:, None, :] <= inside[:, :, None] + 1e-12).sum(2) - 1
    left = np.clip(left, 0, knots.shape[1] - 2)
    rows = np.arange(len(knots))[:, None]
    begin, end = knots[rows, left], knots[rows, left + 1]
    width = end - begin
    far = np.where(width > 0, (inside - begin) / np.where(width > 0, width, 1.0), 0.0)
    return left, np.clip(far, 0.0, 1.0)
