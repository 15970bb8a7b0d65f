"""What a device needs to build its own engine with NVIDIA's trtexec, and to check it afterwards.

For targets whose TensorRT runs on the device only: the ONNX file, the arguments for that version
of trtexec, a script that runs them, and what the model should answer to a few inputs.
"""

from __future__ import annotations

import io
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgekit import files
from edgekit.engines.base import (
    EngineRequest,
    Extent,
    Shape,
    input_extents,
    read_model,
    workspace_bytes,
)
from edgekit.errors import InputError
from edgekit.values import Feeds

FORMAT = 1
MODEL_FILE = "model.onnx"
ENGINE_FILE = "model.engine"
TIMING_CACHE_FILE = "timing.cache"
DEVICE_FILE = "device.json"
EXPECTED_FILE = "expected.npz"
SCRIPT_FILE = "build.sh"

INPUT_PREFIX, OUTPUT_PREFIX = "input.", "output."
"""Of the arrays' names in `expected.npz`."""

_MIB = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How one range of trtexec's versions spells what we ask of it, from `since` on.

    Source: NVIDIA/TensorRT, samples/common/sampleOptions.cpp at tags 8.2.1, 8.5.3, 8.6.1, 10.3.0,
    10.13.3, 10.16 and 11.1.
    """

    since: tuple[int, int]
    workspace: str  # of MiB
    build_only: str
    typed_by_graph: bool  # strongly typed: the precision flags are errors
    has_dla: bool


_MEMORY_POOL = "--memPoolSize=workspace:{mib}"

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
        typed_by_graph=True, has_dla=False,
    ),
)  # fmt: skip

# Before strong typing a layer without Q/DQ takes the widest type that it may: INT8 alone would
# leave those in FP32.
_PRECISION_FLAGS: Mapping[str, tuple[str, ...]] = {
    "fp32": (),
    "fp16": ("--fp16",),
    "int8": ("--int8", "--fp16"),
}


@dataclass(frozen=True, kw_only=True)
class DeviceRecipe:
    """A folder that a device can build from. `arguments` are relative to it, trtexec's own last."""

    folder: Path
    arguments: tuple[str, ...]
    files: tuple[str, ...]
    model_sha256: str


def version_of(text: str) -> tuple[int, int]:
    """(major, minor) of a TensorRT version such as "10.3" or "8.6.2.3".

    Raises InputError where the text is no version.
    """
    parts = [*text.split("."), "0"][:2]
    if not all(part.isdecimal() for part in parts):
        raise InputError("this is no TensorRT version", got=text, wanted='such as "10.3"')
    return int(parts[0]), int(parts[1])


def generation_of(version: str) -> Generation:
    """How that version of trtexec wants its flags. Raises InputError for one older than 8.2."""
    asked = version_of(version)
    fitting = [generation for generation in GENERATIONS if generation.since <= asked]
    if not fitting:
        raise InputError(
            "this TensorRT is older than edgekit knows", got=version, wanted="8.2 or later"
        )
    return fitting[-1]


def trtexec_arguments(request: EngineRequest, extents: Mapping[str, Extent]) -> tuple[str, ...]:
    """trtexec's arguments for the target's TensorRT; files are named without a folder.

    `extents` holds the dynamic inputs only. Raises InputError for a precision or a DLA core that
    this version cannot be asked for.
    """
    generation = generation_of(request.target.runtime.version)
    arguments = [f"--onnx={MODEL_FILE}", f"--saveEngine={ENGINE_FILE}"]
    workspace = workspace_bytes(request)
    if workspace is not None:
        mib = max(1, workspace // _MIB)
        arguments.append(generation.workspace.format(mib=mib))
    arguments += _precision_flags(request, generation)
    for label, place in (("min", 0), ("opt", 1), ("max", 2)):
        if extents:
            shapes = ",".join(_named_shape(name, e[place]) for name, e in extents.items())
            arguments.append(f"--{label}Shapes={shapes}")
    if request.dla_core is not None:
        arguments += _dla_flags(request, generation)
    return (
        *arguments,
        f"--timingCacheFile={TIMING_CACHE_FILE}",
        "--profilingVerbosity=detailed",
        generation.build_only,
    )


def _precision_flags(request: EngineRequest, generation: Generation) -> tuple[str, ...]:
    if generation.typed_by_graph:
        return ()
    if request.precision not in _PRECISION_FLAGS:
        raise InputError(
            f"trtexec {request.target.runtime.version} is not asked for {request.precision} here",
            where=request.target.name,
            got=request.precision, wanted=", ".join(_PRECISION_FLAGS),
        )  # fmt: skip
    return _PRECISION_FLAGS[request.precision]


def _dla_flags(request: EngineRequest, generation: Generation) -> tuple[str, ...]:
    if not generation.has_dla:
        raise InputError(
            f"TensorRT {request.target.runtime.version} has no DLA",
            where="engine.dla", got=f"core {request.dla_core}", hint="Take engine.dla out.",
        )  # fmt: skip
    return (f"--useDLACore={request.dla_core}", "--allowGPUFallback")


def _named_shape(name: str, shape: Shape) -> str:
    # trtexec takes a name in single quotes whole, whatever colons and commas it has.
    safe = name if name.replace("_", "").isalnum() else f"'{name}'"
    return f"{safe}:{'x'.join(map(str, shape))}"


def device_recipe(
    request: EngineRequest, folder: Path, *, inputs: Feeds, outputs: Feeds
) -> DeviceRecipe:
    """The folder for the device: model, `device.json`, `build.sh` and `expected.npz`.

    `inputs` and `outputs` are a few samples and what the model answers to them, first axis the
    samples; they are stored as `input.NAME` and `output.NAME`. Equal requests leave equal bytes.
    Raises InputError as `trtexec_arguments` does, and where the samples are not the model's.
    """
    model = read_model(request.model_path)
    _refuse_other_arrays("inputs", inputs, [spec.name for spec in model.inputs])
    _refuse_other_arrays("outputs", outputs, [spec.name for spec in model.outputs])
    dynamic = {spec.name for spec in model.inputs if any(isinstance(d, str) for d in spec.shape)}
    extents = input_extents(model.inputs, request)
    asked = {name: extent for name, extent in extents.items() if name in dynamic}
    arguments = trtexec_arguments(request, asked)

    content = request.model_path.read_bytes()
    expected = _npz(
        {f"{INPUT_PREFIX}{name}": array for name, array in inputs.items()}
        | {f"{OUTPUT_PREFIX}{name}": array for name, array in outputs.items()}
    )
    digests = {
        MODEL_FILE: files.digest_bytes(content),
        EXPECTED_FILE: files.digest_bytes(expected),
    }
    files.write_bytes(folder / MODEL_FILE, content)
    files.write_bytes(folder / EXPECTED_FILE, expected)
    script = _script(request, arguments, digests[MODEL_FILE])
    files.write_text(folder / SCRIPT_FILE, script)
    (folder / SCRIPT_FILE).chmod(0o755)
    digests[SCRIPT_FILE] = files.digest_bytes(script.encode())
    document = _document(request, extents, arguments, digests)
    files.write_text(folder / DEVICE_FILE, json.dumps(document, indent=2) + "\n")
    return DeviceRecipe(
        folder=folder,
        arguments=arguments,
        files=(MODEL_FILE, DEVICE_FILE, SCRIPT_FILE, EXPECTED_FILE),
        model_sha256=digests[MODEL_FILE],
    )


def _refuse_other_arrays(what: str, given: Feeds, wanted: Sequence[str]) -> None:
    if sorted(given) != sorted(wanted):
        raise InputError(
            f"the expected {what} are not the model's",
            got=", ".join(sorted(given)), wanted=", ".join(sorted(wanted)),
        )  # fmt: skip


def _npz(arrays: Feeds) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)  # type: ignore[arg-type]
    return stream.getvalue()


def _document(
    request: EngineRequest,
    extents: Mapping[str, Extent],
    arguments: Sequence[str],
    digests: Mapping[str, str],
) -> dict[str, object]:
    target = request.target
    return {
        "format": FORMAT,
        "name": request.name,
        "target": target.name,
        "runtime": {"name": target.runtime.name, "version": target.runtime.version},
        "compute_capability": target.compute_capability,
        "precision": request.precision,
        "argv": [_trtexec(request), *arguments],
        "engine": ENGINE_FILE,
        "extents": {name: [list(s) for s in extent] for name, extent in extents.items()},
        "sha256": dict(digests),
    }


def _trtexec(request: EngineRequest) -> str:
    return request.target.runtime.trtexec or "trtexec"


def _script(request: EngineRequest, arguments: Sequence[str], digest: str) -> str:
    """A POSIX shell script; the engine appears whole or not at all."""
    runtime = request.target.runtime
    partial = f"{ENGINE_FILE}.partial"
    changed = [
        f"--saveEngine={partial}" if argument.startswith("--saveEngine=") else argument
        for argument in arguments
    ]
    command = " \\\n    ".join(['"$trtexec"', *(shlex.quote(argument) for argument in changed)])
    about = f"{request.name} for {request.target.name}".replace("\n", " ")
    return f"""#!/bin/sh
# Builds {about} with TensorRT {runtime.version}. Run it on the device;
# TRTEXEC names another trtexec.
set -eu
cd -- "$(dirname -- "$0")"
trtexec=${{TRTEXEC:-{shlex.quote(_trtexec(request))}}}
if ! command -v "$trtexec" >/dev/null 2>&1; then
    echo "there is no $trtexec here: set TRTEXEC to its path" >&2
    exit 5
fi
echo '{digest}  {MODEL_FILE}' | sha256sum -c - >&2 || exit 2
{command}
mv -f {partial} {ENGINE_FILE}
echo "built {ENGINE_FILE}" >&2
"""
