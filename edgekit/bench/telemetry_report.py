"""What a watch over a run has seen, and what follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

from edgekit.bench import sensors
from edgekit.bench.device_state import DeviceState, state_to_json
from edgekit.values import Figure, Unknown, figure_to_json

Window: TypeAlias = tuple[float, float]
"""From when to when, of time.monotonic()."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """What of a run was one arm's: its turns, its processes, and whether it was alone in memory."""

    windows: Sequence[Window]
    pids: Sequence[int] = ()
    alone: bool = True


_ENOUGH_READINGS = 3
_HOT = "temperature_c."


@dataclass(frozen=True, kw_only=True)
class Series:
    """The readings of one quantity in the order taken; `at_s` is of time.monotonic()."""

    unit: str
    source: str
    at_s: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """The plain mean: readings are taken at a fixed interval."""
        return fmean(self.values)

    def within(self, windows: Sequence[Window]) -> tuple[float, ...]:
        """The readings of these windows."""
        return tuple(
            value for at, value in zip(self.at_s, self.values, strict=True)
            if any(begin <= at <= end for begin, end in windows)
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class TelemetryReport:
    """A run as seen from beside it.

    `series` by name: "power_w" (all that can be read of it; its `source` says of what),
    "power_w.RAIL", "temperature_c.ZONE", "gpu_hz", "cpu_hz" (the mean of the CPUs), "emc_hz",
    "available_bytes", "gpu_used_bytes", "gpu_own_bytes.PID", "nvmap_bytes.PID". `unread` says why
    one is not there.
    `slowed` are the reasons for which the device was slowed down. `other_load` is the share of all
    processors that others took, `cost_share` of one processor that the watch itself took.
    """

    began_s: float
    ended_s: float
    interval_s: float
    before: DeviceState
    after: DeviceState
    series: Mapping[str, Series]
    unread: Mapping[str, str]
    slowed: tuple[str, ...] | Unknown
    other_load: Figure
    cost_share: float

    def mean_power_w(self, windows: Sequence[Window] | None = None) -> Figure:
        """The mean power, of the windows only where some are given (an arm's turns)."""
        series = self.series.get("power_w")
        if series is None:
            return Unknown(self.unread.get("power_w", "nothing here tells the power"))
        values = series.values if windows is None else series.within(windows)
        if len(values) < _ENOUGH_READINGS:
            return Unknown(f"only {len(values)} readings of the power fell into the run")
        return fmean(values)

    def window_powers_w(self, windows: Sequence[Window]) -> tuple[Figure, ...]:
        """The mean power of each window; unknown where no reading fell into it."""
        series = self.series.get("power_w")
        if series is None:
            return tuple(self.mean_power_w() for _ in windows)
        missed = Unknown("no reading of the power fell into a turn: measure longer")
        return tuple(fmean(v) if (v := series.within([w])) else missed for w in windows)

    def joules_per_sample(self, fps: Figure, windows: Sequence[Window] | None = None) -> Figure:
        """Mean power over the run / throughput: joules for each inference, idle power included.

        `fps` counts samples, not batches. What the power is of says `power_source`.
        """
        power = self.mean_power_w(windows)
        if isinstance(power, Unknown):
            return power
        if isinstance(fps, Unknown):
            return fps
        return power / fps if fps > 0 else Unknown("nothing was inferred")

    @property
    def power_source(self) -> str:
        """What the power is of, such as "tegrastats VDD_IN"; empty where there is none."""
        series = self.series.get("power_w")
        return series.source if series is not None else ""

    @property
    def start_temperature_c(self) -> Figure:
        """The hottest zone before the first call."""
        return sensors.hottest_c(self.before.temperatures_c)

    @property
    def peak_temperature_c(self) -> Figure:
        """The hottest that any zone was."""
        most = {
            name.removeprefix(_HOT): max(series.values)
            for name, series in self.series.items()
            if name.startswith(_HOT)
        }
        return sensors.hottest_c(most)

    @property
    def available_drop_bytes(self) -> Figure:
        """By how much MemAvailable fell at most: of CPU and GPU together where they share memory.

        Whatever else the machine did meanwhile is in it.
        """
        series = self.series.get("available_bytes")
        if series is None or isinstance(self.before.available_bytes, Unknown):
            return Unknown("the system does not tell MemAvailable")
        return max(0.0, self.before.available_bytes - min(series.values))

    def figures(self, fps: Figure, part: Part) -> dict[str, Figure]:
        """What an arm's Measurement keeps, by name; the unit is the name's end."""
        several = Unknown("several engines were in memory at once: measure one alone")
        return {
            "mean_power_w": self.mean_power_w(part.windows),
            "joules_per_sample": self.joules_per_sample(fps, part.windows),
            "start_temperature_c": self.start_temperature_c,
            "peak_temperature_c": self.peak_temperature_c,
            "available_drop_bytes": self.available_drop_bytes if part.alone else several,
            "gpu_memory_bytes": self._most("gpu_own_bytes", part.pids),
            "nvmap_bytes": self._most("nvmap_bytes", part.pids),
            "other_load_share": self.other_load,
            "telemetry_cost_share": self.cost_share,
        }

    def _most(self, name: str, pids: Sequence[int]) -> Figure:
        """The most that one of these processes held at once."""
        found = [self.series[key] for pid in pids if (key := f"{name}.{pid}") in self.series]
        if found:
            return max(value for series in found for value in series.values)
        return Unknown(self.unread.get(name, "nothing on this machine tells it"))

    def doubts(self) -> tuple[str, ...]:
        """What makes the run less than certain though no condition forbids it."""
        return self.slowed if not isinstance(self.slowed, Unknown) else ()

    def to_json(self) -> dict[str, object]:
        """JSON-ready, every reading kept; times in seconds since the watch began."""
        slowed = self.slowed
        return {
            "seconds": self.ended_s - self.began_s,
            "interval_s": self.interval_s,
            "before": state_to_json(self.before),
            "after": state_to_json(self.after),
            "series": {
                name: {
                    "unit": series.unit, "source": series.source,
                    "at_s": [round(at - self.began_s, 3) for at in series.at_s],
                    "values": list(series.values),
                }
                for name, series in self.series.items()
            },
            "unread": dict(self.unread),
            "slowed": {"unknown": slowed.reason} if isinstance(slowed, Unknown) else list(slowed),
            "other_load": figure_to_json(self.other_load),
            "cost_share": self.cost_share,
        }  # fmt: skip
