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
from edgekit.pipeline.cache import Cache, Step, read_json, write_json
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
    if recipe is not None and "tables" in given:
        given["tables"] = tuple(str(recipe.folder / table) for table in given["tables"])
    options = read_section(QuantizeSection, {**given, **request.settings}, "quantize")
    preprocessing = recipe.preprocessing if recipe is not None else None
    model = clean(open_origin(request.origin, preprocessing=preprocessing).model)
    batches = _batches(request.data, model, "calibration")
    workshop = Workshop(cache=Cache(request.cache or cache_folder()), on_event=on_event)
    source = Source(key=digest(model), path=Path(), load=lambda: model)
    step = steps.simplify_step(source, batches, workshop.progress_of("simplify"))
    workshop.do(step, describe=steps.describe_simplify)
    floating = steps.made_model(workshop.cache, step, model.name)
    run = _Run(
        request=request, workshop=workshop, model=model, floating=floating, batches=batches,
        target=target,
    )  # fmt: skip
    return _half(run) if request.precision == "fp16" else _integers(run, options)


@dataclass(frozen=True, kw_only=True)
class _Run:
    """A request, and what was opened and made for it."""

    request: QuantizeRequest
    workshop: Workshop
    model: Model
    floating: Source
    batches: Batches
    target: Target

    def done(self, step: Step) -> Path:
        """The folder of a step for the target, made now if nobody has made it."""
        self.workshop.do(step, target=self.target.name, describe=steps.describe_said)
        return self.workshop.cache.entry(step)


def _integers(run: _Run, options: QuantizeSection) -> QuantizedFile:
    """INT8; where that buys no time on the target, FP16 or FP32."""
    workshop, batches, target = run.workshop, run.batches, run.target
    observed = steps.observe_step(
        workshop.cache, run.floating, batches, options, workshop.progress_of("observe")
    )
    workshop.do(observed, describe=steps.describe_said)
    dialect = run.request.dialect
    job = Job(
        dialect=dialect_named(dialect) if dialect else dialect_of(target), batches=batches,
        options=options, version=target.runtime.version,
    )  # fmt: skip
    has_floor = options.max_drop is not None or options.max_ms is not None
    step = steps.quantize_step(
        run.floating, (workshop.cache, observed), job, _floor(run, job) if has_floor else None,
        workshop.progress_of("quantize", target.name),
    )  # fmt: skip
    folder = run.done(step)
    search = read_json(folder / steps.REPORT_FILE)["search"]
    if not isinstance(search, dict) or search["worth_it"]:
        return _written(run, folder)
    if "fp16" in target.precisions:
        return _half(run, because=search["said"])
    files.write_bytes(run.request.out, run.floating.path.read_bytes())
    document = {
        "said": f"{search['said']}: FP32 it is", "target": target.name, "left": {},
        "model": str(run.request.out), "search": search,
    }  # fmt: skip
    return QuantizedFile(document=document, exit_code=0)


def _half(run: _Run, *, because: str = "") -> QuantizedFile:
    step = half_step(
        run.floating, run.batches, run.workshop.progress_of("fp16", run.target.name)
    )  # fmt: skip
    found = _written(run, run.done(step))
    if because:
        found.document["said"] = f"{because}: FP16 it is; {found.document['said']}"
    return found


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


def _floor(run: _Run, job: Job) -> FloorAsked:
    request = run.request
    place = request.evaluation
    samples = _batches(place, run.model, "evaluation") if place else job.batches
    name = request.metric or ("fidelity" if samples.labels is None else "top1")
    return FloorAsked(
        max_drop=job.options.max_drop, max_ms=job.options.max_ms, batches=samples,
        metric=load_metric(name, Path()), dialect=job.dialect, target=run.target,
        tables=tuple(map(Path, job.options.tables)),
    )  # fmt: skip


def _written(run: _Run, folder: Path) -> QuantizedFile:
    """Copies what a step made to where it was asked for; a calibration cache beside the model."""
    request = run.request
    found = read_json(folder / steps.REPORT_FILE)
    document = {**found, "target": run.target.name, "model": str(request.out)}
    beside = folder / steps.CACHE_FILE
    if beside.is_file():
        place = request.out.with_suffix(".calibration.cache")
        files.write_text(place, beside.read_text())
        document["calibration_cache"] = str(place)
    files.write_bytes(request.out, (folder / steps.MODEL_FILE).read_bytes())
    if request.report is not None:
        write_json(request.report, document)
    return QuantizedFile(document=document, exit_code=0 if found.get("met", True) else NOT_MET)
