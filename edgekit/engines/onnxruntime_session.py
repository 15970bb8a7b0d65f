"""A model loaded in ONNX Runtime's CPU provider, and what its errors mean."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from edgekit import machine
from edgekit.engines.base import missing_package
from edgekit.engines.inputs import other_inputs, wrong_type
from edgekit.engines.session_settings import SessionSettings
from edgekit.errors import EdgekitError, InputError, ResourceError
from edgekit.values import Array, Feeds, TensorSpec

OPENED_LEVEL = "ORT_ENABLE_ALL"

_DTYPES = {
    "float": "float32", "double": "float64", "float16": "float16", "bool": "bool",
    "int8": "int8", "int16": "int16", "int32": "int32", "int64": "int64",
    "uint8": "uint8", "uint16": "uint16", "uint32": "uint32", "uint64": "uint64",
}  # fmt: skip


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
        self._shapes: dict[str, tuple[int, ...]] = {}
        # Outputs that stay bound are written over by the next run; they must have its shape.
        self._outputs_follow = _outputs_follow(self._inputs, self._outputs)
        self._outputs_bound = False

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
            raise other_inputs(feeds, self._dtypes, self._where)
        for name, dtype in self._dtypes.items():
            array = feeds[name]
            if not array.flags.c_contiguous:
                array = np.ascontiguousarray(array)
            if array.dtype != dtype:
                raise wrong_type(name, array, dtype, self._where)
            self._staged[name] = array  # ONNX Runtime reads it where it lies
            self._binding.bind_cpu_input(name, array)
            if self._shapes.get(name) != array.shape:
                self._shapes[name], self._outputs_bound = array.shape, False

    def execute(self) -> None:
        """Runs once. Raises InputError where the inputs' shapes do not fit the model."""
        if not self._outputs_bound:
            self._binding.clear_binding_outputs()
            for spec in self._outputs:
                self._binding.bind_output(spec.name)
            self._outputs_bound = self._outputs_follow
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

    def __exit__(self, *raised: object) -> None:
        del self._binding, self._session
        self._staged.clear()


def _outputs_follow(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> bool:
    """Whether equal shapes of the inputs mean equal shapes of the outputs, as far as specs tell.

    A size that no input has may depend on what is in it (NonZero, NonMaxSuppression).
    """
    given = {size for spec in inputs for size in spec.shape if isinstance(size, str)} - {"?"}
    return all(isinstance(s, int) or s in given for spec in outputs for s in spec.shape)


def session_options(ort: Any, settings: SessionSettings, level: str) -> Any:
    """ONNX Runtime's options; `level` is the name of one of its levels of graph optimization."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what it logs as an error it raises too
    threads = settings.threads or machine.physical_cores(machine.usable_cpus())
    options.intra_op_num_threads = threads
    if not settings.spinning:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = settings.arena
    options.inter_op_num_threads = 1
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    return options


def open_session(
    model: Path | bytes, settings: SessionSettings, *, optimise: bool = True, where: str = ""
) -> OnnxRuntimeSession:
    """A model, loaded; `optimise` off leaves its graph as it is written, `where` is for errors.

    Raises InputError where ONNX Runtime refuses it, ResourceError where the memory is too small.
    """
    ort = package()
    place = where or (str(model) if isinstance(model, Path) else "")
    options = session_options(ort, settings, OPENED_LEVEL if optimise else "ORT_DISABLE_ALL")
    return OnnxRuntimeSession(inference_session(ort, model, options, place), where=place)


def inference_session(ort: Any, model: Path | bytes, options: Any, where: str) -> Any:
    """ONNX Runtime's own session on the CPU. Raises as `open_session` does."""
    source = str(model) if isinstance(model, Path) else model
    try:
        return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except _foreign_errors() as error:
        raise _translated(error, where=where, doing="load") from error


def package() -> Any:
    """The package. Raises MissingPackageError where it is not here."""
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


def _spec(node: Any) -> TensorSpec:
    kind = str(node.type).removeprefix("tensor(").removesuffix(")")
    if kind not in _DTYPES:
        raise InputError(
            f'the type of "{node.name}" is not one that edgekit carries',
            got=str(node.type), wanted=", ".join(_DTYPES),
        )  # fmt: skip
    shape = tuple(d if isinstance(d, int) else (d or "?") for d in node.shape)
    return TensorSpec(name=node.name, dtype=_DTYPES[kind], shape=shape)
