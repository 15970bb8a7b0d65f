"""Device memory, streams and graphs: the only part of edgekit that talks to CUDA.

Memory and streams go through pycuda where it is installed (cuda_pycuda.py), else through ctypes
and the CUDA runtime's library (cuda_runtime.py), which every TensorRT brings or needs; graphs
always through the latter. Both work in the device's primary context, which is also TensorRT's;
`pycuda.autoinit`, which makes one of its own, is never imported. So far it has only been run
against a stand-in of that library, never on a GPU.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Protocol

from edgekit.engines.cuda_runtime import (
    HINT,
    RuntimeMemory,
    check,
    error_for,
    find_library,
    runtime_library,
)
from edgekit.errors import MissingPackageError
from edgekit.values import Array

_THREAD_LOCAL = 1  # cudaStreamCaptureModeThreadLocal


class Memory(Protocol):
    """Where buffers and streams come from: pycuda, or libcudart. Addresses are plain integers."""

    def allocate(self, size: int) -> int:
        """Device memory."""

    def free(self, address: int) -> None:
        """Gives it back."""

    def pinned(self, size: int) -> Array:
        """Page-locked host memory, uint8."""

    def release(self, pinned: Array) -> None:
        """Gives it back; no view of it may be used afterwards."""

    def to_device(self, address: int, source: Array, stream: int) -> None:
        """Copies in the order of the stream."""

    def to_host(self, target: Array, address: int, stream: int) -> None:
        """Copies in the order of the stream."""

    def create_stream(self) -> int:
        """A stream that does not wait for the default one."""

    def synchronize(self, stream: int) -> None:
        """Waits for the stream."""

    def destroy_stream(self, stream: int) -> None:
        """Ends the stream."""

    def memory_info(self) -> tuple[int, int]:
        """Free and total bytes."""

    def close(self) -> None:
        """Leaves the device's context as it was found."""


class Device:
    """The first GPU, with one stream. A context manager; everything it lent is gone at its end.

    Raises MissingPackageError where there is no CUDA, no driver or no GPU.
    """

    def __init__(self, *, library: Any = None, memory: Memory | None = None) -> None:
        self._library = library if library is not None else find_library()
        self._memory = memory if memory is not None else _memory(self._library)
        self._buffers: list[int] = []
        self._pinned: list[Array] = []
        self._graphs: list[ctypes.c_void_p] = []
        self.stream = self._memory.create_stream()

    def allocate(self, size: int) -> int:
        """The address of so many bytes on the device. Raises ResourceError where there are none."""
        address = self._memory.allocate(max(size, 1))
        self._buffers.append(address)
        return address

    def free(self, address: int) -> None:
        """Gives a buffer back before the end."""
        self._buffers.remove(address)
        self._memory.free(address)

    def pinned(self, size: int) -> Array:
        """So many bytes of host memory, uint8, that the device copies without a detour."""
        raw = self._memory.pinned(max(size, 1))
        self._pinned.append(raw)
        return raw

    def release(self, pinned: Array) -> None:
        """Gives host memory back before the end; no view of it may be used afterwards."""
        self._pinned = [raw for raw in self._pinned if raw is not pinned]
        self._memory.release(pinned)

    def to_device(self, address: int, source: Array) -> None:
        """Copies a contiguous array, in the order of the stream."""
        self._memory.to_device(address, source, self.stream)

    def to_host(self, target: Array, address: int) -> None:
        """Copies into a contiguous array, in the order of the stream."""
        self._memory.to_host(target, address, self.stream)

    def synchronize(self) -> None:
        """Waits for all that the stream was given."""
        self._memory.synchronize(self.stream)

    def memory_info(self) -> tuple[int, int]:
        """Free and total bytes; on a Jetson these are the memory that the CPU uses too."""
        return self._memory.memory_info()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """What `work` puts into the stream, as one launch. `work` has run once before.

        Raises EdgekitError where it cannot be captured; the stream is as before.
        """
        if self._library is None:
            raise MissingPackageError(
                "a CUDA graph needs libcudart, and it is not found here", hint=HINT
            )
        library, stream = self._library, ctypes.c_void_p(self.stream)
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        check(library, "cudaStreamBeginCapture", stream, ctypes.c_int(_THREAD_LOCAL))
        try:
            work()
        except BaseException:  # a capture that is left open would swallow all that comes
            library.cudaStreamEndCapture(stream, ctypes.byref(graph))
            if graph.value:
                library.cudaGraphDestroy(graph)
            raise
        code = library.cudaStreamEndCapture(stream, ctypes.byref(graph))
        if code:
            raise error_for(library, "cudaStreamEndCapture", code)
        try:
            # Through this entry, whose last argument CUDA 12 renamed and CUDA 11.4 brought, one
            # call serves all versions.
            check(
                library, "cudaGraphInstantiateWithFlags", ctypes.byref(executable), graph,
                ctypes.c_ulonglong(0),
            )  # fmt: skip
        finally:
            library.cudaGraphDestroy(graph)
        self._graphs.append(executable)

        def launch() -> None:
            check(library, "cudaGraphLaunch", executable, stream)

        return launch

    def forget_graphs(self) -> None:
        """Destroys every captured graph."""
        for graph in self._graphs:
            self._library.cudaGraphExecDestroy(graph)
        self._graphs.clear()

    def close(self) -> None:
        """Gives everything back; nothing is done twice."""
        self.forget_graphs()
        for address in self._buffers:
            self._memory.free(address)
        for raw in self._pinned:
            self._memory.release(raw)
        self._buffers.clear()
        self._pinned.clear()
        if self.stream:
            self._memory.destroy_stream(self.stream)
            self.stream = 0
            self._memory.close()

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()


def _memory(library: Any) -> Memory:
    """pycuda's where it is there, else libcudart's."""
    try:
        from pycuda import driver
    except ImportError:
        return RuntimeMemory(library if library is not None else runtime_library())
    from edgekit.engines.cuda_pycuda import PycudaMemory

    return PycudaMemory(driver)
