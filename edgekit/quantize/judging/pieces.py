"""Batches cut so small that what is looked at of one of them fits in the memory."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator

from edgekit.models.cost.sizes import forms, sizes_of
from edgekit.models.model import Model
from edgekit.values import Batch, Unknown

MOST_BYTES = 2**26
"""Of the tensors that are looked at, in floating point; several copies of them are alive."""


def in_pieces(
    model: Model, names: Collection[str], batches: Iterable[Batch], *, most_bytes: int = MOST_BYTES
) -> Iterator[Batch]:
    """The same samples in batches whose named tensors take at most so many bytes, or in ones.

    A Model of a fixed batch gets what it was given.
    """
    samples = _samples(model, names, most_bytes)
    for batch in batches:
        if not samples or len(batch) <= samples:
            yield batch
            continue
        for begin in range(0, len(batch), samples):
            piece = slice(begin, begin + samples)
            yield Batch(
                inputs={name: array[piece] for name, array in batch.inputs.items()},
                labels=None if batch.labels is None else batch.labels[piece],
            )


def _samples(model: Model, names: Collection[str], most_bytes: int) -> int:
    """How many samples may run together; 0 where the model decides."""
    if any(not spec.shape or isinstance(spec.shape[0], int) for spec in model.inputs):
        return 0
    known = forms(model, batch=1)
    wanted = set(names)
    total = 0
    for node in model.graph:
        for value in node.outputs:
            if value.name in wanted:
                sizes = sizes_of(value, known)
                total += 0 if isinstance(sizes, Unknown) else 4 * math.prod(sizes)
    return max(1, most_bytes // max(total, 1))
