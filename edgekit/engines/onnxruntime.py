"""ONNX Runtime's CPU provider: the reference, the calibration runner, and a target of its own."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgekit import files, machine
from edgekit.engines.base import Engine, EngineRequest, input_extents, package_version
from edgekit.engines.comparison import comparison_feeds, relative_error
from edgekit.engines.here import processor_here
from edgekit.engines.manifest import write_manifest
from edgekit.engines.onnxruntime_session import (
    OPENED_LEVEL,
    OnnxRuntimeSession,
    inference_session,
    open_session,
    package,
    session_options,
)
from edgekit.engines.session_settings import (
    Found,
    SessionSettings,
    candidates,
    search,
    settings_from_manifest,
    unless_busy,
)
from edgekit.errors import InputError
from edgekit.values import Array, Feeds, run

if TYPE_CHECKING:  # onnx_ir would come along, and a device's worker has no use for it
    from edgekit.models.model import Model

__all__ = [
    "ENGINE_FILE", "PACKAGE", "OnnxRuntimeSession", "build", "fused_bytes", "installed_version",
    "open", "open_bytes", "open_model",
]  # fmt: skip

PACKAGE = "onnxruntime"
ENGINE_FILE = "model.onnx"

# Saved at this level a graph has its fusions but no layout of one processor; the layout is chosen
# when the file is opened, and changes no output.
_SAVED_LEVEL = "ORT_ENABLE_EXTENDED"
_TOLERANCE = 1e-5
_MEASURED = "the session's settings were measured; another build may find others"


def installed_version() -> str:
    """The package's version, "absent" where there is none."""
    return package_version(PACKAGE)


def build(request: EngineRequest, folder: Path) -> Engine:
    """The engine: the model with ONNX Runtime's fusions done, and the session's settings.

    The file is opened again and must give the source's outputs (relative error at most 1e-5) on
    the request's sample, or on seeded noise where it has none; else the source itself is the
    engine, and a note says why. Raises InputError where ONNX Runtime refuses the model.
    """
    ort = package()
    place = folder / ENGINE_FILE
    asked = _asked(request.threads)
    with open_session(request.model_path, asked) as source:
        extents = input_extents(source.inputs, request)
        feeds = comparison_feeds(source.inputs, extents, request.sample)
        wanted = run(source, feeds)
        inputs, outputs = source.inputs, source.outputs
    with files.replacing(place) as partial:
        notes = _write(request, partial, feeds, wanted)
    settings: dict[str, str | int] = {}
    if request.builder.search_s > 0:
        found = _searched(request, place, feeds)
        asked, settings = found.settings, {"searched": found.said}
        notes += (
            f"the session's settings were measured, another build may find others: {found.said}",
        )
    engine = Engine(
        path=place,
        name=request.name,
        target=request.target.name,
        runtime=PACKAGE,
        runtime_version=str(ort.__version__),
        precision=request.precision,
        sha256=files.digest_file(place),
        file_bytes=place.stat().st_size,
        model_sha256=files.digest_file(request.model_path),
        inputs=inputs,
        outputs=outputs,
        extents=extents,
        built_for=processor_here(),
        settings={**asked.to_manifest(), "graph_optimization": OPENED_LEVEL, **settings},
        notes=notes,
    )
    write_manifest(engine)
    return engine


def open(engine: Engine, *, threads: int = 0) -> OnnxRuntimeSession:
    """The loaded engine. `threads` 0 takes the engine's setting, and that at 0 all cores.

    Settings that were searched on a machine of more cores are held to the cores of this one. Raises
    InputError where this ONNX Runtime cannot load the file.
    """
    settings = settings_from_manifest(engine.settings)
    if threads:
        settings = replace(settings, threads=threads)
    elif "searched" in engine.settings:
        settings = replace(settings, threads=min(settings.threads, len(machine.usable_cpus())))
    return open_session(engine.path, settings)


def open_bytes(content: bytes, *, threads: int = 0, optimise: bool = True) -> OnnxRuntimeSession:
    """Any ONNX model from memory. `optimise` off leaves the graph exactly as it is written.

    Q/DQ are then computed in floating point: the quantization itself, without any kernel's own
    rounding. Raises InputError where ONNX Runtime refuses the model.
    """
    return open_session(content, _asked(threads), optimise=optimise)


def open_model(model: Model, *, threads: int = 0, optimise: bool = True) -> OnnxRuntimeSession:
    """A Model, loaded. `optimise` and errors as in `open_bytes`."""
    from edgekit.models.model import to_bytes

    return open_session(to_bytes(model), _asked(threads), optimise=optimise, where=model.name)


def fused_bytes(model: Model, *, as_on_arm: bool = False) -> bytes:
    """The ONNX file of the graph with ONNX Runtime's fusions done, as its kernels would run.

    No layout of one processor is chosen, so a node that was not fused keeps its name. `as_on_arm`
    leaves int8 activations alone, which x86 would turn into uint8 first. Raises InputError where
    ONNX Runtime refuses the model.
    """
    from edgekit.models.model import to_bytes

    ort = package()
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        place = Path(folder) / ENGINE_FILE
        options = session_options(ort, _asked(1), _SAVED_LEVEL)
        options.optimized_model_filepath = str(place)
        if as_on_arm:
            options.add_session_config_entry("session.qdqisint8allowed", "1")
        inference_session(ort, to_bytes(model), options, model.name)
        return place.read_bytes()


def _searched(request: EngineRequest, place: Path, feeds: Feeds) -> Found:
    base, cpus = _asked(request.threads), machine.usable_cpus()
    tried = candidates(base, machine.physical_cores(cpus), len(cpus))

    def opened(settings: SessionSettings) -> OnnxRuntimeSession:
        return open_session(place, settings)

    def find() -> Found:
        return search(opened, feeds, tried, base, seconds=request.builder.search_s)

    return unless_busy(find, base)


def _write(
    request: EngineRequest, place: Path, feeds: Feeds, wanted: Mapping[str, Array]
) -> tuple[str, ...]:
    """Puts the optimised model at the place, or else the source, and says why in a note."""
    try:
        with _optimised(request) as optimised:
            error = _difference(optimised, request.threads, feeds, wanted)
            if error <= _TOLERANCE:
                shutil.copyfile(optimised, place)
                return ()
            note = f"its outputs differ by {error:.1e}"
    except InputError as refusal:
        note = f"{refusal.what}: {refusal.got}"
    shutil.copyfile(request.model_path, place)
    open_session(
        place, _asked(request.threads)
    )  # weights in files of their own would be left behind
    return (f"the model is stored as it was given, not with ONNX Runtime's fusions: {note}",)


@contextlib.contextmanager
def _optimised(request: EngineRequest) -> Iterator[Path]:
    ort = package()
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        place = Path(folder) / ENGINE_FILE
        options = session_options(ort, _asked(request.threads), _SAVED_LEVEL)
        options.optimized_model_filepath = str(place)
        inference_session(ort, request.model_path, options, str(request.model_path))
        yield place


def _difference(place: Path, threads: int, feeds: Feeds, wanted: Mapping[str, Array]) -> float:
    with open_session(place, _asked(threads)) as session:
        return relative_error(run(session, feeds), wanted)


def _asked(threads: int) -> SessionSettings:
    return SessionSettings(threads=threads)
