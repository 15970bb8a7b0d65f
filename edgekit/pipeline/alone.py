"""One step alone, on files that a user names: what the verbs beside `build` call."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgekit import files, gate
from edgekit.bench import statistics
from edgekit.bench.measurement import save_measurements
from edgekit.bench.runner import measure_side_by_side
from edgekit.bench.workload import Arm
from edgekit.compress.channels.cut import cut_channels
from edgekit.data.batches import load_batches
from edgekit.data.metrics import load_metric
from edgekit.engines import onnxruntime
from edgekit.engines.base import load_engine
from edgekit.errors import InputError
from edgekit.models.model import save
from edgekit.models.simplify import clean
from edgekit.models.source import load
from edgekit.pipeline.publish import EVIDENCE_FILE, EVIDENCE_FORMAT
from edgekit.recipe import load_recipe
from edgekit.targets import preferred_multiple, resolve_target
from edgekit.values import Figure, Unknown, figure_to_json
from edgekit.verify import outputs_of, to_json, verify

_BATCH = 100


def cut_file(model: Path, *, macs: float, targets: tuple[str, ...], out: Path) -> dict[str, Any]:
    """Cuts a model to a share of its MACs; the plan lands beside it as `NAME.plan.json`."""
    loaded = clean(load(model))
    multiples = [
        max(preferred_multiple(t, p) for p in t.precisions)
        for t in (resolve_target(name).target for name in targets)
    ]
    cut, report = cut_channels(loaded, macs=macs, multiple=max(multiples, default=8))
    plan = out.with_suffix(".plan.json")
    files.write_text(plan, report.plan.to_json())
    save(cut, out)
    return {**report.to_json(), "model": str(out), "plan": str(plan)}


def verify_files(
    reference: Path, candidate: Path, *, data: str, recipe: Path | None, metric: str | None
) -> dict[str, Any]:
    """Compares two models on the same samples; preprocessing and metric come from the recipe."""
    wanted = load_recipe(recipe) if recipe is not None else None
    preprocessing = wanted.preprocessing if wanted is not None else None
    first, second = (clean(load(p, preprocessing=preprocessing)) for p in (reference, candidate))
    if (first.inputs, first.outputs) != (second.inputs, second.outputs):
        raise InputError(
            "the two models do not have the same inputs and outputs",
            got=", ".join(map(str, (*second.inputs, *second.outputs))),
            wanted=", ".join(map(str, (*first.inputs, *first.outputs))),
        )  # fmt: skip
    batches = load_batches(
        data, folder=Path(), inputs=first.inputs, preprocessing=first.preprocessing,
        batch_size=_BATCH, role="evaluation",
    )  # fmt: skip
    named = metric or (wanted.evaluate.metric if wanted is not None else "")
    score = load_metric(named or ("top1" if batches.labels is not None else "fidelity"), Path())
    found = []
    for model in (first, second):
        with onnxruntime.open_model(model) as session:
            found.append(outputs_of(session, batches))
    (expected, labels), (outputs, _) = found
    return to_json(verify(expected, outputs, labels, score))


def bench_engine(
    folder: Path, *, data: str | None, seconds: float, out: Path | None
) -> dict[str, Any]:
    """Measures an engine on this machine and writes the raw samples where it is told to."""
    engine = load_engine(folder)
    if data is None:
        raise InputError(
            "a measurement needs real inputs", where=str(folder),
            hint="Name some: --data evaluation.npz, an array for each input of the engine.",
        )  # fmt: skip
    batches = load_batches(
        data, folder=Path(), inputs=engine.inputs, preprocessing=_preprocessing(folder),
        batch_size=64, role="bench",
    )  # fmt: skip
    inputs = next(iter(batches)).inputs
    (measured,) = measure_side_by_side(
        [Arm(name=engine.precision, engine=engine, inputs=inputs)], seconds=seconds, rounds=5
    )
    if out is not None:
        save_measurements([measured], out)
    rate = statistics.fps(measured)
    return {
        "engine": str(engine.path),
        "fps": rate.value,
        "fps_interval": None if isinstance(rate.interval, Unknown) else list(rate.interval),
        **{
            f"p{percent}_ms": 1e3 * statistics.percentile(measured.samples, percent)
            for percent in (50, 90, 99)
        },
        "calls": len(measured.samples),
        "figures": {name: figure_to_json(value) for name, value in measured.figures.items()},
        "conditions": dict(measured.conditions),
        "doubts": list(measured.doubts),
    }


def _preprocessing(folder: Path) -> Any:
    """What the model beside an engine says of its pixels; None where there is no such model."""
    place = (folder if folder.is_dir() else folder.parent).parent / "model.onnx"
    return load(place).preprocessing if place.is_file() else None


def gate_file(path: Path) -> gate.Decision:
    """Decides on the evidence that a build left, as old as it is now.

    Raises InputError where there is none, or where it is of another version.
    """
    place = path / EVIDENCE_FILE if path.is_dir() else path
    try:
        stored: Mapping[str, Any] = json.loads(place.read_text())
        if stored["format"] != EVIDENCE_FORMAT:
            raise InputError(
                "this evidence is of another version", where=str(place),
                got=str(stored["format"]), wanted=str(EVIDENCE_FORMAT),
            )  # fmt: skip
        evidence = gate.evidence_from_json(stored["evidence"])
        limits = {str(name): float(limit) for name, limit in stored["limits"].items()}
        taken_at = float(stored["taken_at"])
    except FileNotFoundError as error:
        raise InputError(
            "there is no evidence here", where=str(place),
            hint="Name a target's folder of a build: build/MODEL/TARGET.",
        ) from error  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            "this evidence cannot be read", where=str(place), got=f"{type(error).__name__}: {error}"
        ) from error
    age: Figure = time.time() - taken_at if evidence.on_device else evidence.age_s
    return gate.decide(replace(evidence, age_s=age), limits)
