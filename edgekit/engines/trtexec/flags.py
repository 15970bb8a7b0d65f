"""How each version of NVIDIA's trtexec spells what we ask of it: build, answer, measure, profile.

Written against the sources of trtexec at each version. Nothing here has run on a device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgekit.engines.base import EngineRequest, Extent, Shape, workspace_bytes
from edgekit.errors import InputError

MODEL_FILE = "model.onnx"
TIMING_CACHE_FILE = "timing.cache"

_MIB = 1 << 20
_MEMORY_POOL = "--memPoolSize=workspace:{mib}"


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How one range of trtexec's versions spells what we ask of it, from `since` on.

    Up to 10 copies between host and device are in a query unless they are switched off, the host
    sleeps while it waits, and kernels are started one by one; from 11 on it is the other way round
    and the old switches say nothing. `measure` makes all versions measure the same: kernels alone,
    waited for in a spin, started as one CUDA graph. `transfer` brings the outputs back, `no_graph`
    starts kernels one by one, which timing each of them needs.

    Source: NVIDIA/TensorRT, samples/common/sampleOptions.{h,cpp} at tags 8.2.1, 8.5.3, 8.6.1,
    10.3.0, 10.13.3, 10.16, 11.0 and 11.1.
    """

    since: tuple[int, int]
    workspace: str  # of MiB
    build_only: str
    typed_by_graph: bool  # strongly typed: the precision flags are errors
    has_dla: bool
    measure: tuple[str, ...] = ("--noDataTransfers", "--useSpinWait", "--useCudaGraph")
    transfer: tuple[str, ...] = ()
    no_graph: tuple[str, ...] = ()


GENERATIONS = (
    Generation(
        since=(8, 2), workspace="--workspace={mib}", build_only="--buildOnly",
        typed_by_graph=False, has_dla=True,
    ),
    Generation(
        since=(8, 4), workspace=_MEMORY_POOL, build_only="--buildOnly",
        typed_by_graph=False, has_dla=True,
    ),
    Generation(
        since=(8, 6), workspace=_MEMORY_POOL, build_only="--skipInference",
        typed_by_graph=False, has_dla=True,
    ),
    # 10.7 was the last 10.x with DLA (TensorRT 11.4.1's page "Working with DLA").
    Generation(
        since=(10, 8), workspace=_MEMORY_POOL, build_only="--skipInference",
        typed_by_graph=False, has_dla=False,
    ),
    Generation(
        since=(11, 0), workspace=_MEMORY_POOL, build_only="--skipInference",
        typed_by_graph=True, has_dla=False, measure=(), transfer=("--includeDataTransfers",),
        no_graph=("--noCudaGraph",),
    ),
)  # fmt: skip

# Before strong typing a layer without Q/DQ takes the widest type that it may: INT8 alone would
# leave those in FP32.
_PRECISION_FLAGS: Mapping[str, tuple[str, ...]] = {
    "fp32": (),
    "fp16": ("--fp16",),
    "int8": ("--int8", "--fp16"),
}


def version_of(text: str) -> tuple[int, int]:
    """(major, minor) of a TensorRT version such as "10.3" or "8.6.2.3".

    Raises InputError where the text is no version.
    """
    parts = [*text.split("."), "0"][:2]
    if not all(part.isdecimal() for part in parts):
        raise InputError("this is no version of TensorRT", got=text, wanted='such as "10.3"')
    return int(parts[0]), int(parts[1])


def version_from_number(number: str) -> str:
    """ "8.5.2" of the 8502 in trtexec's banner, "10.3.0" of 100300; empty for what is neither.

    NV_TENSORRT_VERSION is major * 1000 + minor * 100 + patch up to 8.x, major * 10000 from 10 on
    (include/NvInferVersion.h).
    """
    if not number.isdecimal() or len(number) not in (4, 5, 6):
        return ""
    value, thousands = int(number), 1000 if len(number) == 4 else 10000
    return f"{value // thousands}.{value % thousands // 100}.{value % 100}"


def generation_of(version: str) -> Generation:
    """The generation that a version of trtexec belongs to. Raises InputError where none is."""
    asked = version_of(version)
    fitting = [generation for generation in GENERATIONS if generation.since <= asked]
    if not fitting:
        raise InputError(
            "this TensorRT is older than edgekit knows", got=version, wanted="8.2 or later"
        )
    return fitting[-1]


def build_arguments(
    request: EngineRequest, extents: Mapping[str, Extent], *, version: str, engine: str
) -> tuple[str, ...]:
    """trtexec's arguments to build the engine with that TensorRT; files are named from its folder.

    `extents` holds the dynamic inputs only. Raises InputError for a precision or a DLA core that
    this version cannot be asked for.
    """
    generation = generation_of(version)
    arguments = [f"--onnx={MODEL_FILE}", f"--saveEngine={engine}"]
    workspace = workspace_bytes(request)
    if workspace is not None:
        mib = max(1, workspace // _MIB)
        arguments.append(generation.workspace.format(mib=mib))
    arguments += _precision_flags(request, generation, version)
    for label, place in (("min", 0), ("opt", 1), ("max", 2)):
        if extents:
            shapes = ",".join(named_shape(name, e[place]) for name, e in extents.items())
            arguments.append(f"--{label}Shapes={shapes}")
    if request.dla_core is not None:
        arguments += _dla_flags(request, generation, version)
    return (
        *arguments,
        f"--timingCacheFile={TIMING_CACHE_FILE}",
        "--profilingVerbosity=detailed",
        generation.build_only,
    )


@dataclass(frozen=True, kw_only=True)
class Run:
    """One engine and one batch to run it on: `shapes` of the dynamic inputs, a file of each input.

    A file holds an input's values in C order as they lie in memory, nothing else.
    """

    engine: str
    shapes: Mapping[str, Shape]
    inputs: Mapping[str, str]
    dla_core: int | None = None


def answer_arguments(run: Run, *, version: str, output: str) -> tuple[str, ...]:
    """trtexec's arguments to run one batch once, and write its outputs as JSON."""
    return (
        *_loading(run),
        "--iterations=1",
        "--duration=0",
        "--warmUp=0",
        *generation_of(version).transfer,
        f"--exportOutput={output}",
    )


def measure_arguments(
    run: Run, *, version: str, seconds: float, warmup_seconds: float, times: str
) -> tuple[str, ...]:
    """trtexec's arguments to run for some seconds and write the times of each query as JSON."""
    return (
        *_loading(run),
        f"--duration={max(1, round(seconds))}",
        f"--warmUp={round(1000 * warmup_seconds)}",
        *generation_of(version).measure,
        f"--exportTimes={times}",
    )


def profile_arguments(run: Run, *, version: str, profile: str, layers: str) -> tuple[str, ...]:
    """trtexec's arguments to time each layer and write what the engine's layers are."""
    return (
        *_loading(run),
        "--duration=1",
        *generation_of(version).no_graph,
        "--profilingVerbosity=detailed",
        "--dumpProfile",
        f"--exportProfile={profile}",
        f"--exportLayerInfo={layers}",
    )


def _loading(run: Run) -> tuple[str, ...]:
    arguments = [f"--loadEngine={run.engine}"]
    if run.shapes:
        named = (named_shape(name, shape) for name, shape in run.shapes.items())
        arguments.append(f"--shapes={','.join(named)}")
    named = (f"{_quoted(name)}:{file}" for name, file in run.inputs.items())
    arguments.append(f"--loadInputs={','.join(named)}")
    if run.dla_core is not None:
        arguments.append(f"--useDLACore={run.dla_core}")
    return tuple(arguments)


def _precision_flags(
    request: EngineRequest, generation: Generation, version: str
) -> tuple[str, ...]:
    if generation.typed_by_graph:
        return ()
    if request.precision not in _PRECISION_FLAGS:
        raise InputError(
            f"trtexec {version} is not asked for {request.precision} here",
            where=request.target.name,
            got=request.precision, wanted=", ".join(_PRECISION_FLAGS),
        )  # fmt: skip
    return _PRECISION_FLAGS[request.precision]


def _dla_flags(request: EngineRequest, generation: Generation, version: str) -> tuple[str, ...]:
    if not generation.has_dla:
        raise InputError(
            f"TensorRT {version} has no DLA",
            where="engine.dla", got=f"core {request.dla_core}", hint="Take engine.dla out.",
        )  # fmt: skip
    return (f"--useDLACore={request.dla_core}", "--allowGPUFallback")


def named_shape(name: str, shape: Sequence[int]) -> str:
    """An input's shape as trtexec reads it."""
    return f"{_quoted(name)}:{'x'.join(map(str, shape))}"


def _quoted(name: str) -> str:
    # trtexec takes a name in single quotes whole, whatever colons and commas it has; one that has
    # a quote itself it cannot be told.
    if "'" in name or "\n" in name:
        raise InputError(
            "trtexec cannot be told of an input whose name has a quote in it", got=name,
            hint="Give the input another name when the model is exported.",
        )  # fmt: skip
    return name if name.replace("_", "").isalnum() else f"'{name}'"
