"""The engines that a target could get, and the steps that make and verify them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit import machine
from edgekit.data.batches import Batches
from edgekit.data.metrics import Metric
from edgekit.engines.base import BuilderOptions, EngineRequest, runtime_module
from edgekit.engines.manifest import load_engine
from edgekit.errors import InputError
from edgekit.models.model import Model
from edgekit.pipeline import steps, verification
from edgekit.pipeline.blame import ENGINE
from edgekit.pipeline.blaming import Asked, blame_step, describe_blame
from edgekit.pipeline.cache import Cache, Step, key_of, read_json, versions
from edgekit.pipeline.hardware import dla_precision, no_hardware, refuse_missing_dla
from edgekit.pipeline.steps import REPORT_FILE, Source
from edgekit.pipeline.workshop import Workshop
from edgekit.recipe import Recipe
from edgekit.targets import Precision, Target
from edgekit.values import Array, Figure, Unknown, figure_from_json
from edgekit.verify import VerifyReport, from_json

KERNELS, EMULATED = "onnxruntime", "onnxruntime, emulated"
_SAMPLES = 4  # real inputs that a runtime may compare outputs on
_PACKAGES = ("onnxruntime", "openvino", "tensorrt_rtx_cu12", "tensorrt")


@dataclass(frozen=True, kw_only=True)
class Project:
    """What all targets of a build share, read before the first step."""

    model: Model
    original: Source
    calibration: Batches
    evaluation: Batches
    metric: Metric
    cache: Cache
    place: Path


@dataclass(frozen=True, kw_only=True)
class Link:
    """A model on the way to a target's, and the steps that made it of the one before."""

    steps: str
    source: Source


@dataclass(frozen=True, kw_only=True)
class Chain:
    """A target's models: compressed (BatchNormalization in it), floating (folded), quantized.

    `half` is the float16 graph, where the runtime takes its types from the graph; `quantizing` is
    the step that made the quantized one. `links` are the models in float32 that all targets share,
    from the original on; `lowered`: the target's are of an older opset.
    """

    recipe: Recipe
    compressed: Source
    floating: Source
    quantized: Source | None
    channel_plan: Step | None
    half: Source | None = None
    quantizing: Step | None = None
    links: tuple[Link, ...] = ()
    lowered: bool = False


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One engine that a target could get, and the steps that know of it.

    `verified` is the engine's own where it runs here, else its graph's; `blame` says which step
    lost what.
    """

    precision: Precision
    source: Source
    engine: Step
    verified: Step
    blame: Step
    emulated: Step | None = None


def wanted_precisions(target: Target, recipe: Recipe) -> tuple[Precision, ...]:
    """The precisions of the engines to build, the preferred one first.

    Raises InputError where the target has no hardware for the one that was asked for, or no DLA.
    """
    asked = recipe.engine.precision
    if recipe.engine.dla is not None:
        refuse_missing_dla(target, recipe.engine.dla)
    if recipe.engine.streams > 1:
        raise InputError(
            "engines are built and measured for one stream so far", where="engine.streams",
            got=str(recipe.engine.streams), wanted="1",
        )  # fmt: skip
    if recipe.engine.dla is not None:
        return (dla_precision(target, asked),)
    if asked == "auto":
        known: tuple[Precision, ...] = ("int8", "fp16", "fp32")
        offered = [p for p in known if p in target.precisions]
        if target.runtime.build == "here":
            return tuple(p for p in offered if p != "fp16")
        return (offered[0],)
    if asked not in target.precisions:
        raise no_hardware(target, asked)
    return (asked,)


def candidate_of(
    workshop: Workshop, project: Project, chain: Chain, target: Target, precision: Precision,
    *, handed_over: bool = False,
) -> Candidate:  # fmt: skip
    """Makes the engine of a precision and verifies it against the original.

    With `handed_over` a device makes the engine: its graph is verified, with none of our kernels.
    """
    source, made_by = _source_of(chain, precision)
    runs_here = target.runtime.build == "here" and not handed_over
    engine = None
    if target.runtime.build != "device" and not handed_over:
        engine = engine_step(workshop, chain.recipe, target, precision, project, source)
        workshop.do(engine, target=target.name, describe=_describe_engine)
    asked = [
        Asked(step=link.steps, through=KERNELS, outputs=_outputs(workshop, project, link.source))
        for link in chain.links
    ]
    original = asked[0].outputs
    outputs = emulated = None
    if precision == "int8" or not runs_here:
        outputs = _outputs(workshop, project, source, target=target, emulated=True)
        if made_by:
            asked.append(Asked(step=made_by, through=EMULATED, outputs=outputs))
    if runs_here and engine is not None:
        if outputs is not None:
            emulated = _verify(workshop, project, target, original, outputs)
        outputs = verification.engine_outputs_step(
            project.cache, engine, project.evaluation, workshop.progress_of("outputs", target.name)
        )
        workshop.do(outputs, target=target.name, describe=steps.describe_said)
        asked.append(Asked(step=ENGINE, through=target.runtime.name, outputs=outputs))
    assert outputs is not None
    verified = _verify(workshop, project, target, original, outputs)
    blame = blame_step(project.cache, asked, project.model, project.evaluation, project.metric)
    workshop.do(blame, target=target.name, describe=describe_blame)
    return Candidate(
        precision=precision, source=source, engine=engine or verified, verified=verified,
        blame=blame, emulated=emulated,
    )  # fmt: skip


def _source_of(chain: Chain, precision: Precision) -> tuple[Source, str]:
    """What an engine of that precision is built from, and the steps that the links lack."""
    source, made_by = chain.floating, ""
    if precision == "int8":
        assert chain.quantized is not None
        assert chain.quantizing is not None
        source, made_by = chain.quantized, chain.quantizing.name
    elif precision == "fp16" and chain.half is not None:
        source, made_by = chain.half, "fp16"
    if chain.lowered:
        made_by = f"{made_by} + opset" if made_by else "opset"
    return source, made_by


def engine_step(
    workshop: Workshop, recipe: Recipe, target: Target, precision: Precision, project: Project,
    source: Source,
) -> Step:  # fmt: skip
    """The step that builds an engine on this machine."""
    request = engine_request(recipe, target, precision, project, source)

    def make(folder: Path, partial: Path) -> None:
        del partial
        told = workshop.telling(request, precision)
        runtime_module(target.runtime.name).build(told, folder)

    key = key_of("engine", **request_key(request, source))
    return Step(name="engine", key=key, make=make)


def _outputs(
    workshop: Workshop, project: Project, source: Source, *, target: Target | None = None,
    emulated: bool = False,
) -> Step:  # fmt: skip
    """The step that asks a model for the evaluation samples, done."""
    name = "" if target is None else target.name
    step = verification.outputs_step(
        source, project.evaluation, workshop.progress_of("outputs", name), emulated=emulated
    )
    workshop.do(step, target=name, describe=steps.describe_said)
    return step


def _verify(
    workshop: Workshop, project: Project, target: Target, original: Step, outputs: Step
) -> Step:
    """The step that compares outputs with the original's, done."""
    step = verification.verify_step(
        project.cache, original, outputs, project.evaluation, project.metric
    )
    workshop.do(step, target=target.name, describe=verification.describe_verify)
    return step


def engine_request(
    recipe: Recipe, target: Target, precision: Precision, project: Project, source: Source
) -> EngineRequest:
    """What the runtime is asked for; `source` is in the target's dialect already."""
    options = recipe.engine
    workspace = target.builder.workspace_bytes
    return EngineRequest(
        model_path=source.path,
        name=project.model.name,
        target=target,
        precision=precision,
        batch=(options.batch.min, options.batch.opt, options.batch.max),
        shapes={name: (s.min, s.opt, s.max) for name, s in options.shapes.items()},
        workspace_bytes=options.workspace_mb * 10**6 if options.workspace_mb else workspace,
        dla_core=options.dla,
        threads=options.threads,
        sample=samples_of(project.calibration, _SAMPLES),
        builder=BuilderOptions(
            memory_cap_bytes=options.memory_limit_mb * 10**6 if options.memory_limit_mb else None,
            time_limit_s=options.time_limit_s,
            typing=options.typing,
            refit=options.refit,
            strip=options.strip,
            optimization_level=options.optimization_level,
            max_dla_fallbacks=options.max_dla_fallbacks,
            search_s=options.search_s,
        ),
    )


def request_key(request: EngineRequest, source: Source) -> dict[str, object]:
    """All of a request that decides what is built, JSON-ready."""
    return {
        "source": source.key,
        "target": request.target.decides(),
        "precision": request.precision,
        "batch": request.batch,
        "shapes": {name: list(extent) for name, extent in request.shapes.items()},
        "workspace": request.workspace_bytes,
        "dla": request.dla_core,
        "builder": [
            request.builder.typing,
            request.builder.refit,
            request.builder.strip,
            request.builder.optimization_level,
            request.builder.max_dla_fallbacks,
            request.builder.search_s,
        ],
        "threads": request.threads,
        "versions": versions(_PACKAGES),
        "cpu": sorted(machine.cpu_flags()) if request.target.runtime.build == "here" else [],
    }


def samples_of(batches: Batches, count: int) -> Mapping[str, Array]:
    """The first few preprocessed samples, evenly spaced."""
    chosen = batches.take(count)
    return next(iter(chosen.with_batch_size(chosen.count))).inputs


def int8_share_of(cache: Cache, chain: Chain, precision: Precision) -> Figure:
    """The share of the MACs of weighted layers that an engine of this precision does in INT8."""
    if precision != "int8" or chain.quantizing is None:
        return Unknown(f"the engine is {precision}")
    return figure_from_json(read_json(cache.entry(chain.quantizing) / REPORT_FILE)["int8_share"])


def report_of(cache: Cache, step: Step) -> VerifyReport:
    """The report that a verify step left."""
    return from_json(read_json(cache.entry(step) / steps.REPORT_FILE))


def _describe_engine(folder: Path) -> str:
    engine = load_engine(folder)
    return f"{engine.precision}, {engine.file_bytes / 1e3:,.0f} kB"
