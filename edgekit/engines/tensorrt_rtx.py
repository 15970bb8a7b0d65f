"""TensorRT for RTX: real engines for GPUs that this machine need not have."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit import files
from edgekit.engines import trt_common
from edgekit.engines.base import (
    Engine,
    EngineRequest,
    input_extents,
    missing_package,
    package_version,
    read_model,
    workspace_bytes,
    write_manifest,
)
from edgekit.errors import InputError, MissingPackageError
from edgekit.values import Session

PACKAGE = "tensorrt_rtx"
DISTRIBUTION = "tensorrt-rtx-cu12"
EXTRA = "rtx"
ENGINE_FILE = "model.engine"

# Release 1.7: `ComputeCapability` has these. No Jetson (7.2, 8.7, 11.0) is among them.
_CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")


def is_installed() -> bool:
    """Whether the package is on this machine; it is not imported to find out."""
    return importlib.util.find_spec(PACKAGE) is not None


def installed_version() -> str:
    """The package's version, "absent" where there is none."""
    return package_version(DISTRIBUTION)


def build(request: EngineRequest, folder: Path) -> Engine:
    """The engine for the target's compute capability, compiled on this machine's CPU.

    Its figures are the memory that the builder states: weights, activations, scratch. Raises
    InputError where the target is none that TensorRT-RTX compiles for, or the model is refused.
    """
    place = folder / ENGINE_FILE
    with files.replacing(place) as partial:
        compiled = compile_model(request, partial)
    engine = Engine(
        path=place,
        name=request.name,
        target=request.target.name,
        runtime=PACKAGE,
        runtime_version=compiled.version,
        precision=request.precision,
        sha256=files.digest_file(place),
        file_bytes=place.stat().st_size,
        model_sha256=files.digest_file(request.model_path),
        inputs=compiled.inputs,
        outputs=compiled.outputs,
        extents=input_extents(read_model(request.model_path).inputs, request),
        built_for={"compute_capability": str(request.target.compute_capability)},
        settings=_settings(request),
        figures=compiled.figures,
        notes=compiled.warnings,
    )
    write_manifest(engine)
    return engine


def compile_model(
    request: EngineRequest, place: Path, *, compute_capability: str = ""
) -> trt_common.Compiled:
    """What the compiler says of the model, with the engine at `place`.

    `compute_capability`, such as "8.6", stands in for the target's own. Raises as `build` does.
    """
    capability = compute_capability or str(request.target.compute_capability or "")
    if capability not in _CAPABILITIES:
        raise InputError(
            "TensorRT-RTX does not compile for this target",
            where=request.target.name,
            got=f"compute capability {capability or 'none'}",
            wanted=", ".join(_CAPABILITIES),
        )
    if not is_installed():
        raise missing_package(PACKAGE, extra=EXTRA, got=ImportError(f"no module {PACKAGE}"))
    inputs = read_model(request.model_path).inputs
    extents = input_extents(inputs, request)
    dynamic = {spec.name for spec in inputs if any(isinstance(d, str) for d in spec.shape)}
    return trt_common.compile_apart(
        trt_common.CompileJob(
            package=PACKAGE,
            extra=EXTRA,
            model=str(request.model_path),
            engine=str(place),
            compute_capability=f"SM{capability.replace('.', '')}",
            workspace_bytes=workspace_bytes(request),
            extents={name: extent for name, extent in extents.items() if name in dynamic},
        )
    )


def open(engine: Engine, *, threads: int = 0) -> Session:
    """Raises MissingPackageError where no NVIDIA driver loads the engine: on every machine so far.

    Running one needs device memory, which no part of edgekit handles yet.
    """
    del threads
    trt = _package()
    logger = trt_common.collecting_logger(trt)
    loaded = trt.Runtime(logger).deserialize_cuda_engine(engine.path.read_bytes())
    said = " ".join(message for severity, message in logger.lines if "ERROR" in severity)
    raise MissingPackageError(
        "this engine cannot be run here",
        where=str(engine.path),
        got=said or ("it loads" if loaded is not None else "it does not load"),
        wanted=f"a GPU of compute capability {engine.built_for.get('compute_capability', '?')}, "
        "its driver and pycuda",
        hint="Copy the engine's folder to that machine.",
    )


def _package() -> Any:
    try:
        import tensorrt_rtx
    except ImportError as error:
        raise missing_package(PACKAGE, extra=EXTRA, got=error) from error
    return tensorrt_rtx


def _settings(request: EngineRequest) -> Mapping[str, str | int]:
    workspace = workspace_bytes(request)
    return {} if workspace is None else {"workspace_bytes": workspace}
