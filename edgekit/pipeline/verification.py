"""The steps that ask models and engines for the evaluation samples, and compare the answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgekit.data.batches import Batches
from edgekit.data.metrics import Metric
from edgekit.engines import onnxruntime as reference_runtime
from edgekit.engines.base import runtime_module
from edgekit.engines.manifest import load_engine
from edgekit.pipeline.cache import Cache, Step, key_of, read_json, versions, write_json
from edgekit.pipeline.steps import REPORT_FILE, Source
from edgekit.pipeline.workshop import OnFraction
from edgekit.values import Array, Session
from edgekit.verify import outputs_of, to_json, verify

OUTPUTS_FILE = "outputs.npz"


def outputs_step(
    source: Source, batches: Batches, on_fraction: OnFraction, *, emulated: bool
) -> Step:
    """The outputs on the evaluation samples: through ONNX Runtime's kernels, or emulated.

    Emulated means graph optimisation off: Q/DQ in floating point, the quality of the quantization
    itself.
    """

    def make(folder: Path, partial: Path) -> None:
        del partial
        with reference_runtime.open_model(source.load(), optimise=not emulated) as session:
            through = "emulated" if emulated else "through the kernels"
            _ask(session, batches, folder, through, on_fraction)

    key = key_of(
        "outputs", source=source.key, data=batches.digest, emulated=emulated,
        versions=versions(["onnxruntime"]),
    )  # fmt: skip
    return Step(name="outputs", key=key, make=make)


def engine_outputs_step(
    cache: Cache, engine: Step, batches: Batches, on_fraction: OnFraction
) -> Step:
    """The outputs of an engine that this machine runs, on the evaluation samples."""

    def make(folder: Path, partial: Path) -> None:
        del partial
        built = load_engine(cache.entry(engine))
        with runtime_module(built.runtime).open(built) as session:
            _ask(session, batches, folder, "through the engine", on_fraction)

    key = key_of("outputs", engine=engine.key, data=batches.digest)
    return Step(name="outputs", key=key, make=make)


def _ask(
    session: Session, batches: Batches, folder: Path, through: str, on_fraction: OnFraction
) -> None:
    found, _ = outputs_of(session, batches, lambda done: on_fraction(done / batches.count, ""))
    with (folder / OUTPUTS_FILE).open("wb") as stream:
        np.savez(stream, **found)  # type: ignore[arg-type]
    write_json(folder / REPORT_FILE, {"said": f"{batches.count} samples, {through}"})


def verify_step(
    cache: Cache, reference: Step, candidate: Step, batches: Batches, metric: Metric
) -> Step:
    """Compares stored outputs with the original's, by the recipe's metric."""

    def make(folder: Path, partial: Path) -> None:
        del partial
        report = verify(
            load_outputs(cache, reference), load_outputs(cache, candidate), batches.labels, metric
        )
        write_json(folder / REPORT_FILE, to_json(report))

    key = key_of(
        "verify", reference=reference.key, candidate=candidate.key, data=batches.digest,
        metric=metric.digest,
    )  # fmt: skip
    return Step(name="verify", key=key, make=make)


def load_outputs(cache: Cache, step: Step) -> dict[str, Array]:
    """The arrays that an outputs step stored."""
    with np.load(cache.entry(step) / OUTPUTS_FILE, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def describe_metric(folder: Path) -> str:
    """The metric alone, in a line."""
    report = read_json(folder / REPORT_FILE)
    return f"{report['metric']} {report['after']:.4f}"


def describe_verify(folder: Path) -> str:
    """The metric before and after, in a line."""
    report = read_json(folder / REPORT_FILE)
    return f"{report['metric']} {report['before']:.4f} -> {report['after']:.4f}"
