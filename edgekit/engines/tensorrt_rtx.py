"""TensorRT for RTX: real engines for GPUs that this machine need not have."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

from edgekit.engines.base import (
    Engine,
    EngineRequest,
    missing_package,
    package_version,
)
from edgekit.engines.here import facts_here
from edgekit.engines.trt.common import Compiled
from edgekit.engines.trt.engine import TrtPackage, build_engine, compile_request
from edgekit.engines.trt.session import open_plan
from edgekit.errors import InputError
from edgekit.values import Session

PACKAGE = "tensorrt_rtx"
DISTRIBUTION = "tensorrt-rtx-cu12"
EXTRA = "rtx"

CAPABILITIES = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")
"""What release 1.7 compiles for, by `ComputeCapability`: no Jetson (7.2, 8.7, 11.0) is there."""


def is_installed() -> bool:
    """Whether the package is on this machine; it is not imported to find out."""
    return importlib.util.find_spec(PACKAGE) is not None


def installed_version() -> str:
    """The package's version, "absent" where there is none."""
    return package_version(DISTRIBUTION)


def build(request: EngineRequest, folder: Path) -> Engine:
    """The engine for the target's compute capability, compiled on this machine's CPU.

    Its figures are the memory that the builder states: weights, activations, scratch. Two builds
    of one model with fixed shapes are equal to the byte; with a dynamic one (1.7) the names of some
    inner values differ, and a note says so. Raises InputError where the target is none that
    TensorRT-RTX compiles for, or the model is refused, and else as `compile_apart` does.
    """
    package = _package_for(request, "")
    here = facts_here()
    built_for = {
        "compute_capability": str(request.target.compute_capability),
        "machine": here["machine"],
        "system": here["system"],
    }
    return build_engine(request, folder, package, built_for=built_for)


def compile_model(
    request: EngineRequest, place: Path, *, compute_capability: str = ""
) -> Compiled:  # fmt: skip
    """What the compiler says of the model, with the engine at `place`.

    `compute_capability`, such as "8.6", stands in for the target's own. It is the graph that is
    tried: what only the target's own TensorRT is asked for (a DLA, stripped weights) is left out.
    Raises as `build` does.
    """
    tried = replace(
        request,
        dla_core=None,
        builder=replace(request.builder, refit=False, strip=False, typing="auto"),
    )
    return compile_request(tried, place, _package_for(request, compute_capability))


def open(engine: Engine, *, threads: int = 0) -> Session:
    """The loaded engine, on a GPU of its compute capability. Never run on hardware so far.

    Raises MissingPackageError where no NVIDIA driver loads it.
    """
    del threads
    session: Session = open_plan(engine, PACKAGE, EXTRA)
    return session


def _package_for(request: EngineRequest, compute_capability: str) -> TrtPackage:
    capability = compute_capability or str(request.target.compute_capability or "")
    if capability not in CAPABILITIES:
        raise InputError(
            "TensorRT-RTX does not compile for this target",
            where=request.target.name,
            got=f"compute capability {capability or 'none'}",
            wanted=", ".join(CAPABILITIES),
        )
    if not is_installed():
        raise missing_package(PACKAGE, extra=EXTRA, got=ImportError(f"no module {PACKAGE}"))
    return TrtPackage(
        name=PACKAGE,
        extra=EXTRA,
        compute_capability=f"SM{capability.replace('.', '')}",
        times_tactics=False,
    )
