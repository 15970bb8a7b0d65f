"""What a runtime module offers, what it is asked for, and the engine that it leaves on disk.

A runtime is one module in this folder, found by its file name, with what `RuntimeModule` lists.
An engine is the runtime's own file, untouched, beside a `manifest.json` that says what it is.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, cast

from edgekit.engines.trt.inspector import EngineLayer
from edgekit.errors import InputError, MissingPackageError
from edgekit.values import (
    Feeds,
    Figure,
    Session,
    TensorSpec,
    Unknown,
)

if (
    TYPE_CHECKING
):  # onnx_ir and pydantic would come along, and a device's worker has no use for them
    from edgekit.models.model import Model
    from edgekit.targets import Target


Shape: TypeAlias = tuple[int, ...]
Extent: TypeAlias = tuple[Shape, Shape, Shape]
"""The smallest shape of an input, the one to optimise for, and the largest."""

Typing: TypeAlias = Literal["auto", "strong", "flags"]
OnBuild: TypeAlias = Callable[[float, str], None]

_GIB = 1 << 30
NOT_ASKED = Unknown("the runtime does not say what its layers are")


@dataclass(frozen=True, kw_only=True)
class BuilderOptions:
    """How a compiler of engines is driven; a runtime that has no such thing ignores it.

    `memory_cap_bytes` and `time_limit_s` are for the process that builds (None: the target's, else
    nine tenths of this machine's memory, and two hours). `typing` "strong" takes every type from
    the graph, "flags" leaves what is not quantized to the builder, "auto" is the first where the
    graph is typed for it. `refit` keeps the weights exchangeable, `strip` leaves them out of the
    plan. `max_dla_fallbacks` is how many layers may run on the GPU though a DLA was asked for.
    `timing_cache` is a folder that outlives the build. `search_s` is how long a CPU's runtime may
    measure settings of its session; 0 takes the defaults, and equal builds are equal.
    """

    memory_cap_bytes: int | None = None
    time_limit_s: float | None = None
    typing: Typing = "auto"
    refit: bool = False
    strip: bool = False
    optimization_level: int | None = None
    max_dla_fallbacks: int | None = None
    timing_cache: Path | None = None
    search_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """An ONNX file that is already in the target's dialect, and how its engine is wanted.

    `batch` is (min, opt, max) for each input whose first dimension is dynamic; `shapes` says the
    whole extent of an input and wins over it. `workspace_bytes` None is the target's default,
    `threads` 0 all physical cores that the process may use when the engine is opened. `sample`
    holds real inputs, first axis the samples, for runtimes that compare before they promise.
    `on_progress` is told the share that is done, from 0 to 1, and of what.
    """

    model_path: Path
    name: str
    target: Target
    precision: str
    batch: tuple[int, int, int] = (1, 1, 1)
    shapes: Mapping[str, Extent] = field(default_factory=dict)
    workspace_bytes: int | None = None
    dla_core: int | None = None
    threads: int = 0
    sample: Feeds | None = None
    builder: BuilderOptions = field(default_factory=BuilderOptions)
    on_progress: OnBuild | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A built artefact on disk, as its manifest tells it.

    `path` is the engine file; `model_sha256` is of the ONNX file that it was built from.
    `built_for` names the hardware (compute capability, or processor features), `settings` what the
    session or the builder was given, `flags` the builder's flags by their own names. `layers` are
    the engine's own, where it could be asked. `log_sha256` is of the builder's log, `build.log`
    beside the engine; "" where the runtime has none. Nothing in it depends on when or how fast it
    was built, so that equal builds leave equal files, unless a note says that the runtime times.
    """

    path: Path
    name: str
    target: str
    runtime: str
    runtime_version: str
    precision: str
    sha256: str
    file_bytes: int
    model_sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    extents: Mapping[str, Extent] = field(default_factory=dict)
    built_for: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str | int] = field(default_factory=dict)
    figures: Mapping[str, Figure] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    layers: tuple[EngineLayer, ...] | Unknown = field(default_factory=lambda: NOT_ASKED)
    log_sha256: str = ""
    notes: tuple[str, ...] = ()


class RuntimeModule(Protocol):
    """A module of this folder that builds and opens engines."""

    PACKAGE: str
    """The name under which its package is imported."""

    def installed_version(self) -> str:
        """The package's version, "absent" where there is none. Imports nothing."""

    def build(self, request: EngineRequest, folder: Path) -> Engine:
        """The engine, its file and its manifest written into the folder, the manifest last.

        Whoever wants both or neither lends a folder of `files.replacing_folder`. Raises InputError
        where the runtime refuses the model, MissingPackageError where its package is not here.
        """

    def open(self, engine: Engine, *, threads: int = 0) -> Session:
        """The loaded engine; `threads` 0 takes the engine's own setting."""


def runtime_names() -> tuple[str, ...]:
    """The runtimes of this folder, sorted."""
    folder = str(Path(__file__).parent)
    found = (module.name for module in pkgutil.iter_modules([folder]))
    return tuple(sorted(name for name in found if _module(name) is not None))


def runtime_module(name: str) -> RuntimeModule:
    """The module of a runtime. Its package is imported only by what needs it.

    Raises InputError for a name that is no runtime.
    """
    # Only the one that is asked for is imported: a device's worker pays for no other.
    is_here = name.isidentifier() and (Path(__file__).parent / f"{name}.py").is_file()
    module = _module(name) if is_here else None
    if module is None:
        raise InputError(
            f'there is no runtime called "{name}"', wanted=", ".join(runtime_names())
        )  # fmt: skip
    return cast(RuntimeModule, module)


def _module(name: str) -> object | None:
    module = importlib.import_module(f"edgekit.engines.{name}")
    whole = all(
        hasattr(module, member) for member in ("PACKAGE", "installed_version", "build", "open")
    )
    return module if whole else None


def missing_package(package: str, *, extra: str, got: ImportError) -> MissingPackageError:
    """The error that says which package is not here, and the pip command that brings it."""
    name = f"edgekit[{extra}]" if extra else "edgekit"
    return MissingPackageError(
        f"the package {package} is not on this machine",
        got=str(got),
        hint=f"pip install '{name}'",
    )


def package_version(distribution: str) -> str:
    """The installed version of a distribution, "absent" where there is none. Imports nothing."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"


def workspace_bytes(request: EngineRequest) -> int:
    """The builder's workspace: the request's, else the target's, else a quarter of its memory.

    It is never left to the builder, whose own default is all of the device's memory; where not
    even that is known it is 1 GiB.
    """
    asked = request.workspace_bytes or request.target.builder.workspace_bytes
    if asked:
        return asked
    memory = request.target.memory
    return max(memory.bytes // 4, 1) if memory is not None and memory.bytes else _GIB


def read_model(path: Path) -> Model:
    """The graph of an ONNX file as it stands: nothing cleaned, nothing inferred.

    Raises InputError where there is none.
    """
    import onnx_ir as ir
    from google.protobuf.message import DecodeError

    from edgekit.models.model import Model

    try:
        program = ir.load(path)
    except (OSError, DecodeError, ValueError, TypeError) as error:
        raise InputError(
            "this is no ONNX file that can be read",
            where=str(path), got=f"{type(error).__name__}: {error}",
        ) from error  # fmt: skip
    return Model(name=path.stem, program=program)


def input_extents(inputs: Sequence[TensorSpec], request: EngineRequest) -> dict[str, Extent]:
    """The extent of every input. A static one has three equal shapes.

    Raises InputError for a dynamic dimension that nobody gave a size, for a request that
    contradicts a static one or itself, and for a name that is no input of the model.
    """
    _refuse_unknown_inputs(inputs, request)
    return {spec.name: _extent(spec, request) for spec in inputs}


def _refuse_unknown_inputs(inputs: Sequence[TensorSpec], request: EngineRequest) -> None:
    names = [spec.name for spec in inputs]
    for name in request.shapes:
        if name not in names:
            raise InputError(
                f'the model has no input "{name}"',
                where="engine.shapes", wanted=", ".join(names),
            )  # fmt: skip


def _extent(spec: TensorSpec, request: EngineRequest) -> Extent:
    given = request.shapes.get(spec.name)
    where = f"engine.shapes.{spec.name}" if given else "engine.batch"
    shapes: list[Shape] = []
    for place in range(3):
        shape = given[place] if given else _with_batch(spec, request.batch[place])
        _check_shape(spec, shape, where)
        shapes.append(shape)
    smallest, best, largest = shapes
    if not all(a <= b <= c for a, b, c in zip(smallest, best, largest, strict=True)):
        raise InputError(
            f'the shapes of "{spec.name}" are not in order',
            where=where, got=f"{smallest}, {best}, {largest}", wanted="min <= opt <= max",
        )  # fmt: skip
    return smallest, best, largest


def _with_batch(spec: TensorSpec, batch: int) -> Shape:
    sizes: list[int] = []
    for axis, size in enumerate(spec.shape):
        if isinstance(size, str) and axis:
            raise InputError(
                f'the dimension "{size}" of the input "{spec.name}" has no size',
                where=f"engine.shapes.{spec.name}",
                got=str(spec),
                wanted="its smallest, best and largest shape",
                hint=f"[engine.shapes.{spec.name}] takes min, opt and max, each a whole shape.",
            )
        sizes.append(batch if axis == 0 and isinstance(size, str) else int(size))
    return tuple(sizes)


def _check_shape(spec: TensorSpec, shape: Shape, where: str) -> None:
    fits = len(shape) == len(spec.shape) and all(
        asked > 0 and (isinstance(size, str) or asked == size)
        for asked, size in zip(shape, spec.shape, strict=True)
    )
    if not fits:
        raise InputError(
            f'the shape asked for does not fit the input "{spec.name}"',
            where=where, got=str(shape), wanted=str(spec),
        )  # fmt: skip
