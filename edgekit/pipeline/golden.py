"""Golden inputs and answers for a device, and how near an engine comes to them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit import gate
from edgekit.data.batches import Batches
from edgekit.engines import onnxruntime
from edgekit.engines.device_recipe.document import GoldenBatch, Tolerance
from edgekit.errors import InputError
from edgekit.models.model import Model
from edgekit.pipeline.blame import GOLDEN, Apart, PartApart, Stage, stages_from_json
from edgekit.values import (
    Array,
    Figure,
    Unknown,
    figure_to_json,
    run,
)

MOST_SAMPLES = 16
_MOST_BYTES = 32 << 20  # of inputs: what is copied to a device may be copied over a slow line


@dataclass(frozen=True, kw_only=True)
class GoldenReport:
    """How near an engine's answers are to the golden ones, by the output that is farthest.

    `relative_error` is max|a - b| / max|b|, `cosine` that of all answers as one vector, `top1` the
    share of samples with the same largest class, unknown where no output is (samples, classes).
    `sqnr_db` has 10 log10(sum b^2 / sum (a - b)^2) of each output.
    """

    relative_error: float
    cosine: float
    top1: Figure
    samples: int
    farthest: str
    sqnr_db: Mapping[str, Figure]

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "relative_error": self.relative_error, "cosine": self.cosine,
            "top1": figure_to_json(self.top1), "samples": self.samples,
            "farthest": self.farthest,
            "sqnr_db": {name: figure_to_json(value) for name, value in self.sqnr_db.items()},
        }  # fmt: skip


def golden_batches(
    model: Model, samples: Batches, batch: int
) -> tuple[tuple[GoldenBatch, ...], int]:  # fmt: skip
    """Batches of real inputs with the model's answers, and how many samples are different ones.

    The model runs operator by operator, with nothing fused. Evenly spaced samples, as many as fit
    in 32 MB and at most 16, but for a batch that is larger; the last batch is filled up.
    """
    one = next(iter(samples.take(1))).inputs
    size = sum(array[:1].nbytes for array in one.values())
    count = max(1, min(MOST_SAMPLES, samples.count, _MOST_BYTES // max(1, size)))
    chosen = next(iter(samples.take(count).with_batch_size(count))).inputs
    order = np.resize(np.arange(count), max(batch, -(-count // batch) * batch)).reshape(-1, batch)
    found = []
    with onnxruntime.open_model(model, optimise=False) as session:
        for rows in order:
            feeds = {name: np.ascontiguousarray(array[rows]) for name, array in chosen.items()}
            found.append(GoldenBatch(inputs=feeds, outputs=run(session, feeds)))
    return tuple(found), count


def compare(
    golden: Sequence[GoldenBatch], answers: Sequence[Mapping[str, Array]], samples: int
) -> GoldenReport:  # fmt: skip
    """The report on an engine's answers to each golden batch.

    Raises InputError where they are not the model's outputs, or of another shape, or NaN.
    """
    worst, cosine, farthest = -1.0, 1.0, ""
    shares: list[float] = []
    noise: dict[str, Figure] = {}
    for name in golden[0].outputs:
        expected = [one.outputs[name].astype(np.float64) for one in golden]
        found = [_answer(name, one, answer) for one, answer in zip(golden, answers, strict=True)]
        a, b = (np.concatenate([part.ravel() for part in parts]) for parts in (found, expected))
        top = float(np.abs(b).max(initial=0.0)) or 1.0
        error = float(np.abs(a - b).max(initial=0.0)) / top
        if error > worst:
            worst, farthest = error, name
        cosine = min(cosine, _cosine(a, b))
        noise[name] = _decibels(a, b)
        if expected[0].ndim == 2 and expected[0].shape[1] > 1:
            same = [
                x.argmax(1) == y.argmax(1) for x, y in zip(found, expected, strict=True)
            ]  # fmt: skip
            shares.append(float(np.concatenate(same)[:samples].mean()))
    return GoldenReport(
        relative_error=worst,
        cosine=cosine,
        top1=min(shares) if shares else Unknown("no output is (samples, classes)"),
        samples=samples,
        farthest=farthest,
        sqnr_db=noise,
    )


def _answer(name: str, golden: GoldenBatch, answer: Mapping[str, Array]) -> Array:
    wanted = golden.outputs[name]
    found = answer.get(name)
    if found is None or found.shape != wanted.shape:
        got = f"outputs {', '.join(answer)}" if found is None else f"shape {found.shape}"
        raise InputError(
            f'the engine does not answer with the model\'s output "{name}"',
            got=got, wanted=f"shape {wanted.shape}",
        )  # fmt: skip
    if not np.isfinite(found.astype(np.float64)).all():
        raise InputError(
            f'the output "{name}" of the engine becomes NaN or infinite on golden inputs',
            got=f"{int((~np.isfinite(found.astype(np.float64))).sum())} values of {found.size}",
            hint="The engine overflows: keep the layers before it in a wider type.",
        )  # fmt: skip
    return found.astype(np.float64)


def _cosine(a: Array, b: Array) -> float:
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    if lengths == 0:
        return 1.0 if np.array_equal(a, b) else 0.0
    return float(np.dot(a, b)) / lengths


def _decibels(a: Array, b: Array) -> Figure:
    lost, signal = float(np.square(a - b).sum()), float(np.square(b).sum())
    if not lost:
        return Unknown("identical")
    return 10 * math.log10(signal / lost) if signal else Unknown("zeros on every sample")


def stages_with(stored: Mapping[str, Any] | None, report: GoldenReport | None) -> tuple[Stage, ...]:
    """What each step lost on the host, and then what the engine did on the device.

    `stored` is what the host wrote (`stages_to_json`), `report` None where nobody ran the engine.
    The engine is beside the graph that it was built from; the metric is not known there.
    """
    stages = () if stored is None else stages_from_json(stored)
    if report is None:
        return stages
    apart = Apart(
        agreement=report.top1,
        relative_error=report.relative_error,
        parts=tuple(
            PartApart(output=name, part=name, sqnr_db=value)
            for name, value in report.sqnr_db.items()
        ),
    )
    return (
        *stages,
        Stage(
            step=GOLDEN, through="golden answers", samples=report.samples,
            metric=Unknown("golden inputs only"), last=apart, first=None,
        ),
    )  # fmt: skip


def golden_limits(report: GoldenReport, tolerance: Tolerance) -> dict[str, float]:
    """The gate's limits on the figures that there are: the engine computes what the model does."""
    limits = {
        "max_golden_error": tolerance.max_relative_error,
        "min_golden_cosine": tolerance.min_cosine,
    }
    if not isinstance(report.top1, Unknown):
        limits["min_golden_top1"] = tolerance.min_top1
    return limits


def golden_estimates(report: GoldenReport) -> dict[str, gate.Estimate]:
    """The figures as the gate sees them: exact, on these inputs."""
    found: dict[str, Figure] = {
        "golden_error": report.relative_error, "golden_cosine": report.cosine,
        "golden_top1": report.top1,
    }  # fmt: skip
    return {name: gate.Estimate(value=value) for name, value in found.items()}
