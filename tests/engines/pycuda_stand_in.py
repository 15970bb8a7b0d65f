"""A stand-in of pycuda.driver, on the CPU's own memory."""

from __future__ import annotations

import types
from typing import Any

import numpy as np


class PycudaDriver(types.SimpleNamespace):
    """pycuda.driver, as far as PycudaMemory uses it, on the CPU's memory."""

    class Error(Exception):
        pass

    class MemoryError(Error):
        pass

    def __init__(self) -> None:
        super().__init__()
        self.pushed = 0
        self.blocks: dict[int, Any] = {}

    def init(self) -> None:
        if getattr(self, "absent", False):
            raise self.Error("cuInit failed: no CUDA-capable device is detected")

    def Device(self, index: int) -> Any:  # noqa: N802
        assert index == 0
        return types.SimpleNamespace(retain_primary_context=lambda: self)

    def push(self) -> None:
        self.pushed += 1

    def pop(self) -> None:
        self.pushed -= 1

    def mem_alloc(self, size: int) -> Any:
        if size > 1 << 30:
            raise self.MemoryError("cuMemAlloc failed: out of memory")
        block = np.zeros(size, np.uint8)
        self.blocks[block.ctypes.data] = block
        driver = self

        class Allocation:
            def __int__(self) -> int:
                return int(block.ctypes.data)

            def free(self) -> None:
                del driver.blocks[block.ctypes.data]

        return Allocation()

    def pagelocked_empty(self, size: int, dtype: Any) -> Any:
        return np.empty(size, dtype)

    def Stream(self, flags: int) -> Any:  # noqa: N802
        assert flags == 1
        return types.SimpleNamespace(handle=77, synchronize=lambda: None)

    def memcpy_htod_async(self, address: int, source: Any, stream: Any) -> None:
        assert stream.handle == 77
        self.blocks[address][: source.nbytes] = source.reshape(-1).view(np.uint8)

    def memcpy_dtoh_async(self, target: Any, address: int, stream: Any) -> None:
        target.reshape(-1).view(np.uint8)[:] = self.blocks[address][: target.nbytes]

    def mem_get_info(self) -> tuple[int, int]:
        return 1, 2
