"""Whether jetson_clocks has pinned a Jetson's clocks: its own report, else the kernel's files.

Written from output that devices printed; never run on a Jetson so far.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from edgekit import board
from edgekit.bench import sensors
from edgekit.values import Figure, Unknown

_GPU = re.compile(r"^GPU\b.*$", re.MULTILINE)
_EMC = re.compile(r"^EMC\b.*$", re.MULTILINE)
SILENT = Unknown("jetson_clocks --show said nothing: it wants root")


@dataclass(frozen=True, kw_only=True)
class JetsonClocks:
    """The GPU's clocks in Hz, and whether the memory's clock is held (1) or not (0)."""

    gpu_now_hz: Figure
    gpu_least_hz: Figure
    gpu_most_hz: Figure
    memory_held: Figure

    @property
    def pinned(self) -> bool | Unknown:
        """The proof: the GPU's least, most and present clock are one, and the memory's is held.

        One of the two that is known to fail disproves it; what is not known proves nothing.
        """
        gpu = (self.gpu_now_hz, self.gpu_least_hz, self.gpu_most_hz)
        known = {clock for clock in gpu if not isinstance(clock, Unknown)}
        if len(known) > 1 or self.memory_held == 0:
            return False
        unknown = next((f for f in (self.memory_held, *gpu) if isinstance(f, Unknown)), None)
        return unknown if unknown is not None else True


def read_clocks(root: Path = Path("/")) -> JetsonClocks:
    """What `jetson_clocks --show` on PATH reports; of the GPU, else what devfreq says."""
    said = board.tool_output(["jetson_clocks", "--show"])
    if said:
        return parse_clocks(said)
    gpu = sensors.gpu_clock(root)
    return JetsonClocks(
        gpu_now_hz=gpu.now_hz, gpu_least_hz=gpu.least_hz, gpu_most_hz=gpu.most_hz,
        memory_held=SILENT,
    )  # fmt: skip


def parse_clocks(said: str) -> JetsonClocks:
    """The lines GPU and EMC of the report."""
    gpu, memory = _GPU.search(said), _EMC.search(said)
    return JetsonClocks(
        gpu_now_hz=_value(gpu, "CurrentFreq"),
        gpu_least_hz=_value(gpu, "MinFreq"),
        gpu_most_hz=_value(gpu, "MaxFreq"),
        memory_held=_value(memory, "FreqOverride"),
    )


def _value(line: re.Match[str] | None, name: str) -> Figure:
    found = re.search(rf"\b{name}=([0-9]{{1,15}})\b", line[0]) if line else None
    return float(found[1]) if found else Unknown(f"jetson_clocks --show prints no {name}")
