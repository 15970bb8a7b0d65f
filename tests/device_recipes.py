"""Device recipes of a small network, made without the pipeline before them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from edgekit import gate
from edgekit.engines.base import EngineRequest
from edgekit.engines.device_recipe.document import BenchPlan, DeviceRecipe, GoldenBatch
from edgekit.engines.device_recipe.writing import write_device_recipe
from edgekit.targets import Target, load_target
from edgekit.values import Array

ORIN = load_target("jetson-orin-nano-8gb")
NOT_MEASURED = {"unknown": "not measured here"}
FACTS = {
    "metric": 0.9, "macs": 1e6, "parameters": 1e4, "file_bytes": 4e4, "fps": NOT_MEASURED,
    "p50_ms": NOT_MEASURED, "p99_ms": NOT_MEASURED, "memory_bytes": NOT_MEASURED,
    "memory_is": "on the device",
}  # fmt: skip


def anonymous(target: Target = ORIN) -> Target:
    """A target that nothing recognises and that demands nothing: any machine may be one."""
    return target.model_copy(
        update={"identity": type(target.identity)(), "conditions": type(target.conditions)()}
    )


def golden_of(model: Path, inputs: Mapping[str, Array], batch: int) -> list[GoldenBatch]:
    """The model's answers, by plain onnxruntime."""
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    names = [spec.name for spec in session.get_outputs()]
    found = []
    for begin in range(0, len(next(iter(inputs.values()))), batch):
        feeds = {name: array[begin : begin + batch] for name, array in inputs.items()}
        answers = dict(zip(names, session.run(None, feeds), strict=True))
        found.append(GoldenBatch(inputs=feeds, outputs=answers))
    return found


def write(
    model: Path, folder: Path, inputs: Mapping[str, Array], *, target: Target = ORIN,
    limits: Mapping[str, float] | None = None, precision: str = "fp16", name: str = "net",
    original: Path | None = None, rounds: int = 2,
) -> DeviceRecipe:  # fmt: skip
    """A recipe for two samples at a time, measured in two rounds.

    An interval from so few is too wide to decide on what really varies.
    """
    request = EngineRequest(
        model_path=model, name=name, target=target, precision=precision, batch=(1, 2, 4)
    )
    evidence = gate.Evidence(estimates={"drop": gate.Estimate(value=0.0)}, on_device=False)
    return write_device_recipe(
        request, folder, golden=golden_of(model, inputs, 2), original=original,
        samples=len(next(iter(inputs.values()))),
        bench=BenchPlan(seconds=0.4, rounds=rounds, warmup_seconds=0.05),
        judging={
            "metric": "top1", "limits": dict(limits or {"min_fps": 10.0, "max_drop": 0.01}),
            "evidence": gate.evidence_to_json(evidence),
            "before": {"what": "original", **FACTS}, "after": {"what": precision, **FACTS},
        },
    )  # fmt: skip


def two_batches() -> Array:
    """(4, 3, 8, 8) float32 from a fixed seed."""
    return np.random.default_rng(7).normal(size=(4, 3, 8, 8)).astype(np.float32)
