"""The parent's side of a worker: hired for one arm, asked, never waited for without an end."""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np

from edgekit.bench.workload import Arm, Pixels, Plan
from edgekit.engines.processes.child import ending, environment, was_killed
from edgekit.errors import EdgekitError, InputError, MissingPackageError, ResourceError
from edgekit.values import Array, preprocessing_to_json

_LAST_LINES = 5
_LOADS_PATIENCE = 5  # times that of a turn: some runtimes compile while they load

_ERRORS: Mapping[str, type[EdgekitError]] = {
    "resource": ResourceError, "missing": MissingPackageError, "input": InputError,
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a worker took in one turn: nanoseconds, an entry a query; and its account."""

    whole_ns: Array
    stage_ns: Array
    execute_ns: Array
    account: Mapping[str, Any]


@dataclass
class ArmProcess:
    """A worker of one arm."""

    arm: Arm
    plan: Plan
    inputs: Path
    process: subprocess.Popen[str]
    said: IO[str]
    answers: queue.Queue[str] = field(default_factory=queue.Queue)

    def load(self) -> Mapping[str, Any]:
        """Opens the engine in the worker; its account."""
        scenario = self.plan.scenario
        request = {
            "do": "load", "engine": str(self.arm.engine.path.resolve()),
            "inputs": str(self.inputs), "batch": self.arm.batch, "threads": self.arm.threads,
            "scenario": scenario.name, "samples_per_query": scenario.samples_per_query,
            "rate": scenario.rate, "seed": scenario.seed,
        }  # fmt: skip
        return self.ask(request, _LOADS_PATIENCE * self.plan.patience_s)

    def turn(self, seconds: float, least: int = 0) -> Turn:
        """One turn of `seconds`, longer where `least` queries take longer: by the patience."""
        most = seconds + self.plan.patience_s / 2
        return self._taken(
            {"do": "turn", "seconds": seconds, "least": least, "most_seconds": most}, seconds
        )

    def from_pixels(self, pixels: Pixels, seconds: float) -> Turn:
        """Calls that begin with the samples before their preprocessing, which is `stage_ns`."""
        place = self.inputs.with_name(f"{self.inputs.stem}-pixels.npz")
        np.savez(place, **pixels.arrays)  # type: ignore[arg-type]
        request = {
            "do": "from_pixels", "seconds": seconds, "pixels": str(place),
            "batch": self.arm.batch, "dtypes": dict(pixels.dtypes),
            "preprocessing": preprocessing_to_json(pixels.preprocessing),
        }  # fmt: skip
        return self._taken(request, seconds)

    def _taken(self, request: Mapping[str, object], seconds: float) -> Turn:
        samples = self.inputs.with_suffix(".ns")
        account = self.ask(
            {**request, "samples": str(samples)}, seconds + self.plan.patience_s
        )  # fmt: skip
        rows = np.fromfile(samples, np.int64).reshape(3, -1)
        return Turn(whole_ns=rows[0], stage_ns=rows[1], execute_ns=rows[2], account=account)

    def ask(self, request: Mapping[str, object], patience_s: float) -> dict[str, Any]:
        """The worker's answer. Raises what it refused, how it died, or that it does not answer."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.answers.get(timeout=patience_s)
        except BrokenPipeError:
            line = ""
        except queue.Empty:
            raise self._silence(patience_s) from None
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

    def _silence(self, patience_s: float) -> EdgekitError:
        return ResourceError(
            f'the process that measured "{self.arm.name}" did not answer',
            where=str(self.arm.engine.path), got=f"nothing for {patience_s:.0f} s",
            hint=f"It was ended. Either a call of {self.arm.engine.runtime} hangs, or a turn of "
            "this engine takes longer: measure fewer calls, or fewer rounds.",
        )  # fmt: skip

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
def hired(arm: Arm, plan: Plan, inputs: Path) -> Iterator[ArmProcess]:
    """Lends a worker whose inputs lie in that file; killed at the end, whatever it is doing."""
    with (
        tempfile.TemporaryFile("w+", errors="replace") as said,
        subprocess.Popen(
            [sys.executable, "-m", "edgekit.bench.worker"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True,
            env=environment(),
        ) as process,
    ):  # fmt: skip
        worker = ArmProcess(arm=arm, plan=plan, inputs=inputs, process=process, said=said)
        reader = threading.Thread(target=_read, args=(process, worker.answers), daemon=True)
        try:
            reader.start()
            yield worker
        finally:
            process.kill()
            reader.join()
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # a request that it never read
                process.stdin.close()


def _read(process: subprocess.Popen[str], answers: queue.Queue[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        answers.put(line)
    answers.put("")  # it ended
