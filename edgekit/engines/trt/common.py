"""What TensorRT's Python packages share: one compile, in a watched process of its own.

The compiler is native code that can die, hang, or take all memory; it does so in a child process
(child.py), and what is left is an account of how it ended.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import psutil

from edgekit.engines.base import EngineRequest, OnBuild, missing_package
from edgekit.engines.processes.child import ending, was_killed
from edgekit.engines.processes.watched import Ending, Limits, run_watched
from edgekit.engines.trt.job import CompileJob, job_to_line
from edgekit.errors import EdgekitError, InputError, ResourceError
from edgekit.values import Figure, TensorSpec, Unknown

DEFAULT_TIME_LIMIT_S = 2 * 3600.0

_MEMORY_SHARE = 0.9
_KEPT_FOR_OTHERS = 256 << 20
_LEAST_WORKSPACE = 16 << 20
_MEMORY_LINES = {
    "weight_bytes": "Total Weights Memory",
    "activation_bytes": "Total Activation Memory",
    "scratch_bytes": "Max Scratch Memory",
}
_OUT_OF_MEMORY = re.compile(
    r"out of memory|outofmemory|bad_alloc|cudaErrorMemoryAllocation|insufficient memory", re.I
)
_SHOWN_ERRORS = 20
_LAST_LINES = 5


class _OutOfMemoryError(ResourceError):
    """The build may succeed with a smaller workspace."""


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the compiler told of an engine that it has written.

    `figures` are bytes: weight, activation and scratch memory as its log states them, and the
    memory of one context where the engine could be loaded here. `layers` is the inspector's JSON.
    `workspace_bytes` is what it was built with, `log` its (severity, message) lines.
    """

    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    figures: Mapping[str, Figure]
    warnings: tuple[str, ...]
    workspace_bytes: int
    peak_bytes: Figure
    flags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    dla_layers: int = 0
    dla_fallbacks: tuple[str, ...] = ()
    layers: str | Unknown = field(default_factory=lambda: Unknown("the engine was not asked"))
    log: tuple[tuple[str, str], ...] = ()


def limits_of(request: EngineRequest) -> Limits:
    """What the building process may take: the request's limits, else the target's, else defaults.

    Where the GPU shares the CPU's memory, some of it must stay available to the rest.
    """
    memory = request.target.memory
    shared = memory is not None and memory.shared_with_cpu
    own, defaults = request.builder, request.target.builder
    most = int(_MEMORY_SHARE * psutil.virtual_memory().total)
    return Limits(
        memory_bytes=own.memory_cap_bytes or defaults.memory_cap_bytes or most,
        least_available_bytes=_KEPT_FOR_OTHERS if shared else None,
        seconds=own.time_limit_s or defaults.time_limit_s or DEFAULT_TIME_LIMIT_S,
    )


def compile_apart(
    job: CompileJob, *, limits: Limits | None = None, on_progress: OnBuild | None = None
) -> Compiled:
    """The compiler's account of the engine that now lies at `job.engine`.

    Where the memory ran out for sure it is tried once more with half the workspace, and a note
    says so. Raises InputError, naming every operator, where the model is refused or the compiler
    dies of it, MissingPackageError where the package is not here, ResourceError where memory, time
    or the disk ran out, or the compiler was killed.
    """
    limits = limits or Limits(seconds=DEFAULT_TIME_LIMIT_S)
    tell = on_progress or (lambda fraction, said: None)
    try:
        return _compile_once(job, limits, tell)
    except _OutOfMemoryError as error:
        halved = job.workspace_bytes // 2
        if halved < _LEAST_WORKSPACE:
            raise
        tell(0.0, f"out of memory: once more with a workspace of {_mib(halved)}")
        try:
            compiled = _compile_once(replace(job, workspace_bytes=halved), limits, tell)
        except _OutOfMemoryError as again:
            again.hint += f" A workspace of {_mib(halved)} was tried too."
            raise again from error
        note = (
            f"the build ran out of memory with a workspace of {_mib(job.workspace_bytes)}: "
            f"this engine was built with half of it"
        )
        return replace(compiled, notes=(note, *compiled.notes))


class _Heard:
    """What the child said so far."""

    def __init__(self, tell: OnBuild) -> None:
        self._tell = tell
        self._fraction = 0.0
        self._phase = ""
        self.answer: dict[str, Any] | None = None
        self.engine: dict[str, Any] | None = None
        self.log: list[tuple[str, str]] = []

    def on_line(self, line: str) -> None:
        """One object of the child's."""
        said = json.loads(line)
        if "log" in said:
            if self.answer is None:
                self.log.append((said["log"][0], said["log"][1]))
        elif "fraction" in said:
            self._fraction, self._phase = said["fraction"], said["said"]
            self._tell(self._fraction, self._phase)
        elif "answer" in said:
            self.answer = said["answer"]
        elif "engine" in said:
            self.engine = said["engine"]

    def on_tick(self, seconds: float, used: Figure) -> None:
        """A build that says nothing still lives."""
        takes = "" if isinstance(used, Unknown) else f", {used / 1e6:,.0f} MB"
        phase = f"{self._phase}, " if self._phase else ""
        self._tell(self._fraction, f"{phase}{seconds:.0f} s{takes}")


def _compile_once(job: CompileJob, limits: Limits, tell: OnBuild) -> Compiled:
    heard = _Heard(tell)
    end = run_watched(
        [sys.executable, "-m", "edgekit.engines.trt.child"],
        first_line=job_to_line(job),
        limits=limits,
        on_line=heard.on_line,
        on_tick=heard.on_tick,
    )
    if heard.answer is None:
        raise _death(job, limits, end, heard)
    return _read_answer(job, heard, end)


def _death(job: CompileJob, limits: Limits, end: Ending, heard: _Heard) -> EdgekitError:
    last = "\n".join(
        [*(message for _, message in heard.log), *end.stderr.strip().splitlines()][-_LAST_LINES:]
    )
    what = f"{job.package}'s compiler"
    if end.stopped == "time":
        return ResourceError(
            f"{what} was stopped: it took longer than it may",
            where=job.model, got=f"{end.seconds:.0f} s; {last}".rstrip("; "),
            wanted=f"at most {limits.seconds:.0f} s",
            hint="Raise the time limit, or lower the optimization level.",
        )  # fmt: skip
    if end.stopped or end.proof:
        return _OutOfMemoryError(
            f"{what} was killed for memory" if end.proof else f"{what} was stopped for its memory",
            where=job.model,
            got=end.proof or _taken(end),
            wanted=_allowed(limits, end),
            hint=f"Lower the workspace to {_mib(job.workspace_bytes // 2)} "
            "(engine.workspace_mb), or close other programs.",
        )
    if was_killed(end.returncode):
        return ResourceError(
            f"{what} was killed by SIGKILL, by whom is not known",
            where=job.model, got=last,
            hint="Nothing that can be read here says that memory ran out. Somebody, or a service "
            "that guards the memory, may have ended it.",
        )  # fmt: skip
    return InputError(
        f"{what} died of this model: it {ending(end.returncode)}",
        where=job.model, got=last, hint="Try another precision, or another version of it.",
    )  # fmt: skip


def _taken(end: Ending) -> str:
    if isinstance(end.peak_bytes, Unknown):
        return str(end.peak_bytes)
    return f"{_mib(int(end.peak_bytes))} resident after {end.seconds:.0f} s"


def _allowed(limits: Limits, end: Ending) -> str:
    if end.stopped == "memory" and limits.memory_bytes is not None:
        return f"at most {_mib(limits.memory_bytes)}"
    if end.stopped == "available" and limits.least_available_bytes is not None:
        return f"{_mib(limits.least_available_bytes)} left for the rest of the machine"
    return ""


def _read_answer(job: CompileJob, heard: _Heard, end: Ending) -> Compiled:
    answer = heard.answer
    assert answer is not None
    if "missing" in answer:
        raise missing_package(job.package, extra=job.extra, got=ImportError(answer["missing"]))
    if "disk" in answer:
        raise OSError(answer["disk"][0], answer["disk"][1], job.engine)
    if "unable" in answer:
        raise InputError(
            f"{job.package} {answer['version']} cannot build this engine",
            where=job.model, got=answer["unable"],
        )  # fmt: skip
    if "refusals" in answer:
        raise _refusal(job, answer)
    notes = list(answer["notes"])
    figures = memory_figures([message for severity, message in heard.log if severity == "INFO"])
    layers: str | Unknown
    if heard.engine is None:
        layers = Unknown(f"asking the engine for its layers {ending(end.returncode)}")
    elif "layers" in heard.engine:
        layers = heard.engine["layers"]
        figures["context_bytes"] = float(heard.engine["context_bytes"])
    else:
        layers = Unknown(f"the engine cannot be loaded here: {heard.engine['why']}")
    return Compiled(
        version=answer["version"],
        inputs=tuple(_spec(spec) for spec in answer["inputs"]),
        outputs=tuple(_spec(spec) for spec in answer["outputs"]),
        figures=figures,
        warnings=tuple(answer["warnings"]),
        workspace_bytes=job.workspace_bytes,
        peak_bytes=end.peak_bytes,
        flags=tuple(answer["flags"]),
        notes=tuple(notes),
        dla_layers=answer["dla_layers"],
        dla_fallbacks=tuple(answer["dla_fallbacks"]),
        layers=layers,
        log=tuple(heard.log),
    )


def _refusal(job: CompileJob, answer: Mapping[str, Any]) -> EdgekitError:
    refusals = answer["refusals"]
    got = "\n".join(refusals[:_SHOWN_ERRORS])
    if any(map(is_out_of_memory, refusals)):
        return _OutOfMemoryError(
            f"{job.package} {answer['version']} ran out of memory",
            where=job.model, got=got,
            hint=f"Lower the workspace to {_mib(job.workspace_bytes // 2)} (engine.workspace_mb), "
            "or close other programs.",
        )  # fmt: skip
    hint = "Keep what it names in floating point, or take it out of the model."
    if (job.refit or job.strip) and "CUDA_SUCCESS" in got:  # seen with TensorRT-RTX 1.7.1
        hint = (
            "A plan whose weights can be exchanged, or are left out, is built only where an NVIDIA "
            "driver is: build it there, or take engine.refit and engine.strip out."
        )
    return InputError(
        f"{job.package} {answer['version']} refuses the model", where=job.model, got=got, hint=hint
    )


def is_out_of_memory(said: str) -> bool:
    """Whether a message of TensorRT's or CUDA's says that there was no memory left."""
    return _OUT_OF_MEMORY.search(said) is not None


def _spec(stored: Mapping[str, Any]) -> TensorSpec:
    shape = tuple(size if size >= 0 else "?" for size in stored["shape"])
    return TensorSpec(name=stored["name"], dtype=stored["dtype"], shape=shape)


def _mib(count: int) -> str:
    return f"{count / (1 << 20):,.0f} MiB"


def memory_figures(log: Sequence[str]) -> dict[str, Figure]:
    """Weight, activation and scratch bytes from the builder's INFO lines; the last one counts."""
    found: dict[str, Figure] = {}
    for name, label in _MEMORY_LINES.items():
        values = [m.group(1) for line in log if (m := re.search(rf"{label}: (\d+) bytes", line))]
        unknown = Unknown(f'the builder\'s log has no line "{label}"')
        found[name] = float(values[-1]) if values else unknown
    return found
