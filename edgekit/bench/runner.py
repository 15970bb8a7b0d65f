"""Measures engines side by side: one process each, taking turns A B A B on one machine."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgekit.bench import memory, statistics
from edgekit.bench.attended import HERE, Site, attended
from edgekit.bench.telemetry import Watch
from edgekit.bench.telemetry_report import Window
from edgekit.bench.workload import Arm, Plan, check_arms, lasting_conditions, load_average
from edgekit.engines.base import runtime_module
from edgekit.engines.fit import same_version
from edgekit.engines.processes.child import ending, environment, was_killed
from edgekit.errors import EdgekitError, InputError, MissingPackageError, ResourceError
from edgekit.values import Figure, Measurement, Unknown, figure_from_json

_NOT_LOADED = Unknown("the engine was not loaded")
_LAST_LINES = 5
# Above these a measurement says that it doubts itself.
_ROUND_SPREAD = 0.05
_OTHER_LOAD = 0.05

_ERRORS: Mapping[str, type[EdgekitError]] = {
    "resource": ResourceError, "missing": MissingPackageError, "input": InputError,
}  # fmt: skip

OnProgress = Callable[[float, str], None]


def measure_side_by_side(
    arms: Sequence[Arm],
    *,
    seconds: float,
    rounds: int,
    warmup_seconds: float = 0.5,
    on_progress: OnProgress = lambda fraction, said: None,
    site: Site = HERE,
) -> tuple[Measurement, ...]:
    """One Measurement of latency for each arm, in seconds a call, in the arms' order.

    A call is one batch staged, executed and fetched by one client, the next when it is done:
    preprocessing, decoding and postprocessing are not in it, and Python's garbage collector is
    off. FPS is batch * calls / (sum of the calls' latencies). Every arm is `seconds` at work in
    all, in `rounds` turns; the first tenth of a turn (at most 0.1 s) is not counted.

    Figures: those of memory (`memory.SOURCES`), `execute_p50_s` (without staging and fetching),
    and what a watch beside the run saw (`TelemetryReport.figures`). The conditions that the site's
    target declares are checked before, during and after.

    Raises InputError, MissingPackageError or ResourceError as the engine's runtime does, and
    EdgekitError where a worker dies, naming its arm. No worker outlives the call.
    """
    plan = Plan(seconds=seconds, rounds=rounds, warmup_seconds=warmup_seconds)
    check_arms(arms, plan)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgekit-")))
        on_progress(0.0, "starting")
        watch = stack.enter_context(Watch(root=site.root))  # before anything warms the device up
        workers = [
            stack.enter_context(_worker(arm, folder / f"inputs-{index}.npz"))
            for index, arm in enumerate(arms)
        ]
        for worker in workers:
            worker.load()
        for worker in workers:
            if warmup_seconds:
                worker.warm_up(warmup_seconds)
        taken_at, before = time.time(), load_average()
        for turn in range(rounds):
            for worker in workers:
                on_progress(turn / rounds, f"round {turn + 1} of {rounds}, {worker.arm.name}")
                worker.turn(seconds / rounds)
        report = watch.finished()
        passing = {"load_average": before, "other_load": _shown_load(report.other_load)}
        on_progress(1.0, "")
        return tuple(
            attended(
                _measurement(
                    worker, taken_at,
                    {**lasting_conditions(worker.arm, arms, plan, site.root), **passing},
                    _doubts(worker, report.other_load),
                ),
                report, site, worker.windows,
            )
            for worker in workers
        )  # fmt: skip


@dataclass
class _Worker:
    arm: Arm
    inputs: Path
    process: subprocess.Popen[str]
    said: IO[str]
    whole_ns: list[int] = field(default_factory=list)
    execute_ns: list[int] = field(default_factory=list)
    rounds: list[int] = field(default_factory=list)
    before: Figure = _NOT_LOADED
    peak: Figure = _NOT_LOADED
    steady: Figure = _NOT_LOADED
    unique: Figure = _NOT_LOADED
    windows: list[Window] = field(default_factory=list)
    notes: tuple[str, ...] = ()

    def load(self) -> None:
        """Opens the engine in the worker."""
        np.savez(self.inputs, **self.arm.inputs)  # type: ignore[arg-type]
        answer = self.ask({
            "do": "load", "engine": str(self.arm.engine.path.resolve()),
            "inputs": str(self.inputs), "batch": self.arm.batch, "threads": self.arm.threads,
        })  # fmt: skip
        self.before = figure_from_json(answer["before_bytes"])

    def turn(self, seconds: float) -> None:
        """Takes one turn, and keeps what was measured."""
        begun = time.monotonic()
        answer, whole_ns, execute_ns = self._timed(seconds)
        self.windows.append((begun, time.monotonic()))
        self.rounds.append(len(self.whole_ns))
        self.whole_ns += whole_ns
        self.execute_ns += execute_ns
        self.peak = figure_from_json(answer["peak_bytes"])
        self.steady = figure_from_json(answer["steady_bytes"])
        self.unique = figure_from_json(answer["unique_bytes"])
        self.notes = tuple(answer["notes"])

    def warm_up(self, seconds: float) -> None:
        """Takes a turn that does not count."""
        self._timed(seconds)

    def _timed(self, seconds: float) -> tuple[dict[str, Any], list[int], list[int]]:
        samples = self.inputs.with_suffix(".ns")
        answer = self.ask({"do": "turn", "seconds": seconds, "samples": str(samples)})
        both = np.fromfile(samples, np.int64).reshape(2, -1)
        return answer, both[0].tolist(), both[1].tolist()

    def ask(self, request: Mapping[str, object]) -> dict[str, Any]:
        """The worker's answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise self._death()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise self._refusal(answer["error"])
        return answer

    def _refusal(self, told: Mapping[str, str]) -> EdgekitError:
        return _ERRORS[told["kind"]](
            told["what"],
            where=f'the arm "{self.arm.name}"',
            got=told["got"],
            wanted=told["wanted"],
            hint=told["hint"],
        )

    def _death(self) -> EdgekitError:
        returncode = self.process.wait()
        self.said.seek(0)
        last = "\n".join(self.said.read().strip().splitlines()[-_LAST_LINES:])
        if was_killed(returncode):
            return ResourceError(
                f'the process that measured "{self.arm.name}" was killed, most likely because '
                "the memory ran out",
                where=str(self.arm.engine.path), got=last,
                hint="Close other programs, or measure a smaller batch.",
            )  # fmt: skip
        return EdgekitError(
            f'the process that measured "{self.arm.name}" {ending(returncode)}',
            where=str(self.arm.engine.path), got=last,
            hint=f"{self.arm.engine.runtime} died of this engine: build it again.",
        )  # fmt: skip


@contextlib.contextmanager
def _worker(arm: Arm, inputs: Path) -> Iterator[_Worker]:
    """Lends a worker; it is killed at the end, whatever it is doing."""
    with (
        tempfile.TemporaryFile("w+", errors="replace") as said,
        subprocess.Popen(
            [sys.executable, "-m", "edgekit.bench.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True,
            env=environment(),
        ) as process,
    ):  # fmt: skip
        try:
            yield _Worker(arm=arm, inputs=inputs, process=process, said=said)
        finally:
            process.kill()


def _shown_load(load: Figure) -> str:
    return "not readable" if isinstance(load, Unknown) else f"{load:.2f} of the processors"


def _doubts(worker: _Worker, other_load: Figure) -> tuple[str, ...]:
    arm, count = worker.arm, len(worker.whole_ns)
    doubts: list[str] = []
    enough = statistics.enough_samples(99)
    if count < enough:
        doubts.append(f"p99 rests on {count} calls; {enough} are needed")
    spread = statistics.round_spread(_bare(worker))
    if spread > _ROUND_SPREAD:
        doubts.append(f"the rounds differ by {100 * spread:.0f}% in speed")
    if not isinstance(other_load, Unknown) and other_load > _OTHER_LOAD:
        doubts.append(f"other programs used {100 * other_load:.0f}% of the processors")
    installed = runtime_module(arm.engine.runtime).installed_version()
    if not same_version(arm.engine.runtime_version, installed):
        doubts.append(
            f"built with {arm.engine.runtime} {arm.engine.runtime_version}, run with {installed}"
        )
    return (*doubts, *worker.notes)


def _bare(worker: _Worker) -> Measurement:
    return Measurement(
        arm=worker.arm.name,
        quantity="latency",
        unit="s",
        samples=tuple(ns / 1e9 for ns in worker.whole_ns),
        rounds=tuple(worker.rounds),
        batch=worker.arm.batch,
        taken_at=0.0,
    )


def _measurement(
    worker: _Worker, taken_at: float, conditions: Mapping[str, str], doubts: tuple[str, ...]
) -> Measurement:
    rise: Figure
    if isinstance(worker.peak, Unknown) or isinstance(worker.before, Unknown):
        rise = Unknown("this system does not tell a process's memory")
    else:
        rise = max(0.0, worker.peak - worker.before)
    figures: dict[str, Figure] = {
        "peak_memory_bytes": worker.peak,
        "steady_memory_bytes": worker.steady,
        "unique_memory_bytes": worker.unique,
        "memory_rise_bytes": rise,
        "file_bytes": float(worker.arm.engine.file_bytes),
        **{
            name: figure
            for name, figure in worker.arm.engine.figures.items()
            if name in memory.RUNTIMES_OWN
        },
        "execute_p50_s": statistics.percentile(worker.execute_ns, 50) / 1e9,
    }
    return replace(
        _bare(worker), taken_at=taken_at, figures=figures, conditions=conditions, doubts=doubts
    )
