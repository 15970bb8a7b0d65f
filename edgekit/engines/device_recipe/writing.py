"""Writes the folder that a device builds from; `document.py` reads it."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit import files
from edgekit.engines.base import (
    EngineRequest,
    Extent,
    input_extents,
    read_model,
    workspace_bytes,
)
from edgekit.engines.device_recipe.document import (
    DEVICE_FILE,
    FORMAT,
    GOLDEN_FILE,
    ORIGINAL_FILE,
    TOLERANCES,
    BenchPlan,
    DeviceRecipe,
    GoldenBatch,
    digest_of,
    has_trtexec,
    load_device_recipe,
)
from edgekit.engines.trtexec.flags import (
    MODEL_FILE,
    Run,
    build_arguments,
    generation_of,
    version_of,
)
from edgekit.engines.trtexec.script import SCRIPT_FILE, ScriptPlan, script
from edgekit.engines.trtexec.script_parts import RAW_STEM, ScriptBuild
from edgekit.errors import InputError
from edgekit.targets import Runtime, Target
from edgekit.values import Array, Feeds, TensorSpec

if TYPE_CHECKING:
    from edgekit.models.model import Model


_BUILDER_FLAGS: Mapping[str, list[str]] = {
    "fp32": [], "fp16": ["FP16"], "int8": ["INT8", "FP16"],
}  # fmt: skip


def write_device_recipe(  # noqa: PLR0913
    request: EngineRequest, folder: Path, *, golden: Sequence[GoldenBatch], samples: int,
    bench: BenchPlan, judging: Mapping[str, Any], original: Path | None = None,
) -> DeviceRecipe:  # fmt: skip
    """Writes the folder for the device. `samples` of the golden ones are different, the rest fill.

    `original` is the ONNX file of the original, to be measured in turn with it where a limit
    compares the two.

    Equal requests leave equal bytes. Raises InputError where the target's trtexec cannot be asked
    for it, and where the golden batches are not the model's.
    """
    model = read_model(request.model_path)
    _refuse_parts(model, request.model_path)
    extents = input_extents(model.inputs, request)
    dynamic = {spec.name for spec in model.inputs if any(isinstance(d, str) for d in spec.shape)}
    batch = _check_golden(golden, model.inputs, model.outputs, extents)
    contents: dict[str, bytes] = {
        MODEL_FILE: request.model_path.read_bytes(),
        GOLDEN_FILE: _npz(golden),
        **(_raw_files(golden, request.target.runtime) if has_trtexec(request.target) else {}),
    }
    if original is not None:
        contents[ORIGINAL_FILE] = original.read_bytes()
    digests = {name: files.digest_bytes(content) for name, content in contents.items()}
    builds = [
        _build(request, runtime, {n: extents[n] for n in sorted(dynamic)}, extents)
        for runtime in runtimes_of(request.target, model.opset, model.inputs)
        if runtime is request.target.runtime or _can(request, runtime)
    ]
    settings = {
        "target": request.target.model_dump(mode="json"),
        "precision": request.precision,
        "builds": builds,
        "extents": {name: [list(s) for s in extent] for name, extent in extents.items()},
        "batch": batch,
        "samples": samples,
        "bench": asdict(bench),
        "dla_core": request.dla_core,
        "workspace_bytes": workspace_bytes(request),
        "threads": request.threads,
    }
    stamp = digest_of([digests, settings])
    if has_trtexec(request.target):
        runs = [
            Run(
                engine="", inputs={n: raw_file(k, j) for j, n in enumerate(one.inputs)},
                shapes={n: tuple(one.inputs[n].shape) for n in sorted(dynamic)},
                dla_core=request.dla_core,
            )
            for k, one in enumerate(golden)
        ]  # fmt: skip
        text = script(ScriptPlan(
            about=f"{request.name} for {request.target.title}", stamp=stamp, sha256=digests,
            builds=tuple(map(_script_build, builds)), runs=tuple(runs),
            trtexec=request.target.runtime.trtexec, batch=batch, seconds=bench.seconds,
            rounds=bench.rounds, warmup_seconds=bench.warmup_seconds,
            has_original=original is not None,
        ))  # fmt: skip
        contents[SCRIPT_FILE] = text.encode()
        digests[SCRIPT_FILE] = files.digest_bytes(text.encode())
    document: dict[str, Any] = {
        "format": FORMAT, "name": request.name, "stamp": stamp, **settings,
        "tolerance": asdict(TOLERANCES[request.precision]),
        "outputs": [
            {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}
            for spec in model.outputs
        ],
        "judging": dict(judging),
        "sha256": digests,
    }  # fmt: skip
    document["digest"] = digest_of(document)
    for name, content in contents.items():
        files.write_bytes(folder / name, content)
    if SCRIPT_FILE in contents:
        (folder / SCRIPT_FILE).chmod(0o755)
    files.write_text(folder / DEVICE_FILE, json.dumps(document, indent=2) + "\n")
    return load_device_recipe(folder)


def _refuse_parts(model: Model, path: Path) -> None:
    """Raises InputError where the ONNX file is one of several."""
    import onnx_ir as ir

    values = model.graph.initializers.values()
    apart = [v.name for v in values if isinstance(v.const_value, ir.ExternalTensor)]
    if apart:
        raise InputError(
            "a device recipe holds one ONNX file, and this model's weights lie in others",
            where=str(path), got=f"{len(apart)} tensors apart", wanted="a model below 1.5 GB",
        )  # fmt: skip


def runtimes_of(
    target: Target, opset: int, inputs: Sequence[TensorSpec] = ()
) -> tuple[Runtime, ...]:
    """The target's runtime, and those of its other JetPacks that read the same model.

    They want Q/DQ in the same dialect, read the opset, and take the inputs in the same types. What
    an older TensorRT takes, a newer one does; not the other way round.
    """
    major = int(target.runtime.version.partition(".")[0])
    types = _types_taken(inputs, target.runtime)
    found = [target.runtime]
    for jetpack, pack in target.jetpacks.items():
        same = pack.dialect == target.runtime.dialect and pack.opset >= opset
        same = same and int(pack.version.partition(".")[0]) >= major
        if jetpack != target.runtime.jetpack and same:
            update = {**pack.model_dump(), "jetpack": jetpack}
            other = target.runtime.model_copy(update=update)
            if _types_taken(inputs, other) == types:
                found.append(other)
    return tuple(found)


def _types_taken(inputs: Sequence[TensorSpec], runtime: Runtime) -> tuple[str, ...]:
    return tuple(_type_taken(spec.dtype, runtime) for spec in inputs)


def _type_taken(dtype: str, runtime: Runtime) -> str:
    """The type in which an engine takes an input: TensorRT has INT64 from 9 on, DOUBLE never."""
    if runtime.name != "tensorrt":
        return dtype
    if dtype == "int64" and version_of(runtime.version) < (9, 0):
        return "int32"
    return "float32" if dtype == "float64" else dtype


def raw_file(batch: int, place: int) -> str:
    """Where the values of an input lie, as trtexec loads them."""
    return f"{RAW_STEM}{batch}-input-{place}.bin"


def _can(request: EngineRequest, runtime: Runtime) -> bool:
    """Whether another JetPack's TensorRT can be asked for the same at all: some have no DLA."""
    generation = generation_of(runtime.version)
    return request.dla_core is None or generation.has_dla


def _build(
    request: EngineRequest, runtime: Runtime, dynamic: Mapping[str, Extent],
    extents: Mapping[str, Extent],
) -> dict[str, Any]:  # fmt: skip
    """The settings of one JetPack: trtexec's arguments, and the same for the Python API."""
    found: dict[str, Any] = {
        "jetpack": runtime.jetpack,
        "runtime": {"name": runtime.name, "version": runtime.version},
        "python": {
            "precision": request.precision,
            "profiles": {name: [list(s) for s in extents[name]] for name in dynamic},
            "workspace_bytes": workspace_bytes(request),
            "dla_core": request.dla_core,
            "threads": request.threads,
        },
    }
    if runtime.name == "tensorrt":
        typed = generation_of(runtime.version).typed_by_graph
        flags = _BUILDER_FLAGS[request.precision]
        found["python"] |= {
            "strongly_typed": typed,
            "builder_flags": [] if typed else flags,
            "profiling_verbosity": "DETAILED",
        }
        found["trtexec"] = list(
            build_arguments(request, dynamic, version=runtime.version, engine="model.engine")
        )
        plain = replace(request, precision="fp32", dla_core=None)
        found["trtexec_original"] = [
            argument.replace(f"--onnx={MODEL_FILE}", f"--onnx={ORIGINAL_FILE}")
            for argument in build_arguments(
                plain, dynamic, version=runtime.version, engine="original.engine"
            )
        ]
    return found


def _script_build(build: Mapping[str, Any]) -> ScriptBuild:
    return ScriptBuild(
        version=build["runtime"]["version"], jetpack=build["jetpack"], arguments=build["trtexec"],
        original=build["trtexec_original"],
    )  # fmt: skip


def _check_golden(
    golden: Sequence[GoldenBatch], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec],
    extents: Mapping[str, Extent],
) -> int:  # fmt: skip
    """The size of a batch. Raises InputError where the batches are not the model's, or uneven."""
    if not golden:
        raise InputError("a device recipe needs golden inputs", got="none", wanted="one batch")
    for one in golden:
        _refuse_other_arrays("inputs", one.inputs, [spec.name for spec in inputs])
        _refuse_other_arrays("outputs", one.outputs, [spec.name for spec in outputs])
        for spec in inputs:
            _check_within(spec, one.inputs[spec.name], extents[spec.name])
    sizes = {len(array) for one in golden for array in one.inputs.values() if array.ndim}
    if len(sizes) != 1:
        raise InputError("the golden batches are uneven", got=str(sorted(sizes)), wanted="one size")
    return sizes.pop()


def _refuse_other_arrays(what: str, given: Feeds, wanted: Sequence[str]) -> None:
    if sorted(given) != sorted(wanted):
        raise InputError(
            f"the golden {what} are not the model's",
            got=", ".join(sorted(given)), wanted=", ".join(sorted(wanted)),
        )  # fmt: skip


def _check_within(spec: TensorSpec, array: Array, extent: Extent) -> None:
    smallest, _, largest = extent
    fits = array.ndim == len(smallest) and all(
        low <= size <= high for low, size, high in zip(smallest, array.shape, largest, strict=True)
    )
    if not fits or str(array.dtype) != spec.dtype:
        raise InputError(
            f'the golden input "{spec.name}" does not fit the engine',
            where=f"engine.shapes.{spec.name}", got=f"{array.dtype} {array.shape}",
            wanted=f"{spec.dtype}, from {smallest} to {largest}",
        )  # fmt: skip


def _raw_files(golden: Sequence[GoldenBatch], runtime: Runtime) -> dict[str, bytes]:
    return {
        raw_file(k, j): array.astype(_type_taken(str(array.dtype), runtime), order="C").tobytes()
        for k, one in enumerate(golden)
        for j, array in enumerate(one.inputs.values())
    }


def _npz(golden: Sequence[GoldenBatch]) -> bytes:
    """`input.K.NAME` and `output.K.NAME`, K counting the batches."""
    arrays: dict[str, Array] = {}
    for k, one in enumerate(golden):
        arrays |= {f"input.{k}.{name}": array for name, array in one.inputs.items()}
        arrays |= {f"output.{k}.{name}": array for name, array in one.outputs.items()}
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()
