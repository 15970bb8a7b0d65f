"""The CUDA runtime's library, libcudart, through ctypes: for cuda.py, and for nobody else.

Written from the CUDA runtime API's reference; so far run against a stand-in of that library only,
never on a GPU.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.errors import EdgekitError, InputError, MissingPackageError, ResourceError
from edgekit.values import Array

_OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
_NO_DEVICE = frozenset({3, 35, 38, 46, 100, 999})  # no, old or unusable driver; no device
_NON_BLOCKING = 1  # cudaStreamNonBlocking: it does not wait for the default stream
_TO_DEVICE, _TO_HOST = 1, 2  # cudaMemcpyKind

_NAMES = (
    "libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so.10.2",
)  # fmt: skip
_PLACES = ("/usr/local/cuda/lib64", "/usr/local/cuda/targets/aarch64-linux/lib")

HINT = (
    "Install NVIDIA's driver and CUDA runtime (on a Jetson: JetPack's nvidia-cuda packages), "
    "or copy the engine's folder to a machine that has them."
)


@dataclass(frozen=True, kw_only=True)
class CudaVersions:
    """Such as "12.6": what the driver supports at most, "none" without one; and the library's."""

    driver: str
    runtime: str


def runtime_library() -> Any:
    """libcudart, from the loader's path, from CUDA's folder, or from NVIDIA's wheels.

    Raises MissingPackageError where there is none.
    """
    found = find_library()
    if found is None:
        raise MissingPackageError(
            "the CUDA runtime is not on this machine", wanted=_NAMES[0], hint=HINT
        )
    return found


def versions(library: Any = None) -> CudaVersions:
    """The versions. Raises MissingPackageError where libcudart is not here."""
    library = library if library is not None else runtime_library()
    told = []
    for name in ("cudaDriverGetVersion", "cudaRuntimeGetVersion"):
        number = ctypes.c_int()
        check(library, name, ctypes.byref(number))
        major, minor = number.value // 1000, number.value % 1000 // 10
        told.append(f"{major}.{minor}" if number.value else "none")
    return CudaVersions(driver=told[0], runtime=told[1])


def find_library() -> Any:
    """libcudart as `runtime_library` finds it, None where there is none."""
    for name in _candidates():
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _candidates() -> list[str]:
    found = ctypes.util.find_library("cudart")
    names = [found] if found else []
    names += _NAMES
    for place in _PLACES:
        names += [str(path) for path in sorted(Path(place).glob("libcudart.so*"))]
    for place in sys.path:  # nvidia-cuda-runtime-cu12 and its like
        wheels = Path(place) / "nvidia"
        if wheels.is_dir():
            names += [str(path) for path in sorted(wheels.glob("*/lib/libcudart.so*"))]
    return names


def check(library: Any, name: str, *arguments: Any) -> None:
    """Calls a function of the library. Raises as `error_of` says where its answer is no success."""
    try:
        function = getattr(library, name)
    except AttributeError as error:
        raise MissingPackageError(
            "this CUDA runtime is older than edgekit knows", got=f"it has no {name}", hint=HINT
        ) from error
    code = function(*arguments)
    if code:
        raise error_for(library, name, code)


def error_for(library: Any, name: str, code: int) -> EdgekitError:
    """The error for a code that a function of the library gave, in the library's own words."""
    describe = library.cudaGetErrorString
    describe.restype = ctypes.c_char_p
    text = describe(ctypes.c_int(code))
    said = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    library.cudaGetLastError()  # else the next call reports it again
    return error_of(name, code, said)


def error_of(name: str, code: int, said: str) -> EdgekitError:
    """The error for a code of the CUDA runtime's."""
    got = f"{name}: {said} ({code})"
    if code == _OUT_OF_MEMORY:
        return ResourceError(
            "the GPU's memory ran out", got=got,
            hint="Use a smaller batch or engine, or end what else uses the GPU.",
        )  # fmt: skip
    if code in _NO_DEVICE:
        return MissingPackageError(
            "there is no GPU that CUDA can use on this machine", got=got, hint=HINT
        )
    return InputError("CUDA reports an error", got=got)


class RuntimeMemory:
    """Buffers and streams through libcudart. Every address is a plain integer."""

    def __init__(self, library: Any) -> None:
        self._library = library
        count = ctypes.c_int()
        check(library, "cudaGetDeviceCount", ctypes.byref(count))
        check(library, "cudaSetDevice", ctypes.c_int(0))

    def allocate(self, size: int) -> int:
        """Device memory."""
        address = ctypes.c_void_p()
        check(self._library, "cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size))
        return address.value or 0

    def free(self, address: int) -> None:
        """Gives it back."""
        check(self._library, "cudaFree", ctypes.c_void_p(address))

    def pinned(self, size: int) -> Array:
        """Page-locked host memory, uint8."""
        address = ctypes.c_void_p()
        check(
            self._library, "cudaHostAlloc", ctypes.byref(address), ctypes.c_size_t(size),
            ctypes.c_uint(0),
        )  # fmt: skip
        raw = (ctypes.c_uint8 * size).from_address(address.value or 0)
        return np.ctypeslib.as_array(raw)

    def release(self, pinned: Array) -> None:
        """Gives page-locked memory back; no view of it may be used afterwards."""
        check(self._library, "cudaFreeHost", ctypes.c_void_p(pinned.ctypes.data))

    def to_device(self, address: int, source: Array, stream: int) -> None:
        """Copies in the order of the stream."""
        check(
            self._library, "cudaMemcpyAsync", ctypes.c_void_p(address),
            ctypes.c_void_p(source.ctypes.data), ctypes.c_size_t(source.nbytes),
            ctypes.c_int(_TO_DEVICE), ctypes.c_void_p(stream),
        )  # fmt: skip

    def to_host(self, target: Array, address: int, stream: int) -> None:
        """Copies in the order of the stream."""
        check(
            self._library, "cudaMemcpyAsync", ctypes.c_void_p(target.ctypes.data),
            ctypes.c_void_p(address), ctypes.c_size_t(target.nbytes),
            ctypes.c_int(_TO_HOST), ctypes.c_void_p(stream),
        )  # fmt: skip

    def create_stream(self) -> int:
        """A stream that does not wait for the default one."""
        stream = ctypes.c_void_p()
        check(
            self._library, "cudaStreamCreateWithFlags", ctypes.byref(stream),
            ctypes.c_uint(_NON_BLOCKING),
        )  # fmt: skip
        return stream.value or 0

    def synchronize(self, stream: int) -> None:
        """Waits for the stream."""
        check(self._library, "cudaStreamSynchronize", ctypes.c_void_p(stream))

    def destroy_stream(self, stream: int) -> None:
        """Ends the stream."""
        check(self._library, "cudaStreamDestroy", ctypes.c_void_p(stream))

    def memory_info(self) -> tuple[int, int]:
        """Free and total bytes."""
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        check(self._library, "cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def close(self) -> None:
        """Nothing is left: the primary context is TensorRT's too."""
