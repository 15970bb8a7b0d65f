"""What TensorRT's Python packages share: one compile, in a process of its own.

The compiler is native code and can die; it takes this child process with it and nothing else. The
child is `python -m edgekit.engines.trt_common`: a job as one JSON line on stdin, its result as
JSON in a file, the engine in another.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgekit.engines.base import Extent, missing_package
from edgekit.engines.child import ending, environment, lines_from_parent, own_stdout, was_killed
from edgekit.errors import EdgekitError, InputError, ResourceError
from edgekit.values import Figure, TensorSpec, Unknown

_MEMORY_LINES = {
    "weight_bytes": "Total Weights Memory",
    "activation_bytes": "Total Activation Memory",
    "scratch_bytes": "Max Scratch Memory",
}
_SHOWN_ERRORS = 20
_LAST_LINES = 5


@dataclass(frozen=True, kw_only=True)
class CompileJob:
    """One network to compile.

    `package` is imported in the child and `extra` brings it. `compute_capability` is a name of
    its enumeration, such as SM86; empty is the device at hand. Only dynamic inputs have an extent.
    """

    package: str
    extra: str
    model: str
    engine: str
    compute_capability: str = ""
    workspace_bytes: int | None = None
    extents: Mapping[str, Extent] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the compiler told of an engine that it has written.

    `figures` are bytes as its log states them: weight, activation and scratch memory.
    """

    version: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    figures: Mapping[str, Figure]
    warnings: tuple[str, ...]


def compile_apart(job: CompileJob) -> Compiled:
    """The compiler's account of the engine that now lies at `job.engine`.

    Raises InputError, naming every operator, where the model is refused or the compiler dies of
    it, MissingPackageError where the package is not here, ResourceError where the system killed
    it.
    """
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        answer = Path(folder) / "answer.json"
        returncode, stderr = _run_child(job, answer)
        if not answer.is_file():
            raise _death(job, returncode, stderr)
        return _read_answer(job, json.loads(answer.read_text()))


def _run_child(job: CompileJob, answer: Path) -> tuple[int, str]:
    line = json.dumps({"job": asdict(job), "answer": str(answer)}) + "\n"
    command = [sys.executable, "-m", "edgekit.engines.trt_common"]
    with (
        tempfile.TemporaryFile("w+", errors="replace") as said,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=said, text=True,
            env=environment(),
        ) as child,
    ):  # fmt: skip
        assert child.stdin is not None
        try:
            child.stdin.write(line)
            child.stdin.flush()
            child.wait()  # its stdin stays open: when it closes, the child ends
        except BrokenPipeError:
            child.wait()
        finally:
            child.kill()
        said.seek(0)
        return child.returncode, said.read()


def _death(job: CompileJob, returncode: int, stderr: str) -> EdgekitError:
    last = "\n".join(stderr.strip().splitlines()[-_LAST_LINES:])
    if was_killed(returncode):
        return ResourceError(
            f"{job.package}'s compiler was killed, most likely because the memory ran out",
            where=job.model, got=last, hint="Close other programs, or build on a larger machine.",
        )  # fmt: skip
    return InputError(
        f"{job.package}'s compiler died of this model: it {ending(returncode)}",
        where=job.model, got=last, hint="Try another precision, or another version of it.",
    )  # fmt: skip


def _read_answer(job: CompileJob, answer: Mapping[str, Any]) -> Compiled:
    if "missing" in answer:
        raise missing_package(job.package, extra=job.extra, got=ImportError(answer["missing"]))
    if answer["refusals"]:
        raise InputError(
            f"{job.package} {answer['version']} refuses the model",
            where=job.model,
            got="\n".join(answer["refusals"][:_SHOWN_ERRORS]),
            hint="Keep what it names in floating point, or take it out of the model.",
        )
    return Compiled(
        version=answer["version"],
        inputs=tuple(_spec(spec) for spec in answer["inputs"]),
        outputs=tuple(_spec(spec) for spec in answer["outputs"]),
        figures=memory_figures(answer["log"]),
        warnings=tuple(answer["warnings"]),
    )


def _spec(stored: Mapping[str, Any]) -> TensorSpec:
    shape = tuple(size if size >= 0 else "?" for size in stored["shape"])
    return TensorSpec(name=stored["name"], dtype=stored["dtype"], shape=shape)


def memory_figures(log: Sequence[str]) -> dict[str, Figure]:
    """Weight, activation and scratch bytes from the builder's INFO lines; the last one counts."""
    found: dict[str, Figure] = {}
    for name, label in _MEMORY_LINES.items():
        values = [m.group(1) for line in log if (m := re.search(rf"{label}: (\d+) bytes", line))]
        unknown = Unknown(f'the builder\'s log has no line "{label}"')
        found[name] = float(values[-1]) if values else unknown
    return found


def collecting_logger(trt: Any) -> Any:
    """A logger of that package that keeps (severity, message) in `lines`.

    TensorRT takes one logger for the whole process: the first that it was given.
    """

    class CollectingLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: list[tuple[str, str]] = []

        def log(self, severity: Any, message: str) -> None:
            """Keeps the message."""
            if severity != trt.ILogger.Severity.VERBOSE:
                self.lines.append((severity.name, message))

    return CollectingLogger()


def _compile(trt: Any, job: CompileJob) -> dict[str, object]:
    """In the child: parses and compiles, and tells all that was said."""
    logger = collecting_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    answer: dict[str, object] = {
        "version": str(trt.__version__), "refusals": [], "inputs": [], "outputs": [],
        "warnings": [], "log": [],
    }  # fmt: skip
    if not parser.parse_from_file(job.model):
        return answer | {"refusals": _parser_errors(parser) or _said(logger, "ERROR")}
    answer["inputs"] = [_told(network.get_input(i)) for i in range(network.num_inputs)]
    answer["outputs"] = [_told(network.get_output(i)) for i in range(network.num_outputs)]
    config = builder.create_builder_config()
    _configure(trt, builder, config, job)
    plan = builder.build_serialized_network(network, config)
    answer |= {"warnings": _said(logger, "WARNING"), "log": _said(logger, "INFO")}
    if plan is None:
        unsaid = ["it gave no engine, and no reason"]
        return answer | {"refusals": _said(logger, "ERROR", "INTERNAL_ERROR") or unsaid}
    Path(job.engine).write_bytes(plan)
    return answer


def _network_flags(trt: Any) -> int:
    flag = trt.NetworkDefinitionCreationFlag
    # Needed on 8.x, ignored on 10.x, gone on 11 and in TensorRT-RTX, which know nothing else.
    return 1 << int(flag.EXPLICIT_BATCH) if hasattr(flag, "EXPLICIT_BATCH") else 0


def _configure(trt: Any, builder: Any, config: Any, job: CompileJob) -> None:
    if job.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job.workspace_bytes)
    if job.compute_capability:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(trt.ComputeCapability, job.compute_capability), 0)
    if job.extents:
        profile = builder.create_optimization_profile()
        for name, (smallest, best, largest) in job.extents.items():
            profile.set_shape(name, smallest, best, largest)
        config.add_optimization_profile(profile)


def _parser_errors(parser: Any) -> list[str]:
    found: list[str] = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        operator = f" ({error.node_operator()})" if error.node_operator() else ""
        node = f'node "{error.node_name()}"' if error.node_name() else f"node {error.node()}"
        found.append(f"{node}{operator}: {error.desc()} [{error.code().name}]")
    return found


def _said(logger: Any, *severities: str) -> list[str]:
    return [message for severity, message in logger.lines if severity in severities]


def _told(tensor: Any) -> dict[str, object]:
    dtype = {"FLOAT": "float32", "HALF": "float16", "BOOL": "bool"}.get(
        tensor.dtype.name, tensor.dtype.name.lower()
    )
    return {"name": tensor.name, "dtype": dtype, "shape": list(tensor.shape)}


def _main() -> None:
    own_stdout()
    request = json.loads(lines_from_parent().get())
    stored = request["job"]
    extents = {
        name: tuple(tuple(shape) for shape in extent) for name, extent in stored["extents"].items()
    }
    job = CompileJob(**{**stored, "extents": extents})
    answer: dict[str, object]
    try:
        trt = importlib.import_module(job.package)
    except ImportError as error:
        answer = {"missing": str(error)}
    else:
        answer = _compile(trt, job)
    place = Path(request["answer"])
    partial = place.with_suffix(".partial")
    partial.write_text(json.dumps(answer))
    partial.replace(place)
    sys.stderr.flush()
    os._exit(0)  # the package's own teardown has nothing left to do, and can crash


if __name__ == "__main__":
    _main()
