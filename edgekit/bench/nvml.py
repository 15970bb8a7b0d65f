"""What NVIDIA's driver says of a discrete GPU, through its library libnvidia-ml and ctypes.

A dozen functions that drivers have had for years: no package is needed for them. Written from the
NVML API's reference and run against a stand-in of the library only, never on a GPU.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.values import Figure, Unknown

_NAMES = ("libnvidia-ml.so.1", "libnvidia-ml.so")
_SM_CLOCK, _MEMORY_CLOCK = 1, 2  # nvmlClockType_t
_GPU_SENSOR = 0  # nvmlTemperatureSensors_t
_INSUFFICIENT_SIZE = 7
_NOT_AVAILABLE = (1 << 64) - 1  # NVML_VALUE_NOT_AVAILABLE

SLOWED: Mapping[int, str] = {
    0x08: "the hardware slows it down (heat, or its supply)",
    0x20: "the driver slows it down for its heat",
    0x40: "the hardware slows it down for its heat",
    0x80: "the power supply asks for less (power brake)",
}  # fmt: skip
"""The clocks' throttle reasons that make a run another than was asked for. A power cap (0x04) is
how a card works at full load, and the others are settings or idleness."""

_POWER_CAP = 0x04


@dataclass(frozen=True, kw_only=True)
class GpuReading:
    """One moment of a GPU. `own_bytes` is the memory of each of the asked-for processes on it."""

    sm_hz: Figure
    most_sm_hz: Figure
    memory_hz: Figure
    power_w: Figure
    temperature_c: Figure
    used_bytes: Figure
    own_bytes: Mapping[int, Figure] | Unknown
    slowed: tuple[str, ...] | Unknown
    power_capped: bool


class _Memory(ctypes.Structure):
    _fields_ = (
        ("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong),
    )  # fmt: skip


class _Process(ctypes.Structure):
    """nvmlProcessInfo_t of the functions with the suffix _v3."""

    _fields_ = (
        ("pid", ctypes.c_uint),
        ("used", ctypes.c_ulonglong),
        ("gpu_instance", ctypes.c_uint),
        ("compute_instance", ctypes.c_uint),
    )


class Nvml:
    """The one GPU of this machine, or of several the one that a process of ours is on."""

    def __init__(self, library: Any) -> None:
        self._library = library
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        self._devices = [self._device(index) for index in range(count.value)]

    def read(self, pids: Collection[int]) -> GpuReading | Unknown:
        """The GPU now; `own_bytes` is of these processes."""
        if not self._devices:
            return Unknown("NVIDIA's driver lists no GPU")
        own = [(device, self._own_bytes(device, pids)) for device in self._devices]
        if len(own) > 1:  # CUDA counts them in another order than NVML
            own = [pair for pair in own if not isinstance(pair[1], Unknown)]
        if len(own) != 1:
            return Unknown(f"there are {len(self._devices)} GPUs, and {len(own)} of them run ours")
        device, own_bytes = own[0]
        reasons = self._long("nvmlDeviceGetCurrentClocksThrottleReasons", device)
        slowed: tuple[str, ...] | Unknown
        if isinstance(reasons, Unknown):
            slowed, capped = reasons, False
        else:
            slowed = tuple(said for bit, said in SLOWED.items() if int(reasons) & bit)
            capped = bool(int(reasons) & _POWER_CAP)
        return GpuReading(
            sm_hz=_times(self._int("nvmlDeviceGetClockInfo", device, _SM_CLOCK), 1e6),
            most_sm_hz=_times(self._int("nvmlDeviceGetMaxClockInfo", device, _SM_CLOCK), 1e6),
            memory_hz=_times(self._int("nvmlDeviceGetClockInfo", device, _MEMORY_CLOCK), 1e6),
            power_w=_times(self._int("nvmlDeviceGetPowerUsage", device), 1e-3),
            temperature_c=self._int("nvmlDeviceGetTemperature", device, _GPU_SENSOR),
            used_bytes=self._used_bytes(device),
            own_bytes=own_bytes,
            slowed=slowed,
            power_capped=capped,
        )

    def close(self) -> None:
        """Gives the library back."""
        with contextlib.suppress(_NvmlError):
            self._call("nvmlShutdown")

    def _device(self, index: int) -> Any:
        device = ctypes.c_void_p()
        self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(index), ctypes.byref(device))
        return device

    def _own_bytes(self, device: Any, pids: Collection[int]) -> Mapping[int, Figure] | Unknown:
        """Of our processes on the device. In a container NVML may tell the host's numbers."""
        count = ctypes.c_uint(0)
        name = "nvmlDeviceGetComputeRunningProcesses_v3"
        try:
            code = self._code(name, device, ctypes.byref(count), None)
            if code not in (0, _INSUFFICIENT_SIZE):
                raise _NvmlError(f"{name}: {code}")
            room = ctypes.c_uint(count.value + 8)  # some may start between the calls
            table = (_Process * room.value)()
            self._call(name, device, ctypes.byref(room), table)
        except _NvmlError as error:
            return Unknown(str(error))
        hidden = Unknown("NVML does not say a process's memory here")
        ours: dict[int, Figure] = {
            int(row.pid): hidden if row.used == _NOT_AVAILABLE else float(row.used)
            for row in table[: room.value]
            if row.pid in pids
        }
        return ours or Unknown("NVML lists no process of ours on the GPU")

    def _used_bytes(self, device: Any) -> Figure:
        memory = _Memory()
        try:
            self._call("nvmlDeviceGetMemoryInfo", device, ctypes.byref(memory))
        except _NvmlError as error:
            return Unknown(str(error))
        return float(memory.used)

    def _int(self, name: str, device: Any, *which: int) -> Figure:
        return self._number(ctypes.c_uint(), name, device, *which)

    def _long(self, name: str, device: Any) -> Figure:
        return self._number(ctypes.c_ulonglong(), name, device)

    def _number(self, number: Any, name: str, device: Any, *which: int) -> Figure:
        try:
            self._call(name, device, *map(ctypes.c_uint, which), ctypes.byref(number))
        except _NvmlError as error:
            return Unknown(str(error))
        return float(number.value)

    def _call(self, name: str, *arguments: Any) -> None:
        if code := self._code(name, *arguments):
            raise _NvmlError(f"{name} answers {code}")

    def _code(self, name: str, *arguments: Any) -> int:
        try:
            return int(getattr(self._library, name)(*arguments))
        except AttributeError as error:
            raise _NvmlError(f"this driver has no {name}") from error


@contextlib.contextmanager
def nvml(library: Any = None) -> Iterator[Nvml | Unknown]:
    """Lends NVML, or the reason why there is none here. `library`: in place of libnvidia-ml."""
    found = library if library is not None else _find()
    if isinstance(found, Unknown):
        yield found
        return
    opened: Nvml | Unknown
    try:
        if code := found.nvmlInit_v2():
            raise _NvmlError(f"nvmlInit_v2 answers {code}")
        opened = Nvml(found)
    except (_NvmlError, AttributeError) as error:
        opened = Unknown(f"NVML: {error}")
    try:
        yield opened
    finally:
        if isinstance(opened, Nvml):
            opened.close()


class _NvmlError(Exception):
    """A function of NVML's gave another answer than success; it never leaves this module."""


def _find() -> Any:
    for name in _NAMES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return Unknown("NVIDIA's driver (libnvidia-ml) is not on this machine")


def _times(figure: Figure, factor: float) -> Figure:
    return figure if isinstance(figure, Unknown) else figure * factor
