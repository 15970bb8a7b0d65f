"""A stand-in for a device: the files that its kernel shows, under a root, and tools on a PATH."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

PINNED = (
    "GPU MinFreq=1300500000 MaxFreq=1300500000 CurrentFreq=1300500000\n"
    "EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=3199000000 FreqOverride=1\n"
)
FREE = (
    "SOC family:tegra234  Machine:NVIDIA Jetson AGX Orin Developer Kit\n"
    "cpu0: Online=1 Governor=schedutil MinFreq=729600 MaxFreq=2201600 CurrentFreq=729600\n"
    "GPU MinFreq=306000000 MaxFreq=1300500000 CurrentFreq=306000000\n"
    "EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=2133000000 FreqOverride=0\n"
    "FAN Dynamic Speed Control=nvfancontrol hwmon0_pwm1=0\n"
    "NV Power Mode: MODE_30W\n"
)
MODES = """# of an AGX Orin
< PARAM TYPE=FILE NAME=CPU_ONLINE >
< POWER_MODEL ID=0 NAME=MAXN >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=MODE_15W >
< POWER_MODEL ID=2 NAME=MODE_30W >
# < POWER_MODEL ID=9 NAME=COMMENTED >
< PM_CONFIG DEFAULT=2 >
"""


@dataclass
class Device:
    """`root` has the files, `tools` the programs; both begin empty."""

    root: Path
    tools: Path

    def write(self, place: str, text: str) -> Path:
        """A file under the root."""
        path = self.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def tool(self, name: str, body: str) -> None:
        """A program of the shell on the PATH."""
        path = self.tools / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def says(self, name: str, text: str) -> None:
        """A program that prints this and ends."""
        said = self.tools / f"{name}.txt"
        said.write_text(text)
        self.tool(name, f"cat '{said}'")

    def zone(self, number: int, kind: str, milli_c: str) -> None:
        """A thermal zone."""
        self.write(f"sys/class/thermal/thermal_zone{number}/type", f"{kind}\n")
        self.write(f"sys/class/thermal/thermal_zone{number}/temp", f"{milli_c}\n")

    def cpu(self, number: int, governor: str, *, now_khz: int = 1_400_000) -> None:
        """A CPU of cpufreq."""
        place = f"sys/devices/system/cpu/cpu{number}/cpufreq"
        for name, value in (
            ("scaling_governor", governor), ("scaling_cur_freq", now_khz),
            ("scaling_min_freq", 600_000), ("scaling_max_freq", 1_500_000),
        ):  # fmt: skip
            self.write(f"{place}/{name}", f"{value}\n")

    def gpu(self, *, now: int, least: int, most: int) -> None:
        """The integrated GPU of devfreq."""
        for name, value in (("cur_freq", now), ("min_freq", least), ("max_freq", most)):
            self.write(f"sys/class/devfreq/17000000.gpu/{name}", f"{value}\n")


@dataclass
class NvmlLibrary:
    """libnvidia-ml by its functions' names: the GPUs are rows of what each answers.

    `codes` maps a function to the code that it answers instead.
    """

    gpus: list[dict[str, Any]] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)
    ended: bool = False

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("nvml") or self.codes.get(name) == -1:
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            if name in self.codes:
                return self.codes[name]
            return self._answer(name, *arguments) or 0

        return call

    def _answer(self, name: str, *arguments: Any) -> int | None:
        if name == "nvmlInit_v2":
            return None
        if name == "nvmlShutdown":
            self.ended = True
            return None
        if name == "nvmlDeviceGetCount_v2":
            arguments[0]._obj.value = len(self.gpus)
            return None
        if name == "nvmlDeviceGetHandleByIndex_v2":
            arguments[1]._obj.value = 1 + arguments[0].value
            return None
        gpu = self.gpus[arguments[0].value - 1]
        if name == "nvmlDeviceGetComputeRunningProcesses_v3":
            return self._processes(gpu["processes"], arguments[1]._obj, arguments[2])
        if name == "nvmlDeviceGetMemoryInfo":
            arguments[1]._obj.used = gpu["used"]
            return None
        *which, out = arguments[1:]
        answer = gpu[name.removeprefix("nvmlDeviceGet")]
        out._obj.value = answer[which[0].value] if isinstance(answer, dict) else answer
        return None

    @staticmethod
    def _processes(table: dict[int, int], count: ctypes.c_uint, rows: Any) -> int:
        if rows is None or count.value < len(table):
            count.value = len(table)
            return 7 if table else 0
        for row, (pid, used) in zip(rows, table.items(), strict=False):
            row.pid, row.used = pid, used
        count.value = len(table)
        return 0


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    """An empty device under the folder; of NVIDIA's tools only its own are found."""
    device = Device(root=folder / "root", tools=folder / "tools")
    device.root.mkdir()
    device.tools.mkdir()
    monkeypatch.setenv("PATH", f"{device.tools}:/usr/bin:/bin")
    return device
