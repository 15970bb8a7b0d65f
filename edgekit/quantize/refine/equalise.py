"""Channels of one tensor made alike in range, so that its one scale wastes nothing on any of them.

With the factor s[c] on what makes channel c and 1 / s[c] on what reads it (`scales`), the rounding
of the activation adds to the reader's output, a step D being shared by all channels,

    D^2 / 12 * sum over c of  |W[:, c]|^2 / s[c]^2

so that every channel should be as large as its tensor's largest, s[c] = R / r[c]. The readers'
weights suffer, since a channel that was small and now weighs little must still be told from zero:

    sum over o of  d[o]^2 / 12 * sum over c of  E x[c]^2 s[c]^2,   d[o] = max |W[o, c] / s[c]| / 127

s[c] = (R / r[c])^a, with the a for all tensors that share channels that makes the sum of both the
least, relative to what the readers put out. Weights have a step for each output channel, so that
factors on what is made cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from edgekit.data.batches import Batches
from edgekit.models.model import Model, after_step, constant_of
from edgekit.quantize.observe import ObserveOptions, OpenSession, observe
from edgekit.quantize.ranging.histogram import Channels
from edgekit.quantize.refine.scales import (
    Scalable,
    find_scalable,
    read_ids,
    scaled,
    weight_by_input,
)
from edgekit.quantize.scheme import Placement, Scheme
from edgekit.values import Array, run

_EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
_MOST = 256.0  # a factor: a channel that is nearly dead need not become loud
_TINY = 1e-30


@dataclass(frozen=True, kw_only=True)
class EqualiseReport:
    """How many channels got a factor, and what that should gain.

    `exponents` has for the first tensor of each set that shares channels its a; `expected` the
    predicted error of the readers with factors over that without, the mean over sets. `residue` is
    the largest difference that the factors make to an output, relative to its largest value: what
    floating point rounds, and what a Clip cuts off.
    """

    channels: int
    exponents: Mapping[str, float]
    expected: float
    residue: float
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        return (
            f"{self.channels} channels of {sum(a > 0 for a in self.exponents.values())} sets of "
            f"tensors scaled, their readers' error expected at {self.expected:.2f} of what it was, "
            f"the outputs moved by {self.residue:.1e}"
        )


def equalise(
    model: Model, scheme: Scheme, batches: Batches, open_session: OpenSession,
    rescheme: Callable[[Model, Placement], Scheme],
) -> tuple[Model, Scheme, EqualiseReport]:  # fmt: skip
    """The Model with scaled channels, which computes the same in floating point, and its Scheme.

    `rescheme` observes a Model again and gives a Scheme of it with this placement. Channels that
    come to a Clip(0, m) are scaled at most until their largest observed value is m, and not at all
    where it is: on the samples nothing changes. Raises InputError as `observe` does.
    """
    scalable = find_scalable(model)
    read = [name for name in scheme.placement.reads if name in scalable.tracks]
    clipped = [name for name in scalable.limits if name not in read]
    options = ObserveOptions(channels=(*read, *clipped))
    ranges = observe(model, [*read, *clipped], batches, open_session, options=options)
    channels = {
        name: found.channels
        for name, found in ranges.tensors.items()
        if found.channels is not None and scalable.tracks[name].axis == 1
    }
    chosen = _Factors(model, scheme, scalable, channels)
    factors, exponents, expected = chosen.best()
    changed = after_step(model, scaled(model, scalable, factors).program, "equalise")
    report = EqualiseReport(
        channels=int((factors != 1).sum()), exponents=exponents, expected=expected,
        residue=_residue(model, changed, batches, open_session),
    )  # fmt: skip
    return changed, rescheme(changed, scheme.placement), report


@dataclass(frozen=True, kw_only=True)
class _Reader:
    """A weighted node that reads a tensor: |W|^2 summed over what each input channel makes, and
    the largest |W| for each made channel and read one, with the ids that these read.
    """

    energy: Array
    largest: Array
    ids: Array
    bits: int


class _Factors:
    """Chooses the factor of each class of channels."""

    def __init__(
        self, model: Model, scheme: Scheme, scalable: Scalable, channels: Mapping[str, Channels]
    ) -> None:
        self.scheme, self.scalable = scheme, scalable
        self.symmetric = scheme.dialect.symmetric
        self.channels = channels
        self.tensors = [name for name in scheme.placement.reads if name in channels]
        self.readers = self._find_readers(model)
        self.most = self._limits()

    def best(self) -> tuple[Array, dict[str, float], float]:
        """The factors by id, the exponent of each set of tensors, and the error to expect."""
        factors = np.ones(self.scalable.count)
        exponents: dict[str, float] = {}
        shares = []
        for tensors in self._sets():
            full = self._full(tensors)
            errors = [self._error(tensors, self._within(full**a)) for a in _EXPONENTS]
            which = int(np.argmin(errors))
            exponents[tensors[0]] = _EXPONENTS[which]
            shares.append(errors[which] / max(errors[0], _TINY))
            own = self._within(full ** _EXPONENTS[which])
            factors = np.where(own != 1, own, factors)
        return factors, exponents, float(np.mean(shares or [1.0]))

    def _find_readers(self, model: Model) -> dict[str, list[_Reader]]:
        found: dict[str, list[_Reader]] = {}
        for node in model.graph:
            name = node.name or ""
            place = self.scheme.placement.weights.get(name)
            if place is None or name not in self.scalable.reads:
                continue
            weight = constant_of(node.inputs[1])
            assert weight is not None
            found.setdefault(place.source, []).append(
                _reader(
                    node, weight, self.scalable.reads[name], self.scheme.weights[name].grid.bits
                )
            )
        return found

    def _range(self, name: str) -> Array:
        """How much of a grid each channel takes."""
        found = self.channels[name]
        if self.symmetric:
            return np.maximum(np.abs(found.low), np.abs(found.high))
        return np.maximum(found.high, 0) - np.minimum(found.low, 0)

    def _limits(self) -> Array:
        """The largest factor that each id may have."""
        most = np.full(self.scalable.count, _MOST)
        most[0] = 1
        for name, limit in self.scalable.limits.items():
            if name not in self.channels:
                most[self.scalable.tracks[name].ids] = 1
                continue
            high = self.channels[name].high
            room = np.where(high < limit, limit / np.maximum(high, limit / _MOST), 1.0)
            # A little less: what rounding adds must not come over the limit.
            np.minimum.at(most, self.scalable.tracks[name].ids, np.maximum(room * (1 - 1e-6), 1))
        return most

    def _sets(self) -> list[list[str]]:
        """The tensors by whether they share free channels, each set in the graph's order."""
        sets: list[tuple[set[int], list[str]]] = []
        for name in self.tensors:
            ids = set(self.scalable.tracks[name].ids.tolist()) - {0}
            if not ids:
                continue
            touching = [one for one in sets if one[0] & ids]
            names = [n for one in touching for n in one[1]]
            sets = [one for one in sets if one not in touching]
            sets.append((ids.union(*(one[0] for one in touching)), [*names, name]))
        return [names for _, names in sets]

    def _full(self, tensors: list[str]) -> Array:
        """R / r of each id, the geometric mean over the tensors in which it stands."""
        logs, count = np.zeros(self.scalable.count), np.zeros(self.scalable.count)
        for name in tensors:
            ids = self.scalable.tracks[name].ids
            own = self._range(name)
            largest = max(float(own.max()), _TINY)
            np.add.at(logs, ids, np.log(largest / np.maximum(own, largest / _MOST)))
            np.add.at(count, ids, 1)
        found: Array = np.exp(logs / np.maximum(count, 1))
        return found

    def _within(self, factors: Array) -> Array:
        return np.clip(factors, 1.0, self.most)

    def _error(self, tensors: list[str], factors: Array) -> float:
        """The error to expect at the readers' outputs, relative to these."""
        total = 0.0
        levels = 127 if self.symmetric else 255
        for name in tensors:
            own = factors[self.scalable.tracks[name].ids]
            step = float((self._range(name) * own).max()) / levels
            square = self.channels[name].mean_square
            if name not in self.readers:  # what reads it has no weights: each channel counts alike
                total += step**2 / 12 * float((1 / own**2).sum()) / (float(square.sum()) + _TINY)
            for reader in self.readers.get(name, []):
                signal = float((reader.energy * square).sum()) + _TINY
                rounding = step**2 / 12 * float((reader.energy / own**2).sum())
                at = factors[reader.ids]
                steps = (reader.largest / at).max(1) / (2 ** (reader.bits - 1) - 1)
                spread = _by_made(square * own**2, reader)
                weights = float((steps**2 / 12 * spread).sum())
                total += (rounding + weights) / signal
        return total


def _reader(node: ir.Node, weight: Array, ids: Array, bits: int) -> _Reader:
    turned = weight_by_input(node, weight).astype(np.float64)
    made, inputs = turned.shape[:2]
    taps = turned.reshape(made, inputs, -1)
    groups = len(ids) // inputs
    squares = (taps**2).sum(2).reshape(groups, -1, inputs).sum(1).reshape(-1)
    return _Reader(
        energy=squares, largest=np.abs(taps).max(2), ids=read_ids(node, ids, made), bits=bits
    )


def _by_made(numbers: Array, reader: _Reader) -> Array:
    """The sum over what each made channel reads of a number for each read channel."""
    made, inputs = reader.largest.shape
    groups = len(numbers) // inputs
    return np.repeat(numbers.reshape(groups, inputs).sum(1), made // groups)


def _residue(
    before: Model, after: Model, batches: Batches, open_session: OpenSession
) -> float:  # fmt: skip
    feeds = next(iter(batches)).inputs
    found = []
    for model in (before, after):
        with open_session(model) as session:
            found.append(run(session, feeds))
    worst = 0.0
    for name, wanted in found[0].items():
        off = np.abs(wanted.astype(np.float64) - found[1][name]).max(initial=0.0)
        worst = max(worst, float(off) / max(float(np.abs(wanted).max(initial=0.0)), _TINY))
    return worst
