"""One pass over unlabelled batches that learns every tensor's range, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

import numpy as np
import onnx_ir as ir

from edgekit.errors import InputError
from edgekit.models.model import Model, after_step, editable
from edgekit.quantize.ranges import BINS, Ranges, TensorRange
from edgekit.values import Array, Batch, Session, run

_SMALLEST_REACH = 1e-30  # of a tensor of zeros

OpenSession = Callable[[Model], AbstractContextManager[Session]]


def tap(model: Model, names: Sequence[str]) -> Model:
    """The Model with the named values as further outputs."""
    program = editable(model)
    graph = program.graph
    present = {output.name for output in graph.outputs}
    values = {value.name: value for node in graph for value in node.outputs}
    graph.outputs.extend(values[name] for name in names if name not in present)
    return after_step(model, program, "tap")


def observe(
    model: Model,
    names: Iterable[str],
    batches: Iterable[Batch],
    open_session: OpenSession,
    *,
    on_batch: Callable[[int], None] = lambda samples: None,
) -> Ranges:
    """The range of each named tensor over the batches: graph inputs and inner values.

    A tensor's memory is one histogram, whatever the number of samples: only one batch's
    activations are alive at a time. `on_batch` hears how many samples are done.

    Raises InputError where there is no sample, or where a tensor becomes NaN or infinite.
    """
    wanted = list(dict.fromkeys(names))
    inputs = {spec.name for spec in model.inputs}
    growing: dict[str, _GrowingHistogram] = {name: _GrowingHistogram(name) for name in wanted}
    samples = 0
    with open_session(tap(model, [name for name in wanted if name not in inputs])) as session:
        for batch in batches:
            found = run(session, batch.inputs)
            for name in wanted:
                growing[name].add(batch.inputs[name] if name in inputs else found[name])
            samples += len(batch)
            on_batch(samples)
    if not samples:
        raise InputError(
            "there is no sample to calibrate with", where="data.calibration",
            hint="Name unlabelled samples of what the device will see; a few hundred will do.",
        )  # fmt: skip
    return Ranges(tensors={name: g.finished() for name, g in growing.items()}, samples=samples)


class _GrowingHistogram:
    """Counts over [-reach, reach]; a value outside doubles the reach, merging bins in pairs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.low, self.high = np.inf, -np.inf
        self.reach = 0.0
        self.counts: Array = np.zeros(BINS, np.int64)

    def add(self, values: Array) -> None:
        values = np.ascontiguousarray(values, np.float32).reshape(-1)
        low, high = float(values.min()), float(values.max())
        if not np.isfinite(low + high):
            raise InputError(
                f'the tensor "{self.name}" becomes NaN or infinite on the calibration samples',
                where="quantize", hint="Look for an overflow in the model, or for a bad sample.",
            )  # fmt: skip
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._reach_to(max(abs(low), abs(high)))
        # The bin of x is floor((x + reach) * BINS / (2 reach)); x = reach goes to the last one.
        bins = values * np.float32(BINS / (2 * self.reach))
        bins += np.float32(BINS / 2)
        indices = bins.astype(np.int32)
        np.minimum(indices, BINS - 1, out=indices)
        self.counts += np.bincount(indices, minlength=BINS)

    def _reach_to(self, magnitude: float) -> None:
        if not self.reach:
            self.reach = max(magnitude, _SMALLEST_REACH)
        while magnitude > self.reach:
            pairs = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.zeros(BINS, np.int64)
            self.counts[BINS // 4 : BINS // 4 + BINS // 2] = pairs
            self.reach *= 2

    def finished(self) -> TensorRange:
        return TensorRange(low=self.low, high=self.high, reach=self.reach, counts=self.counts)


def float_activations(model: Model) -> list[str]:
    """The floating-point graph inputs and node outputs, by name: all that may want a range."""
    values = [*model.graph.inputs, *(o for node in model.graph for o in node.outputs)]
    return [v.name for v in values if v.name and v.dtype in (ir.DataType.FLOAT, None)]
