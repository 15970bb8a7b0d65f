"""A watch beside a run: heat, clocks, power and memory at a fixed interval, from a thread.

It runs in the process that waits for the worker, never in the one that is measured. Whatever the
machine has is read: tegrastats (a child of ours, its average begins with it), NVML, /sys and /proc.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edgekit.bench import memory, sensors, tegrastats
from edgekit.bench.device_state import DeviceState, read_state
from edgekit.bench.load import OtherLoad, descendants
from edgekit.bench.nvml import GpuReading, Nvml, nvml
from edgekit.bench.telemetry_report import Series, TelemetryReport
from edgekit.values import Figure, Unknown

_END_S = 2.0
_PI_NOW = 0xF


class Watch:
    """`with Watch() as watch: …; report = watch.finished()`; leaving the block ends it too.

    `root` is where the system's files are; tools are those on PATH. `gpu_library` stands in for
    NVIDIA's libnvidia-ml.
    """

    def __init__(
        self, *, root: Path = Path("/"), interval_s: float = 0.5, gpu_library: Any = None
    ) -> None:
        self._root, self._interval_s, self._gpu_library = root, interval_s, gpu_library
        self._readings = _Readings()
        self._stop = threading.Event()
        self._exits = contextlib.ExitStack()
        self._cost_s = 0.0
        self._slowed: dict[str, None] = {}
        self._can_tell_slowed = False
        self._report: TelemetryReport | None = None

    def __enter__(self) -> Watch:
        self._before = read_state(self._root)
        self._gpu = self._exits.enter_context(nvml(self._gpu_library))
        if isinstance(self._gpu, Unknown):
            self._readings.miss("gpu_own_bytes", self._gpu.reason)
        self._load, self._began = OtherLoad(), time.monotonic()
        self._exits.callback(self._stop.set)
        self._exits.enter_context(self._tegrastats())
        self._thread = threading.Thread(target=self._sample, name="telemetry", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.finished()

    def finished(self) -> TelemetryReport:
        """Ends the watch, and says what was seen."""
        if self._report is None:
            other_load, ended = self._load.share(), time.monotonic()
            self._stop.set()
            self._thread.join()
            self._exits.close()
            self._report = self._reported(read_state(self._root), other_load, ended)
        return self._report

    def _reported(self, after: DeviceState, other_load: Figure, ended: float) -> TelemetryReport:
        self._readings.miss("power_w", "nothing on this machine tells the power")
        return TelemetryReport(
            began_s=self._began,
            ended_s=ended,
            interval_s=self._interval_s,
            before=self._before,
            after=after,
            series=self._readings.series(),
            unread=self._readings.unread(),
            slowed=self._slowed_by(after),
            other_load=other_load,
            cost_share=self._cost_s / max(ended - self._began, 1e-9),
        )

    def _slowed_by(self, after: DeviceState) -> tuple[str, ...] | Unknown:
        before = self._before
        for name, count in after.throttle_counts.items():
            if count > before.throttle_counts.get(name, count):
                self._slowed["the CPU was slowed down for its heat"] = None
        known = bool(after.throttle_counts) or after.pi_flags is not None or self._can_tell_slowed
        if not known:
            return Unknown("nothing here tells whether the device was slowed down")
        return tuple(self._slowed)

    def _sample(self) -> None:
        due = time.monotonic()
        while True:
            self._read()
            due = max(due + self._interval_s, time.monotonic())
            if self._stop.wait(due - time.monotonic()):
                break
        self._read()  # the end of the run
        self._cost_s += time.thread_time()

    def _read(self) -> None:
        take, root = self._readings.take, self._root
        for zone, value in sensors.temperatures_c(root).items():
            take(f"temperature_c.{zone}", value, "C", "/sys/class/thermal")
        take("cpu_hz", sensors.mean_cpu_hz(root), "Hz", "cpufreq, the mean of some CPUs")
        take("gpu_hz", sensors.gpu_clock(root).now_hz, "Hz", "devfreq")
        take("available_bytes", sensors.available_bytes(root), "bytes", "MemAvailable")
        if memory.shows_nvmap(root):
            self._take_by_process("nvmap_bytes", memory.nvmap_bytes(_own_pids(), root), "nvmap")
        self._readings.take_energy(sensors.packages_joules(root))
        self._read_pi()
        if isinstance(self._gpu, Nvml):
            self._read_gpu(self._gpu)

    def _take_by_process(
        self, name: str, by_pid: Mapping[int, Figure] | Unknown, source: str
    ) -> None:
        if isinstance(by_pid, Unknown):
            self._readings.miss(name, by_pid.reason)
            return
        for pid, value in by_pid.items():
            self._readings.take(f"{name}.{pid}", value, "bytes", source)

    def _read_pi(self) -> None:
        flags, before = sensors.pi_flags(self._root), self._before.pi_flags
        if flags is None or before is None:
            return
        since_boot = (flags & ~before) >> 16  # it happened, and was over before we looked
        for bit, said in sensors.PI_FLAGS.items():
            if (flags & _PI_NOW | since_boot) >> bit & 1:
                self._slowed[said] = None

    def _read_gpu(self, gpu: Nvml) -> None:
        found = gpu.read(_own_pids())
        take = self._readings.take
        if not isinstance(found, GpuReading):
            self._readings.miss("gpu_own_bytes", found.reason)
            return
        take("gpu_hz", found.sm_hz, "Hz", "NVML")
        take("power_w", found.power_w, "W", "NVML, the card alone")
        take("temperature_c.GPU", found.temperature_c, "C", "NVML")
        take("gpu_used_bytes", found.used_bytes, "bytes", "NVML, of all processes")
        self._take_by_process("gpu_own_bytes", found.own_bytes, "NVML")
        if not isinstance(found.slowed, Unknown):
            self._can_tell_slowed = True
            self._slowed |= dict.fromkeys(f"the GPU: {said}" for said in found.slowed)

    @contextlib.contextmanager
    def _tegrastats(self) -> Iterator[None]:
        """Reads a tegrastats of our own, where the tool is on PATH."""
        tool = shutil.which("tegrastats")
        if tool is None:
            yield
            return
        try:
            process = subprocess.Popen(
                [tool, "--interval", str(round(1000 * self._interval_s))],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                text=True, errors="replace",
            )  # fmt: skip
        except OSError as error:
            self._readings.miss("tegrastats", error.strerror or str(error))
            yield
            return
        reader = threading.Thread(target=self._follow, args=(process,), daemon=True)
        reader.start()
        try:
            yield
        finally:
            self._cost_s += _cpu_s(process.pid)
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            reader.join(_END_S)
            if process.stdout is not None and not reader.is_alive():
                process.stdout.close()

    def _follow(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        seen = 0
        for text in process.stdout:
            if self._stop.is_set():
                break
            line = tegrastats.parse_line(text)
            seen += bool(line.rails or line.temperatures or line.units)
            self._readings.take_line(line)
        if not seen:
            self._readings.miss("tegrastats", "it printed no line that can be read")
        self._cost_s += time.thread_time()


class _Readings:
    """Series under way. Of two sources of one quantity the first one stays."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: dict[str, tuple[str, str, list[float], list[float]]] = {}
        self._missing: dict[str, str] = {}
        self._energy: tuple[float, float] | None = None

    def take(self, name: str, value: Figure, unit: str, source: str) -> None:
        with self._lock:
            if isinstance(value, Unknown):
                self._missing.setdefault(name, value.reason)
                return
            row = self._taken.setdefault(name, (unit, source, [], []))
            if row[1] == source:
                row[2].append(time.monotonic())
                row[3].append(value)

    def take_energy(self, joules: Figure) -> None:
        """Power from a counter of energy: the difference of two readings, over their time."""
        if isinstance(joules, Unknown):
            return
        now, before = time.monotonic(), self._energy
        self._energy = (now, joules)
        if before is not None and joules > before[1] and now > before[0]:  # it wraps around
            power = (joules - before[1]) / (now - before[0])
            self.take("power_w", power, "W", "RAPL, the processor's packages")

    def take_line(self, line: tegrastats.Line) -> None:
        for name, rail in line.rails.items():
            self.take(f"power_w.{name}", rail.now_w, "W", "tegrastats")
        total = tegrastats.total_power(line.rails)
        self.take("power_w", total.watts, "W", f"tegrastats {total.source}")
        for name, temperature in line.temperatures.items():
            self.take(f"temperature_c.{name}", temperature.now_c, "C", "tegrastats")
        for name, unit in (("gpu_hz", line.gpu), ("emc_hz", line.memory_controller)):
            known = [hz for hz in unit.hz if not isinstance(hz, Unknown)]
            if known:
                self.take(name, min(known), "Hz", "tegrastats")
        self.take("gpu_load", line.gpu.load, "", "tegrastats")

    def miss(self, name: str, reason: str) -> None:
        with self._lock:
            self._missing.setdefault(name, reason)

    def series(self) -> dict[str, Series]:
        return {
            name: Series(unit=unit, source=source, at_s=tuple(at), values=tuple(values))
            for name, (unit, source, at, values) in self._taken.items()
        }

    def unread(self) -> dict[str, str]:
        return {name: said for name, said in self._missing.items() if name not in self._taken}


def _own_pids() -> frozenset[int]:
    return frozenset({os.getpid(), *(child.pid for child in descendants())})


def _cpu_s(pid: int) -> float:
    import psutil

    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
