"""What the processes of one arm have taken so far, and the Measurement that it makes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from edgekit.bench import memory, statistics
from edgekit.bench.arm_process import Turn
from edgekit.bench.statistics.doubts import doubts as doubts_of
from edgekit.bench.telemetry_report import Window
from edgekit.bench.workload import Arm, Plan
from edgekit.engines.base import runtime_module
from edgekit.engines.fit import same_version
from edgekit.values import Array, Figure, Measurement, Unknown, figure_from_json

_MEMORY = {
    "peak_bytes": "peak_memory_bytes", "steady_bytes": "steady_memory_bytes",
    "unique_bytes": "unique_memory_bytes",
}  # fmt: skip
# Above these a measurement says that it doubts itself.
_ROUND_SPREAD = 0.05
_OTHER_LOAD = 0.05
_HARNESS_SHARE, _HARNESS_S = 0.01, 3e-6
_CLOCK_STEP_S = 1.0


@dataclass(frozen=True)
class Began:
    """When it began, by the clock that may be set and by the one that may not."""

    wall_s: float = field(default_factory=time.time)
    steady_s: float = field(default_factory=time.monotonic)

    def doubts(self) -> tuple[str, ...]:
        """Whether somebody has set the clock since: its age rests on that."""
        step = (time.time() - self.wall_s) - (time.monotonic() - self.steady_s)
        if abs(step) < _CLOCK_STEP_S:
            return ()
        way = "forward" if step > 0 else "back"
        return (
            f"the clock went {abs(step):.0f} s {way} during the run (set, or the machine slept): "
            "the samples do not hang on it, the time that it was taken at does",
        )


@dataclass
class Taken:
    """Samples of an arm in the order taken, over all of its processes."""

    arm: Arm
    plan: Plan
    turns: list[Turn] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    processes: list[int] = field(default_factory=list)
    windows: list[Window] = field(default_factory=list)
    pids: list[int] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)
    harness_ns: float = 0.0
    unsteady: int = 0
    from_pixels: Turn | None = None

    @property
    def count(self) -> int:
        """The samples so far."""
        return sum(len(turn.whole_ns) for turn in self.turns)

    def begin(self, loaded: Mapping[str, object]) -> None:
        """Another process has loaded the engine, and said this."""
        self._before = figure_from_json(loaded["before_bytes"])
        self.harness_ns = max(self.harness_ns, float(loaded["harness_ns"]))  # type: ignore[arg-type]
        self.processes.append(self.count)
        self.pids.append(int(loaded["pid"]))  # type: ignore[call-overload]

    def add(self, turn: Turn, window: Window) -> None:
        """One more turn."""
        self.rounds.append(self.count)
        self.windows.append(window)
        self.turns.append(turn)
        account = turn.account
        found = {name: figure_from_json(account[said]) for said, name in _MEMORY.items()}
        peak, before = found["peak_memory_bytes"], self._before
        if isinstance(peak, Unknown) or isinstance(before, Unknown):
            found["memory_rise_bytes"] = Unknown("this system does not tell a process's memory")
        else:
            found["memory_rise_bytes"] = max(0.0, peak - before)
        for name, value in found.items():
            self._keep_most(name, value)

    def _keep_most(self, name: str, value: Figure) -> None:
        had = self.figures.get(name)
        if had is None or (
            not isinstance(value, Unknown) and (isinstance(had, Unknown) or value > had)
        ):
            self.figures[name] = value

    def measurement(
        self, began: Began, conditions: Mapping[str, str], other_load: Figure
    ) -> Measurement:
        """All of it, with every reason to doubt it. There must be a sample."""
        bare = self._bare(began.wall_s)
        return replace(
            bare,
            figures=self._figures(bare),
            conditions=conditions,
            doubts=(*self._doubts(bare, other_load), *began.doubts()),
        )

    def _bare(self, taken_at: float) -> Measurement:
        several = [start for start in self.processes if start < self.count]
        return Measurement(
            arm=self.arm.name,
            quantity=self.plan.scenario.quantity,
            unit="s",
            samples=tuple((self._row("whole_ns") / 1e9).tolist()),
            rounds=tuple(self.rounds),
            batch=self.plan.scenario.samples_per_query or self.arm.batch,
            taken_at=taken_at,
            processes=tuple(several) if len(several) > 1 else (),
        )

    def _row(self, name: str) -> Array:
        return np.concatenate([getattr(turn, name) for turn in self.turns])

    def _figures(self, bare: Measurement) -> dict[str, Figure]:
        engine = self.arm.engine
        whole, stage, execute = map(self._row, ("whole_ns", "stage_ns", "execute_ns"))
        figures: dict[str, Figure] = {
            **self.figures,
            "file_bytes": float(engine.file_bytes),
            **{n: f for n, f in engine.figures.items() if n in memory.RUNTIMES_OWN},
            "host_to_device_p50_s": statistics.percentile(stage, 50) / 1e9,
            "execute_p50_s": statistics.percentile(execute, 50) / 1e9,
            "harness_s": self.harness_ns / 1e9,
        }
        if self.from_pixels is not None:
            preparing, through = self.from_pixels.stage_ns, self.from_pixels.whole_ns
            figures["preprocess_p50_s"] = statistics.percentile(preparing, 50) / 1e9
            figures["end_to_end_p50_s"] = statistics.percentile(through, 50) / 1e9
        scenario = self.plan.scenario
        if scenario.name in ("single_stream", "multi_stream"):
            figures["device_to_host_p50_s"] = (
                statistics.percentile(whole - stage - execute, 50) / 1e9
            )
        if scenario.name == "server":
            seconds = sum(turn.account["loop_s"] for turn in self.turns)
            figures["answered_per_s"] = len(whole) / seconds
            figures["unanswered"] = float(sum(t.account["unanswered"] for t in self.turns))
            figures["busy_share"] = float((stage + execute).sum()) / 1e9 / seconds
        else:
            ends = statistics.burst_and_sustained(bare.samples, bare.batch)
            unknown = isinstance(ends, Unknown)
            figures["burst_fps"] = ends if unknown else ends.burst  # type: ignore[assignment,union-attr]
            figures["sustained_fps"] = ends if unknown else ends.sustained  # type: ignore[assignment,union-attr]
        return figures

    def _doubts(self, bare: Measurement, other_load: Figure) -> tuple[str, ...]:
        found: list[str] = []
        count, enough = self.count, statistics.enough_samples(99)
        if count < enough:
            found.append(f"p99 rests on {count} calls; {enough} are needed")
        if self.unsteady:
            found.append(f"after its warm-up it was not steady ({self.unsteady} times)")
        if self.plan.scenario.name != "server":  # a queue's waits are alike by nature
            spread = statistics.round_spread(bare)
            if spread > _ROUND_SPREAD:
                found.append(f"the rounds differ by {100 * spread:.0f}% in speed")
            found += [doubt.said for doubt in doubts_of(bare.samples)]
        if not isinstance(other_load, Unknown) and other_load > _OTHER_LOAD:
            found.append(f"other programs used {100 * other_load:.0f}% of the processors")
        typical = statistics.percentile(bare.samples, 50)
        if self.harness_ns / 1e9 > max(_HARNESS_S, _HARNESS_SHARE * typical):
            share = self.harness_ns / 1e9 / typical
            found.append(f"{100 * share:.0f}% of a call may be the harness's own")
        unanswered = sum(turn.account["unanswered"] for turn in self.turns)
        if unanswered:
            found.append(f"{unanswered} queries were never answered: the rate is too high")
        engine = self.arm.engine
        installed = runtime_module(engine.runtime).installed_version()
        if not same_version(engine.runtime_version, installed):
            found.append(
                f"built with {engine.runtime} {engine.runtime_version}, run with {installed}"
            )
        return tuple(dict.fromkeys([*found, *(self.turns[-1].account["notes"])]))
