"""What calibration learnt about each tensor, and the ways to choose a range from it.

A way to choose is one function from a `TensorRange` to the (low, high) that the integer grid must
cover; `CHOICES` names them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit import files
from edgekit.errors import InputError
from edgekit.values import Array

BINS = 4096


@dataclass(frozen=True, kw_only=True)
class TensorRange:
    """The exact minimum and maximum of a tensor, and its histogram over [-reach, reach].

    `counts` has `BINS` equal bins; `reach` is a power of two times the first batch's largest
    magnitude, so that every value lies inside.
    """

    low: float
    high: float
    reach: float
    counts: Array

    @property
    def edges(self) -> Array:
        """The `BINS + 1` borders of the bins."""
        return np.linspace(-self.reach, self.reach, len(self.counts) + 1)


@dataclass(frozen=True, kw_only=True)
class Ranges:
    """A `TensorRange` for each tensor by name, from `samples` samples."""

    tensors: Mapping[str, TensorRange]
    samples: int


Choice = Callable[[TensorRange], tuple[float, float]]


def minmax(observed: TensorRange) -> tuple[float, float]:
    """The exact minimum and maximum: nothing is clipped."""
    return observed.low, observed.high


def percentile(observed: TensorRange, percent: float = 99.999) -> tuple[float, float]:
    """The range that holds `percent` of the values; the rest is shared by the two tails.

    A side on which nothing lies (the negative one after a ReLU) clips nothing. The borders are
    those of the histogram's bins, never outside the exact minimum and maximum.
    """
    total = observed.counts.sum()
    one_sided = observed.low >= 0 or observed.high <= 0
    tail = total * (1 - percent / 100) / (1 if one_sided else 2)
    cumulative = np.cumsum(observed.counts)
    low, high = observed.low, observed.high
    if observed.low < 0:
        low = max(low, float(observed.edges[int(np.searchsorted(cumulative, tail, "right"))]))
    if observed.high > 0:
        last = int(np.searchsorted(cumulative, total - tail, "left"))
        high = min(high, float(observed.edges[min(last, len(observed.counts) - 1) + 1]))
    return low, high


CHOICES: Mapping[str, Callable[..., tuple[float, float]]] = {
    "minmax": minmax,
    "percentile": percentile,
}


def choice(name: str, *, percent: float) -> Choice:
    """The function of that name, with its option bound. Raises InputError for an unknown name."""
    if name not in CHOICES:
        raise InputError(
            f'there is no way called "{name}" to choose a range',
            where="quantize.ranges",
            wanted=", ".join(CHOICES),
        )
    if name == "percentile":
        return lambda observed: percentile(observed, percent)
    return CHOICES[name]


def save_ranges(ranges: Ranges, path: Path) -> None:
    """Writes one npz: a row of numbers and a histogram for each tensor."""
    names = list(ranges.tensors)
    found = ranges.tensors.values()
    with files.replacing(path) as partial, partial.open("wb") as stream:
        np.savez_compressed(
            stream,
            names=np.array(json.dumps(names)),
            samples=np.array(ranges.samples),
            numbers=np.array([(t.low, t.high, t.reach) for t in found], np.float64).reshape(-1, 3),
            counts=np.array([t.counts for t in found], np.int64).reshape(len(names), -1),
        )


def load_ranges(path: Path) -> Ranges:
    """What `save_ranges` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        names = json.loads(str(stored["names"]))
        rows = zip(names, stored["numbers"], stored["counts"], strict=True)
        tensors = {
            name: TensorRange(low=float(low), high=float(high), reach=float(reach), counts=counts)
            for name, (low, high, reach), counts in rows
        }
        return Ranges(tensors=tensors, samples=int(stored["samples"]))
