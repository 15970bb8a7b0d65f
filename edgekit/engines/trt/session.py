"""A loaded TensorRT or TensorRT-RTX engine, for releases 8.5 and later.

Every tensor has an address, and the work goes into a stream of its own; the same shapes twice in a
row are captured as a CUDA graph. Run against a stand-in of TensorRT and CUDA only, never on a GPU.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgekit.engines.base import Engine, missing_package
from edgekit.engines.cuda import Device
from edgekit.engines.inputs import other_inputs, wrong_type
from edgekit.engines.trt import runtime_cache
from edgekit.engines.trt.child import collecting_logger, dtype_name
from edgekit.engines.trt.common import is_out_of_memory
from edgekit.errors import EdgekitError, InputError, MissingPackageError, ResourceError
from edgekit.values import Array, Feeds, TensorSpec

_LOG = logging.getLogger(__name__)
_SHOWN = 3
_REBUILD = "Build the engine again, on this device and with this TensorRT: edgekit build."


def open_plan(engine: Engine, package: str, extra: str, *, device: Device | None = None) -> Any:
    """The engine as a Session.

    Raises MissingPackageError without the package, a driver or a GPU, InputError where TensorRT
    does not take the plan, or a tensor of it has a type that numpy has not.
    """
    try:
        trt = importlib.import_module(package)
    except (ImportError, OSError) as error:
        raise missing_package(package, extra=extra, got=ImportError(str(error))) from error
    if "STRIP_PLAN" in engine.flags:
        raise InputError(
            "this plan is stripped: it has no weights", where=str(engine.path),
            hint="Its weights have to be put back by a refit from the ONNX file, which edgekit "
            "does not do; build it without `strip`.",
        )  # fmt: skip
    try:
        opened = device if device is not None else Device()
    except MissingPackageError as error:
        raise MissingPackageError(
            "this engine cannot be run here",
            where=str(engine.path),
            got=f"{error.what}: {error.got}".rstrip(": "),
            wanted=f"a GPU of compute capability {engine.built_for.get('compute_capability', '?')}"
            ", its driver, and pycuda or libcudart",
            hint="Copy the engine's folder to that machine.",
        ) from error
    try:
        return TrtSession(trt, engine, opened)
    except BaseException:
        opened.close()
        raise


@dataclass
class _Buffer:
    """One tensor's places: page-locked on the host (`host` is a view of it), and on the device."""

    raw: Array
    address: int
    host: Array


class TrtSession:
    """A loaded engine on the first GPU. `notes` says what is not as fast as it could be."""

    def __init__(self, trt: Any, engine: Engine, device: Device) -> None:
        self._device = device
        self._where = str(engine.path)
        self._extents = engine.extents
        self._logger = _logger_of(trt)
        self._said_before = len(self._logger.lines)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(engine.path.read_bytes())
        if self._engine is None:
            raise self._refusal("TensorRT does not take this engine")
        self._keep_cache: Callable[[], None] = lambda: None
        self._context = self._execution_context(engine)
        if self._context is None:
            raise self._refusal("TensorRT makes no context for this engine")
        self._inputs, self._outputs = self._specs(trt)
        self._buffers: dict[str, _Buffer] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._launch: Callable[[], None] | None = None
        self._runs, self._captures, self._notes = 0, True, list[str]()

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What `stage` wants; the types are the engine's, not the ONNX file's."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What `fetch` gives."""
        return self._outputs

    @property
    def notes(self) -> tuple[str, ...]:
        """Why it runs without a CUDA graph, where it does."""
        return tuple(self._notes)

    def stage(self, feeds: Feeds) -> None:
        """Copies the inputs to the device.

        Raises InputError for a missing input, a wrong type, and a shape outside the profile.
        """
        if feeds.keys() != {spec.name for spec in self._inputs}:
            wanted = [spec.name for spec in self._inputs]
            raise other_inputs(feeds, wanted, self._where, whose="engine")
        arrays = {spec.name: self._checked(spec, feeds[spec.name]) for spec in self._inputs}
        shapes = {name: array.shape for name, array in arrays.items()}
        if shapes != self._shapes:
            self._reshape(shapes)
        for name, array in arrays.items():
            buffer = self._buffers[name]
            np.copyto(buffer.host, array)
            self._device.to_device(buffer.address, buffer.host)
        self._device.synchronize()

    def execute(self) -> None:
        """Runs once and waits for the end. Raises InputError where TensorRT reports an error."""
        # A first run of new shapes does what a capture may not: allocations, lazy loading.
        if self._launch is None and self._captures and self._runs == 1:
            self._launch = self._captured()
        if self._launch is None:
            self._enqueue()
        else:
            self._launch()
        self._device.synchronize()
        self._runs += 1

    def fetch(self) -> dict[str, Array]:
        """The outputs by name, copied to the host."""
        for spec in self._outputs:
            buffer = self._buffers[spec.name]
            self._device.to_host(buffer.host, buffer.address)
        self._device.synchronize()
        return {spec.name: self._buffers[spec.name].host.copy() for spec in self._outputs}

    def report_layers_to(self, profiler: Any) -> None:
        """Has every run from now on tell an IProfiler its layers' times; without a CUDA graph."""
        self._launch, self._captures = None, False
        self._context.profiler = profiler

    def __enter__(self) -> TrtSession:
        return self

    def __exit__(self, *raised: object) -> None:
        self._keep_cache()
        self._launch = None
        self._device.forget_graphs()
        # The context before the engine, and both before the memory that they use.
        self._context = self._engine = self._runtime = None
        self._buffers.clear()
        self._device.close()

    def _execution_context(self, engine: Engine) -> Any:
        """With the kernels that an earlier session compiled, where the package compiles late."""
        if not hasattr(self._engine, "create_runtime_config"):
            return self._engine.create_execution_context()
        config = self._engine.create_runtime_config()
        if not hasattr(config, "create_runtime_cache"):
            return self._engine.create_execution_context()
        self._keep_cache = runtime_cache.lend(config, engine)
        return self._engine.create_execution_context(config)

    def _specs(self, trt: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        inputs: list[TensorSpec] = []
        outputs: list[TensorSpec] = []
        for index in range(self._engine.num_io_tensors):
            name = self._engine.get_tensor_name(index)
            spec = TensorSpec(
                name=name,
                dtype=self._dtype(name),
                shape=tuple(s if s >= 0 else "?" for s in self._engine.get_tensor_shape(name)),
            )
            is_input = self._engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT
            (inputs if is_input else outputs).append(spec)
        return tuple(inputs), tuple(outputs)

    def _dtype(self, name: str) -> str:
        found = dtype_name(self._engine.get_tensor_dtype(name))
        try:
            return str(np.dtype(found).name)
        except TypeError as error:
            raise InputError(
                f'the tensor "{name}" has a type that no array has', where=self._where, got=found,
                hint="Cast it to float32 or float16 in the model.",
            ) from error  # fmt: skip

    def _checked(self, spec: TensorSpec, array: Array) -> Array:
        if array.dtype != np.dtype(spec.dtype):
            raise wrong_type(spec.name, array, spec.dtype, self._where)
        fits = array.ndim == len(spec.shape) and all(
            isinstance(size, str) or size == given
            for size, given in zip(spec.shape, array.shape, strict=True)
        )
        if not fits:
            raise self._wrong_shape(spec, array.shape)
        return array

    def _wrong_shape(self, spec: TensorSpec, shape: tuple[int, ...]) -> InputError:
        extent = self._extents.get(spec.name)
        wanted = f"{extent[0]} to {extent[2]}" if extent else str(spec)
        return InputError(
            f'the engine was not built for this shape of "{spec.name}"',
            where=self._where, got=str(shape), wanted=wanted, hint=_REBUILD,
        )  # fmt: skip

    def _reshape(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """New shapes: addresses for all tensors, and no graph yet."""
        self._launch = None
        self._device.forget_graphs()
        self._runs, self._shapes = 0, {}
        for spec in self._inputs:
            shape = shapes[spec.name]
            moves = any(isinstance(size, str) for size in spec.shape)
            if moves and not self._context.set_input_shape(spec.name, shape):
                raise self._wrong_shape(spec, shape)
            self._place(spec, shape)
        for spec in self._outputs:
            shape = tuple(int(size) for size in self._context.get_tensor_shape(spec.name))
            if any(size < 0 for size in shape):
                raise InputError(
                    f'the size of the output "{spec.name}" depends on what is in the input',
                    where=self._where, got=str(shape),
                    hint="Cut the model before the operator that decides it (NonMaxSuppression, "
                    "NonZero).",
                )  # fmt: skip
            self._place(spec, shape)
        self._shapes = dict(shapes)

    def _place(self, spec: TensorSpec, shape: tuple[int, ...]) -> None:
        dtype = np.dtype(spec.dtype)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        had = self._buffers.get(spec.name)
        if had is not None and had.raw.nbytes >= size:
            raw, address = had.raw, had.address
        else:
            if had is not None:
                del self._buffers[spec.name]
                self._device.free(had.address)
                self._device.release(had.raw)
            raw, address = self._device.pinned(size), self._device.allocate(size)
        host = raw[:size].view(dtype).reshape(shape)
        self._buffers[spec.name] = _Buffer(raw, address, host)
        if not self._context.set_tensor_address(spec.name, address):
            raise self._refusal(f'TensorRT takes no address for "{spec.name}"')

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._device.stream):
            raise self._refusal("TensorRT could not run the engine")

    def _captured(self) -> Callable[[], None] | None:
        try:
            return self._device.capture(self._enqueue)
        except EdgekitError as error:
            self._captures = False
            self._notes.append(
                f"it runs without a CUDA graph: {error.what}: {error.got}".rstrip(": ")
            )
            _LOG.warning("%s: %s", self._where, self._notes[-1])
            return None

    def _refusal(self, what: str) -> EdgekitError:
        lines = self._logger.lines[self._said_before :]
        said = [message for severity, message in lines if "ERROR" in severity]
        got = "\n".join(said[-_SHOWN:]) or "no reason given"
        if is_out_of_memory(got):
            return ResourceError(
                what, where=self._where, got=got,
                hint="Use a smaller batch or engine, or end what else uses the GPU.",
            )  # fmt: skip
        return InputError(what, where=self._where, got=got, hint=_REBUILD)


@functools.cache
def _logger_of(trt: Any) -> Any:
    """TensorRT keeps the first logger of a process for all that come after, so there is one."""
    return collecting_logger(trt)
