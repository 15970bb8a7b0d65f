"""Whether two ways to run one model give the same outputs, on a batch that it is built for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgekit.engines.base import Extent
from edgekit.values import Array, Feeds, TensorSpec


def comparison_feeds(
    inputs: Sequence[TensorSpec], extents: Mapping[str, Extent], sample: Feeds | None
) -> dict[str, Array]:
    """A batch of the size to optimise for: from the sample, else standard normal, seed 0."""
    noise = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for spec in inputs:
        shape = extents[spec.name][1]
        if sample is not None and spec.name in sample:
            rows = np.resize(np.arange(len(sample[spec.name])), shape[0])
            feeds[spec.name] = sample[spec.name][rows]
        elif np.dtype(spec.dtype).kind == "f":
            feeds[spec.name] = noise.standard_normal(shape).astype(spec.dtype)
        else:
            feeds[spec.name] = np.ones(shape, spec.dtype)
    return feeds


def relative_error(found: Mapping[str, Array], wanted: Mapping[str, Array]) -> float:
    """max|a - b| / max|b| over the outputs; 0 where all of b is 0 and a equals it.

    Where an output is not finite on one side alone it is the largest number that there is.
    """
    worst = 0.0
    largest_of_all = float(np.finfo(np.float64).max)
    for name, reference in wanted.items():
        if np.array_equal(found[name], reference, equal_nan=reference.dtype.kind == "f"):
            continue
        if found[name].shape != reference.shape:
            return largest_of_all
        b = reference.astype(np.float64)
        largest = float(np.abs(found[name].astype(np.float64) - b).max())
        scale = float(np.abs(b).max())
        error = largest / scale if scale else largest_of_all
        worst = max(worst, error) if np.isfinite(error) else largest_of_all
    return worst


def identical(found: Mapping[str, Array], wanted: Mapping[str, Array]) -> bool:
    """Whether every output is the same to the last bit."""
    return all(
        found[name].shape == array.shape and found[name].tobytes() == array.tobytes()
        for name, array in wanted.items()
    )
