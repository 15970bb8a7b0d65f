"""`edgekit quantize`: a model's file in, a file with INT8 (or FP16) for one target out."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgekit import files
from edgekit.data.batches import Batches, load_batches
from edgekit.data.metrics import load_metric
from edgekit.errors import InputError
from edgekit.models.model import Model, digest
from edgekit.models.simplify import clean
from edgekit.pipeline import steps
from edgekit.pipeline.cache import Cache, read_json, write_json
from edgekit.pipeline.floor import FloorAsked
from edgekit.pipeline.half import half_step
from edgekit.pipeline.origin import Origin, open_origin
from edgekit.pipeline.quantization import Job, dialect_of
from edgekit.pipeline.result import OnEvent
from edgekit.pipeline.steps import Source
from edgekit.pipeline.workshop import Workshop
from edgekit.quantize.dialects import dialect_named
from edgekit.recipe import QuantizeSection, load_recipe
from edgekit.recipe_sections import read_section
from edgekit.targets import Target, resolve_target

_BATCH = 32
NOT_MET = 1
"""The exit code where the floor is not met; the best that was found is written all the same."""


@dataclass(frozen=True, kw_only=True)
class QuantizeRequest:
    """What `edgekit quantize` is asked for.

    `dialect` is another one than the target's, by name. `settings` are keys of a recipe's
    `[quantize]`; they win over those of `recipe`, whose preprocessing and metric are used too.
    `evaluation` are samples for `max_drop`, those of `data` where there are none; `report` is where
    everything that was found is written. `cache` None is the user's.
    """

    origin: Origin
    data: str
    out: Path
    target: str = "cpu"
    dialect: str = ""
    precision: Literal["int8", "fp16"] = "int8"
    recipe: Path | None = None
    evaluation: str = ""
    metric: str = ""
    settings: dict[str, object] = field(default_factory=dict)
    report: Path | None = None
    cache: Path | None = None


@dataclass(frozen=True, kw_only=True)
class QuantizedFile:
    """What was written, and the code to leave with."""

    document: dict[str, Any]
    exit_code: int


def quantize_file(request: QuantizeRequest, *, on_event: OnEvent) -> QuantizedFile:
    """Quantizes a model for a target and writes it; everything that it cost is in the document.

    An interrupted run goes on where it was. Raises InputError for what is wrong with the model, the
    data or the settings, and for a target that has no hardware for the precision.
    """
    target = resolve_target(request.target).target
    _refuse_precision(request.precision, target)
    recipe = load_recipe(request.recipe) if request.recipe is not None else None
    given = recipe.quantize.model_dump(exclude_unset=True) if recipe is not None else {}
    options = read_section(QuantizeSection, {**given, **request.settings}, "quantize")
    preprocessing = recipe.preprocessing if recipe is not None else None
    model = clean(open_origin(request.origin, preprocessing=preprocessing).model)
    batches = _batches(request.data, model, "calibration")
    workshop = Workshop(cache=Cache(request.cache or cache_folder()), on_event=on_event)
    source = Source(key=digest(model), path=Path(), load=lambda: model)
    step = steps.simplify_step(source, batches, workshop.progress_of("simplify"))
    workshop.do(step, describe=steps.describe_simplify)
    floating = steps.made_model(workshop.cache, step, model.name)
    if request.precision == "fp16":
        step = half_step(floating, batches, workshop.progress_of("fp16", target.name))
        workshop.do(step, target=target.name, describe=steps.describe_said)
        return _written(request, workshop.cache.entry(step), target)
    dialect = dialect_named(request.dialect) if request.dialect else dialect_of(target)
    observed = steps.observe_step(floating, batches, options, workshop.progress_of("observe"))
    workshop.do(observed, describe=steps.describe_said)
    job = Job(
        dialect=dialect, batches=batches, options=options, version=target.runtime.version
    )  # fmt: skip
    floor = None
    if options.max_drop is not None:
        floor = _floor(request, model, job, options.max_drop, target)
    step = steps.quantize_step(
        floating, (workshop.cache, observed), job, floor,
        workshop.progress_of("quantize", target.name),
    )  # fmt: skip
    workshop.do(step, target=target.name, describe=steps.describe_said)
    return _written(request, workshop.cache.entry(step), target)


def precision_named(name: str) -> Literal["int8", "fp16"]:
    """The precision of that name. Raises InputError for another one than int8 and fp16."""
    if name == "int8":
        return "int8"
    if name == "fp16":
        return "fp16"
    raise InputError("a model is quantized to int8 or fp16", got=name, wanted="int8, fp16")


def refinements(text: str | None) -> str | tuple[str, ...] | None:
    """What `--refine` says: auto, none, or the names of steps with commas between."""
    if text is None or text in ("auto", "none"):
        return text
    return tuple(name.strip() for name in text.split(",") if name.strip())


def sample_count(text: str | None) -> int | str | None:
    """What `--samples` says: a number, or auto. Raises InputError for anything else."""
    if text is None or text == "auto":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise InputError(
            "this is no number of samples", where="--samples", got=text,
            wanted='a whole number, or "auto"',
        ) from error  # fmt: skip


def cache_folder() -> Path:
    """Where the steps of all models lie: `edgekit/quantize` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "edgekit" / "quantize"


def _refuse_precision(precision: str, target: Target) -> None:
    if precision in target.precisions:
        return
    others = [one for one in target.precisions if one != "fp32"]
    raise InputError(
        f"{target.title} has no {precision.upper()} hardware", where=target.name,
        got=f"--precision {precision}", wanted=", ".join(target.precisions),
        hint=f"Ask for --precision {others[0]}." if others else "It runs FP32 only.",
    )  # fmt: skip


def _batches(place: str, model: Model, role: str) -> Batches:
    return load_batches(
        place, folder=Path(), inputs=model.inputs, preprocessing=model.preprocessing,
        batch_size=_BATCH, role=role,
    )  # fmt: skip


def _floor(
    request: QuantizeRequest, model: Model, job: Job, max_drop: float, target: Target
) -> FloorAsked:
    place = request.evaluation
    samples = _batches(place, model, "evaluation") if place else job.batches
    name = request.metric or ("fidelity" if samples.labels is None else "top1")
    return FloorAsked(
        max_drop=max_drop, batches=samples, metric=load_metric(name, Path()),
        dialect=job.dialect, target=target,
    )  # fmt: skip


def _written(request: QuantizeRequest, folder: Path, target: Target) -> QuantizedFile:
    """Copies what the step made to where it was asked for; a calibration cache beside the model."""
    found = read_json(folder / steps.REPORT_FILE)
    document = {**found, "target": target.name, "model": str(request.out)}
    beside = folder / steps.CACHE_FILE
    if beside.is_file():
        place = request.out.with_suffix(".calibration.cache")
        files.write_text(place, beside.read_text())
        document["calibration_cache"] = str(place)
    files.write_bytes(request.out, (folder / steps.MODEL_FILE).read_bytes())
    if request.report is not None:
        write_json(request.report, document)
    return QuantizedFile(document=document, exit_code=0 if found.get("met", True) else NOT_MET)
