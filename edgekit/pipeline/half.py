"""The float16 graph of a target whose runtime takes its types from the graph."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from edgekit.data.batches import Batches
from edgekit.engines import onnxruntime as reference_runtime
from edgekit.models.model import save
from edgekit.pipeline.cache import Step, key_of, versions, write_json
from edgekit.pipeline.steps import MODEL_FILE, REPORT_FILE, Source
from edgekit.pipeline.workshop import OnFraction
from edgekit.quantize.fp16 import Fp16Limits, to_fp16

_BATCH = 16


def half_step(source: Source, batches: Batches, on_fraction: OnFraction) -> Step:
    """Turns the graph to float16 where the samples show no harm; inputs and outputs stay float32.

    Its report has the reason of each node that stays in float32.
    """
    limits = Fp16Limits()

    def make(folder: Path, partial: Path) -> None:
        del partial
        on_fraction(0.0, "")
        model, report = to_fp16(
            source.load(), batches.with_batch_size(_BATCH), reference_runtime.open_model,
            limits=limits,
        )  # fmt: skip
        save(model, folder / MODEL_FILE)
        write_json(folder / REPORT_FILE, {**asdict(report), "said": str(report)})

    key = key_of(
        "fp16", source=source.key, data=batches.digest, limits=asdict(limits),
        versions=versions(["onnxruntime"]),
    )  # fmt: skip
    return Step(name="fp16", key=key, make=make)
