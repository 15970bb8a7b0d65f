# ruff: noqa: N802 (the names are CUDA's)
"""A stand-in of libcudart: its functions by name and argument, on the CPU's own memory."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from tensorrt_stand_in import CAPTURED


class Cudart:
    """`failing` maps a function's name to the code that it answers; `calls` are all, in order."""

    def __init__(self, **failing: int) -> None:
        self.failing = failing
        self.calls: list[str] = []
        self.memory: dict[int, Any] = {}
        self.streams: set[int] = set()
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self._next = 100
        for name in dir(self):
            if name.startswith("_cuda"):
                setattr(self, name[1:], self._function(name[1:], getattr(self, name)))

    def _function(self, name: str, body: Callable[..., Any]) -> Callable[..., Any]:
        def function(*arguments: Any) -> Any:
            self.calls.append(name)
            if name in self.failing:
                return self.failing[name]
            answer = body(*arguments)
            return 0 if answer is None else answer

        return function

    def _number(self) -> int:
        self._next += 1
        return self._next

    def _take(self, out: Any, size: Any) -> None:
        block = (ctypes.c_uint8 * size.value)()
        out._obj.value = ctypes.addressof(block)
        self.memory[out._obj.value] = block

    def _give(self, address: Any) -> None:
        del self.memory[address.value]

    def _cudaGetDeviceCount(self, out: Any) -> None:
        out._obj.value = 1

    def _cudaSetDevice(self, index: Any) -> None:
        assert index.value == 0

    def _cudaDriverGetVersion(self, out: Any) -> None:
        out._obj.value = 12060

    def _cudaRuntimeGetVersion(self, out: Any) -> None:
        out._obj.value = 11040

    def _cudaMalloc(self, out: Any, size: Any) -> None:
        self._take(out, size)

    def _cudaFree(self, address: Any) -> None:
        self._give(address)

    def _cudaHostAlloc(self, out: Any, size: Any, flags: Any) -> None:
        self._take(out, size)

    def _cudaFreeHost(self, address: Any) -> None:
        self._give(address)

    def _cudaMemcpyAsync(self, *arguments: Any) -> None:
        target, source, size, kind, stream = arguments
        assert kind.value in (1, 2)
        assert stream.value in self.streams
        ctypes.memmove(target.value, source.value, size.value)

    def _cudaStreamCreateWithFlags(self, out: Any, flags: Any) -> None:
        assert flags.value == 1
        out._obj.value = self._number()
        self.streams.add(out._obj.value)

    def _cudaStreamDestroy(self, stream: Any) -> None:
        self.streams.remove(stream.value)

    def _cudaStreamSynchronize(self, stream: Any) -> None:
        assert stream.value in self.streams
        assert not CAPTURED, "a stream under capture cannot be waited for"

    def _cudaMemGetInfo(self, free: Any, total: Any) -> None:
        free._obj.value, total._obj.value = 3 << 30, 8 << 30

    def _cudaStreamBeginCapture(self, stream: Any, mode: Any) -> None:
        CAPTURED.append([])

    def _cudaStreamEndCapture(self, stream: Any, out: Any) -> int:
        captured = CAPTURED.pop()
        if "EndCapture" not in self.failing:
            out._obj.value = self._number()
            self.graphs[out._obj.value] = captured
        return self.failing.get("EndCapture", 0)

    def _cudaGraphInstantiateWithFlags(self, out: Any, graph: Any, flags: Any) -> None:
        out._obj.value = self._number()
        self.graphs[out._obj.value] = self.graphs[graph.value]

    def _cudaGraphLaunch(self, graph: Any, stream: Any) -> None:
        for work in self.graphs[graph.value]:
            work()

    def _cudaGraphDestroy(self, graph: Any) -> None:
        del self.graphs[graph.value]

    def _cudaGraphExecDestroy(self, graph: Any) -> None:
        del self.graphs[graph.value]

    def _cudaGetErrorString(self, code: Any) -> bytes:
        return f"error {code.value}".encode()

    def _cudaGetLastError(self) -> None:
        return None

    def left(self) -> tuple[int, int, int]:
        """What was never given back: blocks, streams, graphs."""
        return len(self.memory), len(self.streams), len(self.graphs)
