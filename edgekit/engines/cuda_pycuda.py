"""Buffers and streams through pycuda, for cuda.py, which imports it.

Written from pycuda's documentation; never run on a GPU so far.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from edgekit.errors import InputError, MissingPackageError, ResourceError
from edgekit.values import Array

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING
_NO_DEVICE = re.compile(r"no.?device|no CUDA-capable|driver|not.?initialized|system", re.I)


class PycudaMemory:
    """The first device's primary context, which TensorRT uses too. `driver` is `pycuda.driver`.

    Raises MissingPackageError where there is no GPU.
    """

    def __init__(self, driver: Any) -> None:
        self._driver = driver
        self._blocks: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}
        with self._translated("the GPU's context"):
            driver.init()
            self._context = driver.Device(0).retain_primary_context()
            self._context.push()

    def allocate(self, size: int) -> int:
        """Device memory."""
        with self._translated(f"{size} bytes of device memory"):
            block = self._driver.mem_alloc(size)
        self._blocks[int(block)] = block
        return int(block)

    def free(self, address: int) -> None:
        """Gives it back."""
        self._blocks.pop(address).free()

    def pinned(self, size: int) -> Array:
        """Page-locked host memory, uint8."""
        with self._translated(f"{size} bytes of page-locked memory"):
            found: Array = self._driver.pagelocked_empty(size, np.uint8)
        return found

    def release(self, pinned: Array) -> None:
        """pycuda gives page-locked memory back with the last view of it."""

    def to_device(self, address: int, source: Array, stream: int) -> None:
        """Copies in the order of the stream."""
        with self._translated("a copy to the device"):
            self._driver.memcpy_htod_async(address, source, self._streams[stream])

    def to_host(self, target: Array, address: int, stream: int) -> None:
        """Copies in the order of the stream."""
        with self._translated("a copy from the device"):
            self._driver.memcpy_dtoh_async(target, address, self._streams[stream])

    def create_stream(self) -> int:
        """A stream that does not wait for the default one."""
        with self._translated("a stream"):
            stream = self._driver.Stream(_NON_BLOCKING)
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def synchronize(self, stream: int) -> None:
        """Waits for the stream."""
        with self._translated("waiting for the stream"):
            self._streams[stream].synchronize()

    def destroy_stream(self, stream: int) -> None:
        """Ends the stream."""
        del self._streams[stream]

    def memory_info(self) -> tuple[int, int]:
        """Free and total bytes."""
        free, total = self._driver.mem_get_info()
        return int(free), int(total)

    def close(self) -> None:
        """Leaves the context as it was found."""
        self._context.pop()

    @contextlib.contextmanager
    def _translated(self, wanted: str) -> Iterator[None]:
        driver = self._driver
        try:
            yield
        except driver.MemoryError as error:
            raise ResourceError(
                "the GPU's memory ran out", got=str(error), wanted=wanted,
                hint="Use a smaller batch or engine, or end what else uses the GPU.",
            ) from error  # fmt: skip
        except driver.Error as error:
            if _NO_DEVICE.search(str(error)):
                raise MissingPackageError(
                    "there is no GPU that CUDA can use on this machine",
                    got=str(error), wanted=wanted,
                    hint="Install NVIDIA's driver, or copy the engine's folder to a machine that "
                    "has one.",
                ) from error  # fmt: skip
            raise InputError("CUDA reports an error", got=str(error), wanted=wanted) from error
