"""An engine of TensorRT or TensorRT-RTX on disk: the plan, its log, and the manifest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit import files
from edgekit.engines import cuda_runtime
from edgekit.engines.base import Engine, EngineRequest, input_extents, read_model, workspace_bytes
from edgekit.engines.here import facts_here
from edgekit.engines.manifest import LOG_FILE, write_manifest
from edgekit.engines.trt.common import Compiled, compile_apart, limits_of
from edgekit.engines.trt.inspector import EngineLayer, read_layers
from edgekit.engines.trt.job import CompileJob
from edgekit.engines.trt.sparsity import count_sparse
from edgekit.errors import EdgekitError, InputError
from edgekit.values import Figure, Unknown

if TYPE_CHECKING:
    from edgekit.models.model import Model

ENGINE_FILE = "model.engine"

_HALF_TYPES = frozenset({"FLOAT16", "BFLOAT16"})
_QDQ = frozenset({"QuantizeLinear", "DequantizeLinear"})
# What differs between two builds of the same engine: times, and the system's memory meanwhile.
_TIMES = re.compile(r"\b\d+(\.\d+)?(e-?\d+)? ?(ms|us|s|sec|seconds|minutes)\b")
_MEMORY_NOW = re.compile(r"\[Mem\w+\].*")


@dataclass(frozen=True, kw_only=True)
class TrtPackage:
    """One of the two packages, as far as a build depends on which it is.

    `compute_capability` is a name such as SM86 for a package that compiles for other devices than
    the one at hand. `times_tactics`: it times kernels, so that two builds may differ, and keeps a
    timing cache.
    """

    name: str
    extra: str
    compute_capability: str = ""
    times_tactics: bool = True


def compile_request(request: EngineRequest, place: Path, package: TrtPackage) -> Compiled:
    """What the compiler says of the model, with the plan at `place`.

    Raises as `compile_apart` does, and InputError for a request that does not fit the model.
    """
    job = job_of(request, place, package, read_model(request.model_path))
    return compile_apart(job, limits=limits_of(request), on_progress=request.on_progress)


def job_of(request: EngineRequest, place: Path, package: TrtPackage, model: Model) -> CompileJob:
    """The job that the building process gets; `model` is the request's, read."""
    extents = input_extents(model.inputs, request)
    dynamic = {spec.name for spec in model.inputs if any(isinstance(d, str) for d in spec.shape)}
    options = request.builder
    here = facts_here() if package.times_tactics else {}
    keeps_cache = package.times_tactics and options.timing_cache is not None
    return CompileJob(
        package=package.name,
        extra=package.extra,
        model=str(request.model_path),
        engine=str(place),
        target=request.target.name,
        device=here.get("device", "unknown"),
        cuda=here.get("cuda") or (_cuda_runtime() if keeps_cache else "unknown"),
        compute_capability=package.compute_capability,
        workspace_bytes=workspace_bytes(request),
        extents={name: extent for name, extent in extents.items() if name in dynamic},
        precision=request.precision,
        typing=options.typing,
        typed_graph=is_typed_for(model, request.precision),
        half_allowed="fp16" in request.target.precisions,
        sparse_layers=count_sparse(model.graph).sparse,
        refit=options.refit,
        strip=options.strip,
        optimization_level=options.optimization_level,
        dla_core=request.dla_core,
        max_dla_fallbacks=options.max_dla_fallbacks,
        timing_cache=str(options.timing_cache) if keeps_cache else "",
    )


def _cuda_runtime() -> str:
    try:
        return cuda_runtime.versions().runtime
    except EdgekitError:
        return "unknown"


def is_typed_for(model: Model, precision: str) -> bool:
    """Whether the graph itself says everything about its types at that precision.

    FP32 needs nothing; FP16 a graph with float16 or bfloat16 constants; INT8 these and Q/DQ: what
    is not quantized would run in float32 else.
    """
    kinds = {
        value.const_value.dtype.name
        for value in model.graph.initializers.values()
        if value.const_value is not None
    }
    halved = bool(kinds & _HALF_TYPES)
    quantized = any(node.op_type in _QDQ for node in model.graph.all_nodes())
    return {"fp32": not quantized, "fp16": halved and not quantized}.get(
        precision, halved and quantized
    )


def build_engine(
    request: EngineRequest, folder: Path, package: TrtPackage, *, built_for: Mapping[str, str]
) -> Engine:
    """The engine, its log and its manifest written into the folder, the manifest last.

    Raises as `compile_request` does, ResourceError on a full disk.
    """
    place = folder / ENGINE_FILE
    model = read_model(request.model_path)
    with files.replacing(place) as partial:
        job = job_of(request, partial, package, model)
        compiled = compile_apart(job, limits=limits_of(request), on_progress=request.on_progress)
    log = build_log(job, compiled)
    files.write_text(folder / LOG_FILE, log)
    figures, layers, notes = layers_of(model, request.batch[1], compiled.layers)
    engine = Engine(
        path=place,
        name=request.name,
        target=request.target.name,
        runtime=package.name,
        runtime_version=compiled.version,
        precision=request.precision,
        sha256=files.digest_file(place),
        file_bytes=place.stat().st_size,
        model_sha256=files.digest_file(request.model_path),
        inputs=compiled.inputs,
        outputs=compiled.outputs,
        extents=input_extents(model.inputs, request),
        built_for=built_for,
        settings=_settings(job, compiled, package),
        figures={**compiled.figures, **figures},
        flags=compiled.flags,
        layers=layers,
        log_sha256=files.digest_bytes(log.encode()),
        notes=(*_notes(job, compiled, package), *notes, *_counted(compiled.warnings)),
    )
    write_manifest(engine)
    return engine


def _notes(job: CompileJob, compiled: Compiled, package: TrtPackage) -> tuple[str, ...]:
    notes = list(compiled.notes)
    if package.times_tactics:
        notes.append(
            "the builder times its kernels and takes the quickest: two builds of the same model "
            "may differ in their bytes and in their last digits"
        )
    elif any(smallest != largest for smallest, _, largest in job.extents.values()):
        notes.append(
            "with a dynamic shape the compiler numbers some of its values otherwise each time: two "
            "builds of the same model may differ in these bytes"
        )
    if job.dla_core is not None:
        fallen = compiled.dla_fallbacks
        named = f": {', '.join(fallen)}" if fallen else ""
        notes.append(
            f"{compiled.dla_layers} layers on DLA core {job.dla_core}, {len(fallen)} on the GPU"
            + named
        )
    return tuple(notes)


def _counted(warnings: Sequence[str]) -> tuple[str, ...]:
    """Each warning once: the builder repeats the same one for every layer."""
    counts = Counter(warning.strip() for warning in warnings)
    return tuple(said if n == 1 else f"{said} ({n} times)" for said, n in counts.items())


def _settings(job: CompileJob, compiled: Compiled, package: TrtPackage) -> dict[str, str | int]:
    settings: dict[str, str | int] = {"workspace_bytes": compiled.workspace_bytes}
    if job.optimization_level is not None:
        settings["optimization_level"] = job.optimization_level
    if job.dla_core is not None:
        settings["dla_core"] = job.dla_core
        settings["dla_layers"] = compiled.dla_layers
        settings["dla_fallbacks"] = len(compiled.dla_fallbacks)
    if not package.times_tactics:
        settings["timing_cache"] = "none: this package does not time its kernels"
    else:
        settings["timing_cache"] = "kept" if job.timing_cache else "none"
    return settings


def layers_of(
    model: Model, batch: int, told: str | Unknown
) -> tuple[dict[str, Figure], tuple[EngineLayer, ...] | Unknown, tuple[str, ...]]:
    """What the layers come to as figures, the layers, and what is to be said of them.

    `told` is the inspector's JSON, or why there is none.
    """
    if isinstance(told, Unknown):
        return {}, told, ()
    try:
        report = read_layers(told, _macs(model, batch))
    except InputError as error:
        return {}, Unknown(f"{error.what}: {error.got}"), ()
    figures = {
        "reformats": report.reformats,
        "int8_layers": report.int8_layers,
        "int8_macs": report.int8_macs,
        "unmatched_macs": report.unmatched_macs,
    }
    unmatched = report.unmatched_macs
    notes: tuple[str, ...] = ()
    if not isinstance(unmatched, Unknown) and unmatched > 0.01:
        said = f"{unmatched:.0%} of the multiply-accumulates are in layers that name no node"
        notes = (f"{said}: the share in INT8 may be that much larger",)
    # The nodes of a layer are for the sums; the manifest keeps what the engine itself says.
    return figures, tuple(replace(layer, nodes=()) for layer in report.layers), notes


def _macs(model: Model, batch: int) -> dict[str, float]:
    from edgekit.models.cost import node_costs

    try:
        costs = node_costs(model, batch=batch)
    except InputError:  # an operator whose work is not known
        return {}
    return {cost.node: float(cost.macs) for cost in costs if cost.macs}


def build_log(job: CompileJob, compiled: Compiled) -> str:
    """The builder's own lines. Times, places and the memory of the moment are left out."""
    lines = []
    for severity, message in compiled.log:
        said = message.replace(job.model, Path(job.model).name)
        said = _MEMORY_NOW.sub("[memory of the moment]", _TIMES.sub("(time)", said))
        lines.append(f"[{severity}] {said}\n")
    return "".join(lines)
