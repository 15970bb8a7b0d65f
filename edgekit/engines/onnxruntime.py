"""ONNX Runtime's CPU provider: the reference, the calibration runner, and a target of its own."""

from __future__ import annotations

import contextlib
import functools
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from edgekit import files, machine
from edgekit.engines.base import (
    Engine,
    EngineRequest,
    Extent,
    input_extents,
    missing_package,
    package_version,
    write_manifest,
)
from edgekit.engines.here import processor_here
from edgekit.errors import EdgekitError, InputError, ResourceError
from edgekit.values import Array, Feeds, TensorSpec, run

if TYPE_CHECKING:  # onnx_ir would come along, and a device's worker has no use for it
    from edgekit.models.model import Model

PACKAGE = "onnxruntime"
ENGINE_FILE = "model.onnx"

# Saved at this level a graph has its fusions but no layout of one processor; the layout is chosen
# when the file is opened, and changes no output.
_SAVED_LEVEL = "ORT_ENABLE_EXTENDED"
_OPENED_LEVEL = "ORT_ENABLE_ALL"
_TOLERANCE = 1e-5

_DTYPES = {
    "float": "float32", "double": "float64", "float16": "float16", "bool": "bool",
    "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64",
    "uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "uint64": "uint64",
}  # fmt: skip


def installed_version() -> str:
    """The package's version, "absent" where there is none."""
    return package_version(PACKAGE)


def build(request: EngineRequest, folder: Path) -> Engine:
    """The engine: the model with ONNX Runtime's fusions done, and the session's settings.

    The file is opened again and must give the source's outputs (relative error at most 1e-5) on
    the request's sample, or on seeded noise where it has none; else the source itself is the
    engine, and a note says why. Raises InputError where ONNX Runtime refuses the model.
    """
    ort = _package()
    place = folder / ENGINE_FILE
    with _opened(request.model_path, threads=request.threads) as source:
        extents = input_extents(source.inputs, request)
        feeds = _comparison_feeds(source.inputs, extents, request.sample)
        wanted = run(source, feeds)
        inputs, outputs = source.inputs, source.outputs
    with files.replacing(place) as partial:
        notes = _write(request, partial, feeds, wanted)
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
        settings={"threads": request.threads, "graph_optimization": _OPENED_LEVEL},
        notes=notes,
    )
    write_manifest(engine)
    return engine


def open(engine: Engine, *, threads: int = 0) -> OnnxRuntimeSession:
    """The loaded engine. `threads` 0 takes the engine's setting, and that at 0 all cores.

    Raises InputError where this ONNX Runtime cannot load the file.
    """
    chosen = threads or int(engine.settings.get("threads", 0))
    return _opened(engine.path, threads=chosen)


def open_bytes(content: bytes, *, threads: int = 0, optimise: bool = True) -> OnnxRuntimeSession:
    """Any ONNX model from memory. `optimise` off leaves the graph exactly as it is written.

    Q/DQ are then computed in floating point: the quantization itself, without any kernel's own
    rounding. Raises InputError where ONNX Runtime refuses the model.
    """
    return _opened(content, threads=threads, optimise=optimise)


def open_model(model: Model, *, threads: int = 0, optimise: bool = True) -> OnnxRuntimeSession:
    """A Model, loaded. `optimise` and errors as in `open_bytes`."""
    from edgekit.models.model import to_bytes

    return _opened(to_bytes(model), threads=threads, optimise=optimise, where=model.name)


def fused_bytes(model: Model, *, as_on_arm: bool = False) -> bytes:
    """The ONNX file of the graph with ONNX Runtime's fusions done, as its kernels would run.

    No layout of one processor is chosen, so a node that was not fused keeps its name. `as_on_arm`
    leaves int8 activations alone, which x86 would turn into uint8 first. Raises InputError where
    ONNX Runtime refuses the model.
    """
    from edgekit.models.model import to_bytes

    ort = _package()
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        place = Path(folder) / ENGINE_FILE
        options = _options(ort, 1, _SAVED_LEVEL)
        options.optimized_model_filepath = str(place)
        if as_on_arm:
            options.add_session_config_entry("session.qdqisint8allowed", "1")
        _inference_session(ort, to_bytes(model), options, model.name)
        return place.read_bytes()


class OnnxRuntimeSession:
    """A model in ONNX Runtime on the CPU. `stage` copies nothing: the arrays must not change."""

    def __init__(self, session: Any, *, where: str) -> None:
        self._session = session
        self._where = where
        self._binding = session.io_binding()
        self._inputs = tuple(_spec(node) for node in session.get_inputs())
        self._outputs = tuple(_spec(node) for node in session.get_outputs())
        self._dtypes = {spec.name: np.dtype(spec.dtype) for spec in self._inputs}
        self._staged: dict[str, Array] = {}

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `stage` wants."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `fetch` gives."""
        return self._outputs

    def stage(self, feeds: Feeds) -> None:
        """Binds the inputs. Raises InputError for a missing one and for a wrong dtype."""
        if feeds.keys() != self._dtypes.keys():
            raise InputError(
                "these are not the model's inputs",
                where=self._where, got=", ".join(feeds), wanted=", ".join(self._dtypes),
            )  # fmt: skip
        for name, dtype in self._dtypes.items():
            array = np.ascontiguousarray(feeds[name])
            if array.dtype != dtype:
                raise InputError(
                    f'the input "{name}" has the wrong type',
                    where=self._where, got=str(array.dtype), wanted=str(dtype),
                )  # fmt: skip
            self._staged[name] = array  # ONNX Runtime reads it where it lies
            self._binding.bind_cpu_input(name, array)

    def execute(self) -> None:
        """Runs once. Raises InputError where the inputs' shapes do not fit the model."""
        self._binding.clear_binding_outputs()
        for spec in self._outputs:
            self._binding.bind_output(spec.name)
        try:
            self._session.run_with_iobinding(self._binding)
        except _foreign_errors() as error:
            raise _translated(error, where=self._where, doing="run") from error

    def fetch(self) -> dict[str, Array]:
        """The outputs by name."""
        arrays = self._binding.copy_outputs_to_cpu()
        return {spec.name: a for spec, a in zip(self._outputs, arrays, strict=True)}

    def __enter__(self) -> OnnxRuntimeSession:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        del self._binding, self._session
        self._staged.clear()


def _package() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package("onnxruntime", extra="", got=error) from error
    return onnxruntime


@functools.cache
def _foreign_errors() -> tuple[type[Exception], ...]:
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "Fail", "InvalidArgument", "NoSuchFile", "NoModel", "EngineError", "RuntimeException",
        "InvalidProtobuf", "ModelLoaded", "NotImplemented", "InvalidGraph", "EPFail",
    )  # fmt: skip
    return (*(getattr(state, name) for name in names if hasattr(state, name)), RuntimeError)


def _translated(error: Exception, *, where: str, doing: str) -> EdgekitError:
    said = " ".join(str(error).split())
    if "bad_alloc" in said or "Failed to allocate memory" in said:
        return ResourceError(
            f"ONNX Runtime ran out of memory: it could not {doing} the model",
            where=where, got=said, hint="Use a smaller batch, or a machine with more memory.",
        )  # fmt: skip
    return InputError(f"ONNX Runtime cannot {doing} the model", where=where, got=said)


def _options(ort: Any, threads: int, level: str) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what it logs as an error it raises too
    options.intra_op_num_threads = threads or machine.physical_cores(machine.usable_cpus())
    options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    return options


def _opened(
    model: Path | bytes, *, threads: int, optimise: bool = True, where: str = ""
) -> OnnxRuntimeSession:
    ort = _package()
    place = where or (str(model) if isinstance(model, Path) else "")
    options = _options(ort, threads, _OPENED_LEVEL if optimise else "ORT_DISABLE_ALL")
    return OnnxRuntimeSession(_inference_session(ort, model, options, place), where=place)


def _inference_session(ort: Any, model: Path | bytes, options: Any, where: str) -> Any:
    source = str(model) if isinstance(model, Path) else model
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except _foreign_errors() as error:
        raise _translated(error, where=where, doing="load") from error


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
    _opened(place, threads=request.threads)  # weights in files of their own would be left behind
    return (f"the model is stored as it was given, not with ONNX Runtime's fusions: {note}",)


@contextlib.contextmanager
def _optimised(request: EngineRequest) -> Iterator[Path]:
    ort = _package()
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        place = Path(folder) / ENGINE_FILE
        options = _options(ort, request.threads, _SAVED_LEVEL)
        options.optimized_model_filepath = str(place)
        _inference_session(ort, request.model_path, options, str(request.model_path))
        yield place


def _difference(
    place: Path, threads: int, feeds: Feeds, wanted: Mapping[str, Array]
) -> float:  # fmt: skip
    """max|a - b| / max|b| over the outputs of the file; 0 where all of b is 0 and a equals it."""
    with _opened(place, threads=threads) as session:
        found = run(session, feeds)
    worst = 0.0
    for name, reference in wanted.items():
        if np.array_equal(found[name], reference, equal_nan=reference.dtype.kind == "f"):
            continue
        b = reference.astype(np.float64)
        largest = float(np.abs(found[name].astype(np.float64) - b).max())
        scale = float(np.abs(b).max())
        error = largest / scale if scale else float(np.finfo(np.float64).max)
        worst = max(worst, error) if np.isfinite(error) else float(np.finfo(np.float64).max)
    return worst


def _comparison_feeds(
    inputs: Sequence[TensorSpec], extents: Mapping[str, Extent], sample: Feeds | None
) -> dict[str, Array]:
    """A batch of the size to optimise for: from the sample, else standard normal, seed 0."""
    noise = np.random.default_rng(0)
    feeds: dict[str, Array] = {}
    for spec in inputs:
        shape = extents[spec.name][1]
        if sample is not None and spec.name in sample:
            rows = np.resize(np.arange(len(sample[spec.name])), shape[0])
            feeds[spec.name] = sample[spec.name][rows]
        elif np.dtype(spec.dtype).kind == "f":
            feeds[spec.name] = noise.standard_normal(shape).astype(spec.dtype)
        else:
            feeds[spec.name] = np.ones(shape, spec.dtype)
    return feeds


def _spec(node: Any) -> TensorSpec:
    kind = str(node.type).removeprefix("tensor(").removesuffix(")")
    if kind not in _DTYPES:
        raise InputError(
            f'the type of "{node.name}" is not one that edgekit carries',
            got=str(node.type), wanted=", ".join(_DTYPES),
        )  # fmt: skip
    shape = tuple(d if isinstance(d, int) else (d or "?") for d in node.shape)
    return TensorSpec(name=node.name, dtype=_DTYPES[kind], shape=shape)
