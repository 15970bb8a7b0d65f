"""TensorRT, releases 8.5 to 11, on the device that the engine is for.

Everything here is written against NVIDIA's sources and tested against a stand-in that has the
names of each release and no others. It has never been run with TensorRT itself.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from edgekit.engines.base import Engine, EngineRequest, missing_package
from edgekit.engines.here import facts_here
from edgekit.engines.trt.common import Compiled
from edgekit.engines.trt.engine import TrtPackage, build_engine, compile_request
from edgekit.engines.trt.session import open_plan
from edgekit.errors import InputError
from edgekit.values import Session

PACKAGE = "tensorrt"
EXTRA = "tensorrt"

# What an engine holds for: a plan is for one release on one kind of GPU (facts_here's names).
_BUILT_FOR = (
    "machine", "system", "device", "compute_capability", "driver", "cuda", "jetpack", "l4t",
    "power_mode",
)  # fmt: skip


def is_installed() -> bool:
    """Whether the package is on this machine; it is not imported to find out."""
    return importlib.util.find_spec(PACKAGE) is not None


def installed_version() -> str:
    """The package's version, "absent" where it is not here."""
    if not is_installed():
        return "absent"
    return facts_here().get("tensorrt", "present, of an unknown version")


def build(request: EngineRequest, folder: Path) -> Engine:
    """The engine for the GPU at hand, its kernels timed on it: two builds may differ.

    Raises InputError where the GPU is not the target's or the model is refused, and else as
    `compile_apart` does.
    """
    package = _package_for(request)
    here = facts_here()
    found = {name: here[name] for name in _BUILT_FOR if name in here}
    return build_engine(request, folder, package, built_for=found)


def compile_model(request: EngineRequest, place: Path) -> Compiled:
    """What the compiler says of the model, with the plan at `place`. Raises as `build` does."""
    return compile_request(request, place, _package_for(request))


def open(engine: Engine, *, threads: int = 0) -> Session:
    """The loaded engine on the first GPU.

    Raises MissingPackageError where TensorRT, a driver or a GPU is missing, InputError where this
    TensorRT does not take the plan.
    """
    del threads
    session: Session = open_plan(engine, PACKAGE, EXTRA)
    return session


def _package_for(request: EngineRequest) -> TrtPackage:
    if not is_installed():
        raise missing_package(PACKAGE, extra=EXTRA, got=ImportError(f"no module {PACKAGE}"))
    wanted = str(request.target.compute_capability)
    found = facts_here().get("compute_capability", wanted)
    if found != wanted:
        raise InputError(
            "this machine's GPU is not the target's: a plan holds for the GPU that built it",
            where=request.target.name,
            got=f"compute capability {found}", wanted=wanted,
            hint="Build it on the device, from its recipe.",
        )  # fmt: skip
    return TrtPackage(name=PACKAGE, extra=EXTRA)
