"""What the Linux kernel says of heat, clocks and memory: /sys and /proc, under a root.

Nothing here raises: a file that is not there or not for us is Unknown, or leaves its row out. The
Jetson's and the Raspberry Pi's files are written from what was seen on such boards, and have not
been read on one by this code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edgekit.values import Figure, Unknown

_THERMAL = ("sys", "class", "thermal")
_CPUS = ("sys", "devices", "system", "cpu")
_CPUS_ASKED = 8
_DEVFREQ = ("sys", "class", "devfreq")
# "soc/soc:firmware" on most Raspberry Pis; the name of the bus differs on newer ones.
_PI_THROTTLED = "sys/devices/platform/soc*/*firmware*/get_throttled"

# The integrated GPU's device, as the kernels of JetPack 4 to 7 name it.
_GPU_DEVICE = re.compile(r"(?:^|\.)(?:gpu|gm20b|gp10b|gv11b|ga10b)$|^gpu-gpc-0$")
# Xavier and Nano print a constant there (100 and 50 degrees).
_NO_SENSOR = re.compile(r"pmic", re.I)

PI_FLAGS: Mapping[int, str] = {
    0: "under-voltage", 1: "the CPU's clock is capped", 2: "the CPU is throttled",
    3: "the soft limit of temperature is reached",
}  # fmt: skip
"""The bits of the Raspberry Pi's get_throttled that are of now; 16 higher: since the start."""


@dataclass(frozen=True, kw_only=True)
class CpuClock:
    """What cpufreq says of one CPU, in Hz."""

    governor: str
    now_hz: Figure
    least_hz: Figure
    most_hz: Figure


@dataclass(frozen=True, kw_only=True)
class GpuClock:
    """What devfreq says of the integrated GPU, in Hz: now, and the limits that are set."""

    now_hz: Figure
    least_hz: Figure
    most_hz: Figure


def temperatures_c(root: Path = Path("/")) -> dict[str, Figure]:
    """By thermal zone, degrees Celsius; of zones of one type the later ones are numbered."""
    found: dict[str, Figure] = {}
    for zone in _numbered(root.joinpath(*_THERMAL), "thermal_zone"):
        name = read_text(zone / "type") or zone.name
        number = 1
        while (key := name if number == 1 else f"{name} {number}") in found:
            number += 1
        # A zone that is switched off answers EAGAIN.
        milli = read_number(zone / "temp")
        found[key] = milli if isinstance(milli, Unknown) else milli / 1000
    return found


def hottest_c(temperatures: Mapping[str, Figure]) -> Figure:
    """The highest of what is known; zones without a sensor, which print a constant, apart."""
    known = [
        value for name, value in temperatures.items()
        if not isinstance(value, Unknown) and not _NO_SENSOR.search(name)
    ]  # fmt: skip
    return max(known) if known else Unknown("this machine shows no temperature")


def cpu_clocks(root: Path = Path("/")) -> dict[str, CpuClock]:
    """By CPU ("cpu0"); none where the machine has no cpufreq, as in most virtual machines."""
    return {
        cpu.name: CpuClock(
            governor=read_text(cpu / "cpufreq" / "scaling_governor"),
            now_hz=_kilohertz(cpu / "cpufreq" / "scaling_cur_freq"),
            least_hz=_kilohertz(cpu / "cpufreq" / "scaling_min_freq"),
            most_hz=_kilohertz(cpu / "cpufreq" / "scaling_max_freq"),
        )
        for cpu in _numbered(root.joinpath(*_CPUS), "cpu")
        if (cpu / "cpufreq").is_dir()
    }


def mean_cpu_hz(root: Path = Path("/")) -> Figure:
    """The mean clock of at most eight CPUs, evenly apart: asking an idle one wakes it up."""
    cpus = _numbered(root.joinpath(*_CPUS), "cpu")
    asked = cpus[:: -(-len(cpus) // _CPUS_ASKED) or 1]
    found = [_kilohertz(cpu / "cpufreq" / "scaling_cur_freq") for cpu in asked]
    known = [hz for hz in found if not isinstance(hz, Unknown)]
    return sum(known) / len(known) if known else Unknown("this machine has no cpufreq")


def gpu_clock(root: Path = Path("/")) -> GpuClock:
    """The integrated GPU's clock; unknown where devfreq has no such device."""
    folder = root.joinpath(*_DEVFREQ)
    devices = [path for path in _listed(folder) if _GPU_DEVICE.search(path.name)]
    if not devices:
        missing = Unknown(f"{folder} has no GPU")
        return GpuClock(now_hz=missing, least_hz=missing, most_hz=missing)
    return GpuClock(
        now_hz=read_number(devices[0] / "cur_freq"),
        least_hz=read_number(devices[0] / "min_freq"),
        most_hz=read_number(devices[0] / "max_freq"),
    )


def throttle_counts(root: Path = Path("/")) -> dict[str, int]:
    """How often each core, and its package, was slowed down for its heat (Intel's counters)."""
    found: dict[str, int] = {}
    for cpu in _numbered(root.joinpath(*_CPUS), "cpu"):
        for name in ("core_throttle_count", "package_throttle_count"):
            count = read_number(cpu / "thermal_throttle" / name)
            if not isinstance(count, Unknown):
                found[f"{cpu.name}/{name}"] = int(count)
    return found


def pi_flags(root: Path = Path("/")) -> int | None:
    """The Raspberry Pi's get_throttled (`PI_FLAGS`); None where there is none."""
    for place in sorted(root.glob(_PI_THROTTLED)):
        text = read_text(place).removeprefix("0x")
        if re.fullmatch(r"[0-9a-fA-F]{1,16}", text):
            return int(text, 16)
    return None


def packages_joules(root: Path = Path("/")) -> Figure:
    """The energy that the processor's packages have taken, by RAPL's counters, which wrap around.

    Most systems show them to root only.
    """
    folder = root.joinpath("sys", "class", "powercap")
    packages = [path for path in _listed(folder) if re.fullmatch(r"intel-rapl:\d+", path.name)]
    counters = [read_number(path / "energy_uj") for path in packages]
    if not counters:
        return Unknown("there is no RAPL here")
    total = 0.0
    for counter in counters:
        if isinstance(counter, Unknown):
            return counter
        total += counter / 1e6
    return total


def available_bytes(root: Path = Path("/")) -> Figure:
    """MemAvailable: what could be taken without swapping, by the kernel's own estimate."""
    text = read_text(root / "proc" / "meminfo")
    found = re.search(r"^MemAvailable:\s+(\d{1,15}) kB", text, re.MULTILINE)
    return float(int(found[1]) * 1024) if found else Unknown("/proc/meminfo has no MemAvailable")


def read_text(path: Path) -> str:
    """A small file's text, stripped; empty where it cannot be read."""
    try:
        return path.read_text(errors="replace").strip().rstrip("\0")
    except OSError:
        return ""


def read_number(path: Path) -> Figure:
    """A file that holds one whole number."""
    try:
        text = path.read_text(errors="replace").strip()
    except OSError as error:
        return Unknown(f"{path}: {error.strerror or error}")
    if re.fullmatch(r"-?[0-9]{1,18}", text) is None:
        return Unknown(f"{path} says {text!r:.40}")
    return float(int(text))


def _kilohertz(path: Path) -> Figure:
    found = read_number(path)
    return found if isinstance(found, Unknown) else found * 1e3


def _numbered(folder: Path, name: str) -> list[Path]:
    """The folders `name`0, `name`1 and so on, in the order of their numbers."""
    rule = re.compile(rf"{name}([0-9]{{1,6}})")
    found = [
        (int(match[1]), path) for path in _listed(folder) if (match := rule.fullmatch(path.name))
    ]
    return [path for _, path in sorted(found)]


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
