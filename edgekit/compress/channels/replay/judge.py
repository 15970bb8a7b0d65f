"""What a network's outputs lose when something is taken from it, on the same samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from edgekit.compress.channels.replay.shelf import Shelf
from edgekit.compress.channels.replay.timeline import OpenModel
from edgekit.data.metrics import Metric
from edgekit.errors import InputError
from edgekit.models.model import Model
from edgekit.values import Array, Batch, Feeds, run

_LEAST_SAMPLES = 64  # a standard error of fewer is not to be relied on


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What was lost, seen on so many `samples`.

    `damage` is sum((a - b)^2) / sum(b^2) against the original's outputs b, the mean over the
    outputs, and `doubt` its standard error. `agreement` is None where the first output is not
    (n, classes), `metric` where none is asked.
    """

    damage: float
    doubt: float
    samples: int
    agreement: float | None
    metric: float | None


class Judge:
    """The original's outputs on all samples, to hold others against; a context manager."""

    def __init__(
        self, model: Model, batches: Sequence[Batch], open_model: OpenModel, tolerance: float
    ) -> None:
        self._tolerance = tolerance
        self._labels = [batch.labels for batch in batches]
        self._samples = sum(map(len, batches))
        signal: dict[str, float] = {}
        with ExitStack() as stack:
            self._shelf = stack.enter_context(Shelf())
            with open_model(model) as session:
                for batch in batches:
                    outputs = run(session, batch.inputs)
                    self._shelf.put(outputs)
                    for name, array in outputs.items():
                        _refuse_others(name, array, len(batch))
                        signal[name] = signal.get(name, 0.0) + float(_signal(array).sum())
            for name, energy in signal.items():
                _refuse_nothing(name, energy)
            stack.pop_all()
        first = model.outputs[0]
        self._first = first.name
        self._classifies = len(first.shape) == 2 and first.shape[1] != 1
        self._metric: Metric | None = None
        self.before: float | None = None

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *raised: object) -> None:
        self._shelf.close()

    def ask(self, metric: Metric) -> None:
        """Wants this metric of every loss too, of all samples. Raises InputError as it does."""
        self._metric = metric
        self.before = self._score(self._shelf)

    def nothing_lost(self) -> Loss:
        """The loss of the original itself."""
        agreement = 1.0 if self._classifies else None
        return Loss(
            damage=0.0, doubt=0.0, samples=self._samples, agreement=agreement, metric=self.before
        )

    def loss(self, outputs: Iterable[Feeds], *, where: str) -> Loss:
        """What the outputs have lost, batch by batch of the samples.

        Without a metric it ends as soon as the damage is known to the tolerance: its standard
        error, as a share of it. Raises InputError where they have another shape, or NaN.
        """
        noises: dict[str, list[Array]] = {}
        signals: dict[str, list[Array]] = {}
        alike = samples = 0
        damage = doubt = 0.0
        kept: list[Feeds] = []
        for found, wanted in zip(outputs, self._shelf, strict=False):
            for name, expected in wanted.items():
                noises.setdefault(name, []).append(_noise(found[name], expected, name, where))
                signals.setdefault(name, []).append(_signal(expected))
            samples += len(wanted[self._first])
            if self._classifies:
                alike += int((found[self._first].argmax(1) == wanted[self._first].argmax(1)).sum())
            ratios = [_ratio(np.concatenate(noises[n]), np.concatenate(signals[n])) for n in noises]
            damage, doubt = (float(np.mean(part)) for part in zip(*ratios, strict=True))
            if self._metric is not None:
                kept.append(found)
            elif samples >= _LEAST_SAMPLES and doubt <= self._tolerance * damage:
                break
        return Loss(
            damage=damage, doubt=doubt, samples=samples,
            agreement=alike / samples if self._classifies else None,
            metric=self._score(kept) if self._metric is not None else None,
        )  # fmt: skip

    def _score(self, outputs: Iterable[Feeds]) -> float:
        assert self._metric is not None
        labels = [one for one in self._labels if one is not None]
        return self._metric(
            _joined(outputs), np.concatenate(labels) if labels else None, _joined(self._shelf)
        )


def _refuse_others(name: str, array: Array, samples: int) -> None:
    if not array.ndim or len(array) != samples:
        raise InputError(
            f'the first axis of the output "{name}" is not the samples',
            got=f"shape {array.shape} for {samples} samples",
            wanted="one row of outputs for each sample",
            hint="Cut the graph before it picks among its results (a NonMaxSuppression).",
        )  # fmt: skip


def _refuse_nothing(name: str, energy: float) -> None:
    if not math.isfinite(energy) or not energy:
        raise InputError(
            f'the loss of the output "{name}" cannot be told',
            got="zeros on every sample" if not energy else "NaN or infinite values",
            wanted="finite outputs that are not all 0",
            hint="Look at the data and its preprocessing.",
        )  # fmt: skip


def _ratio(noise: Array, signal: Array) -> tuple[float, float]:
    """sum(noise) / sum(signal) of samples (n,), and its standard error.

    R = sum(y) / sum(x), se(R) = sqrt(sum((y - R x)^2) / (n (n - 1))) / mean(x): Cochran, "Sampling
    Techniques", 3rd ed. 1977, section 2.11.
    """
    total = float(signal.sum())
    if not total:
        return 0.0, math.inf if noise.any() else 0.0
    ratio = float(noise.sum()) / total
    count = len(noise)
    if count < 2:
        return ratio, math.inf
    spread = float(((noise - ratio * signal) ** 2).sum()) / (count * (count - 1))
    return ratio, math.sqrt(spread) / (total / count)


def _signal(expected: Array) -> Array:
    """Of each sample sum(b^2) of real numbers; the number of entries of others."""
    rows = expected.reshape(len(expected), -1)
    if expected.dtype.kind != "f":
        return np.full(len(rows), float(rows.shape[1]))
    energies: Array = (rows.astype(np.float64) ** 2).sum(1)
    return energies


def _noise(found: Array, expected: Array, name: str, where: str) -> Array:
    """Of each sample sum((a - b)^2) of real numbers; how many differ of others."""
    if found.shape != expected.shape:
        raise InputError(
            f'the shape of the output "{name}" follows the data', where=where,
            got=f"{found.shape} instead of {expected.shape}",
            hint="Cut the graph before it picks among its results (a NonMaxSuppression, a TopK).",
        )  # fmt: skip
    rows, others = (one.reshape(len(one), -1) for one in (found, expected))
    if expected.dtype.kind != "f":
        differ: Array = (rows != others).sum(1)
        return differ.astype(np.float64)
    energies: Array = ((rows.astype(np.float64) - others) ** 2).sum(1)
    if not np.isfinite(energies).all():
        raise InputError(
            f'the output "{name}" becomes NaN or infinite without some channels', where=where,
            hint="Something divides by what these channels hold; leave them whole.",
        )  # fmt: skip
    return energies


def _joined(outputs: Iterable[Feeds]) -> dict[str, Array]:
    found: dict[str, list[Array]] = {}
    for one in outputs:
        for name, array in one.items():
            found.setdefault(name, []).append(array)
    return {name: np.concatenate(arrays) for name, arrays in found.items()}
