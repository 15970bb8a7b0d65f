"""Where a table is measured: what makes a graph ready for it, and the whole network's latency."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit.bench import statistics
from edgekit.bench.layers import LayerPlan, Prepare
from edgekit.bench.runner import measure_side_by_side
from edgekit.bench.workload import Arm
from edgekit.engines import onnxruntime
from edgekit.engines.base import EngineRequest, runtime_module
from edgekit.errors import InputError
from edgekit.models.model import Model, save
from edgekit.models.simplify import fold_batchnorm
from edgekit.pipeline.quantization import dialect_of
from edgekit.pipeline.result import OnEvent, StepEvent
from edgekit.quantize.observe import float_activations, observe
from edgekit.quantize.ranges import minmax
from edgekit.quantize.write import insert_qdq
from edgekit.targets import Precision, Target
from edgekit.values import Array, Batch

_SECONDS, _ROUNDS, _SAMPLES = 2.0, 8, 16


@dataclass(frozen=True, kw_only=True)
class Device:
    """Where layers are measured, at what precision, and how long.

    `prepare` makes a floating-point graph ready for it.
    """

    target: Target
    precision: Precision
    plan: LayerPlan
    prepare: Prepare


def device_of(target: Target, precision: Precision, plan: LayerPlan) -> Device:
    """The Device. Raises InputError for a precision that it does not have, or not here."""
    return Device(
        target=target, precision=precision, plan=plan, prepare=_preparing(precision, target)
    )


def _preparing(precision: Precision, target: Target) -> Prepare:
    """What brings a graph to a precision; for INT8 the ranges are those of seeded noise.

    Time does not depend on the ranges' values. Raises InputError for a precision that the target
    does not have, or that nobody can measure here.
    """
    if precision not in target.precisions or precision == "fp16":
        raise InputError(
            f"layers cannot be measured in {precision} there", where=target.name,
            wanted=", ".join(p for p in target.precisions if p != "fp16"),
        )  # fmt: skip
    if precision == "fp32":
        return lambda model: model
    dialect = dialect_of(target)

    def quantized(model: Model) -> Model:
        folded, _ = fold_batchnorm(model)
        batches = [Batch(inputs=_noise(folded, 2))]
        ranges = observe(folded, float_activations(folded), batches, onnxruntime.open_model)
        return insert_qdq(folded, ranges, dialect, minmax)[0]

    return quantized


def whole_latency(
    model: Model, device: Device, batch: int, on_event: OnEvent
) -> tuple[float, tuple[str, ...]]:
    """The median latency of the whole network in seconds, as `edgekit bench` does, and doubts."""
    model, target, threads = device.prepare(model), device.target, device.plan.threads
    runtime = runtime_module(target.runtime.name)
    inputs = _noise(model, max(batch, _SAMPLES))

    def on_progress(fraction: float, said: str) -> None:
        on_event(
            StepEvent(
                step="whole network", target=target.name, state="progress", fraction=fraction,
                said=said,
            )
        )  # fmt: skip

    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        place = Path(folder, "model.onnx")
        save(model, place)
        engine = runtime.build(
            EngineRequest(
                model_path=place, name=model.name, target=target, precision=device.precision,
                batch=(batch,) * 3, threads=threads,
            ),
            Path(folder, "engine"),
        )  # fmt: skip
        (measured,) = measure_side_by_side(
            [Arm(name="whole", engine=engine, inputs=inputs, batch=batch, threads=threads)],
            seconds=_SECONDS, rounds=_ROUNDS, on_progress=on_progress,
        )  # fmt: skip
    return statistics.percentile(measured.samples, 50), measured.doubts


def _noise(model: Model, samples: int) -> dict[str, Array]:
    """Standard normal inputs, or as many as a fixed batch has."""
    rng = np.random.default_rng(0)
    found = {}
    for spec in model.inputs:
        first = spec.shape[0]
        rows = first if isinstance(first, int) else samples
        noise = rng.standard_normal((rows, *_inner(spec.name, spec.shape)))
        found[spec.name] = noise.astype(spec.dtype)
    return found


def _inner(name: str, shape: Sequence[int | str]) -> tuple[int, ...]:
    open_sizes = [size for size in shape[1:] if not isinstance(size, int)]
    if open_sizes:
        raise InputError(
            f'the input "{name}" has sizes that nobody gave', got=", ".join(map(str, open_sizes)),
            hint="Export the model with fixed sizes but for the batch.",
        )  # fmt: skip
    return tuple(int(size) for size in shape[1:])
