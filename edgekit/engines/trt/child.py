"""The process that builds a TensorRT engine: `python -m edgekit.engines.trt.child`.

It reads one job (trt_job.py) from stdin and tells the rest on stdout, a JSON object a line:
`{"log": [severity, message]}`, `{"fraction": ..., "said": phase}`, once `{"answer": {...}}`, and
then, where the engine can be loaded here, `{"engine": {...}}`: what it says of itself. It imports
neither onnx nor pydantic: its memory is the builder's.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from edgekit.engines.processes.child import lines_from_parent, own_stdout
from edgekit.engines.trt.config import (
    Account,
    RefusalError,
    configure,
    is_typed,
    network_flags,
)
from edgekit.engines.trt.job import CompileJob, job_from_line
from edgekit.engines.trt.progress import PhaseTree
from edgekit.engines.trt.timing_cache import CacheKey, put_aside, read_cache, write_cache

_FINEST = 0.005


class Teller:
    """Writes objects as lines to the parent, from any thread."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def say(self, **fields: object) -> None:
        """One line."""
        with self._lock:
            self._stream.write(json.dumps(fields) + "\n")
            self._stream.flush()


def collecting_logger(trt: Any, tell: Callable[[str, str], None] = lambda s, m: None) -> Any:
    """A logger of that package that keeps (severity, message) in `lines`, and hands them on.

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
                tell(severity.name, message)

    return CollectingLogger()


def _monitor(trt: Any, teller: Teller) -> Any:
    """A progress monitor that tells the parent; only for a package that has them (10.x on)."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._tree = PhaseTree()
            self._told = -1.0

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            """A phase begins."""
            self._tree.start(name, parent, steps)
            self._tell()

        def step_complete(self, name: str, step: int) -> bool:
            """A step is done; the answer is whether to go on."""
            self._tree.step(name, step)
            self._tell()
            return True

        def phase_finish(self, name: str) -> None:
            """A phase is done."""
            self._tree.finish(name)

        def _tell(self) -> None:
            if self._tree.fraction - self._told >= _FINEST:
                self._told = self._tree.fraction
                teller.say(fraction=round(self._told, 4), said=self._tree.name)

    return Monitor()


def build_plan(trt: Any, job: CompileJob, teller: Teller, logger: Any) -> dict[str, object]:
    """Parses and builds, the engine into the job's file; the answer for the parent."""
    account = Account()
    builder = trt.Builder(logger)
    answer: dict[str, object] = {"version": str(trt.__version__)}
    try:
        typed = is_typed(trt, job)
        network = builder.create_network(network_flags(trt, typed=typed, account=account))
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(job.model):
            return answer | {"refusals": _parser_errors(parser) or _said(logger, "ERROR")}
        answer["inputs"] = [_told(network.get_input(i)) for i in range(network.num_inputs)]
        answer["outputs"] = [_told(network.get_output(i)) for i in range(network.num_outputs)]
        config = configure(trt, builder, network, job, account)
    except RefusalError as refusal:
        return answer | {"unable": str(refusal)}
    if hasattr(trt, "IProgressMonitor") and hasattr(config, "progress_monitor"):
        config.progress_monitor = _monitor(trt, teller)
    key = CacheKey(target=job.target, device=job.device, tensorrt=answer["version"], cuda=job.cuda)  # type: ignore[arg-type]
    if job.timing_cache:
        _lend_cache(config, Path(job.timing_cache), key, account)
    plan = builder.build_serialized_network(network, config)
    answer |= {
        "flags": account.flags, "notes": account.notes, "warnings": _said(logger, "WARNING"),
        "dla_layers": account.dla_layers, "dla_fallbacks": account.dla_fallbacks,
    }  # fmt: skip
    if plan is None:
        unsaid = ["it gave no engine, and no reason"]
        return answer | {"refusals": _said(logger, "ERROR", "INTERNAL_ERROR") or unsaid}
    try:
        Path(job.engine).write_bytes(plan)
    except OSError as error:
        return answer | {"disk": [error.errno, error.strerror]}
    if job.timing_cache:
        kept = write_cache(
            Path(job.timing_cache), key, bytes(config.get_timing_cache().serialize())
        )
        account.notes += [kept] if kept else []
    return answer


def _lend_cache(config: Any, folder: Path, key: CacheKey, account: Account) -> None:
    content, said = read_cache(folder, key)
    cache = config.create_timing_cache(content)
    taken = cache is not None and config.set_timing_cache(cache, ignore_mismatch=False)
    if not taken:
        said = put_aside(folder, key, "was refused by TensorRT")
        config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)
    account.notes += [said] if said else []


def describe_engine(trt: Any, job: CompileJob, logger: Any) -> dict[str, object]:
    """What the engine says of itself, where it can be loaded here: its layers, its memory."""
    said_before = len(logger.lines)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(Path(job.engine).read_bytes())
    if engine is None:
        errors = [m for severity, m in logger.lines[said_before:] if "ERROR" in severity]
        return {"why": errors[0] if errors else "the engine cannot be loaded here"}
    size = getattr(engine, "device_memory_size_v2", None)
    if size is None:
        size = engine.device_memory_size
    inspector = engine.create_engine_inspector()
    layers = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return {"context_bytes": int(size), "layers": layers}


def _parser_errors(parser: Any) -> list[str]:
    found: list[str] = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        # The names came with TensorRT 10; before, a node is a number.
        name = error.node_name() if hasattr(error, "node_name") else ""
        operator = error.node_operator() if hasattr(error, "node_operator") else ""
        node = f'node "{name}"' if name else f"node {error.node()}"
        kind = f" ({operator})" if operator else ""
        found.append(f"{node}{kind}: {error.desc()} [{error.code().name}]")
    return found


def _said(logger: Any, *severities: str) -> list[str]:
    return [message for severity, message in logger.lines if severity in severities]


_DTYPES: Mapping[str, str] = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16"}


def dtype_name(dtype: Any) -> str:
    """numpy's name of a TensorRT type, TensorRT's own in lower case where it has none."""
    return _DTYPES.get(dtype.name, dtype.name.lower())


def _told(tensor: Any) -> dict[str, object]:
    shape = [int(size) for size in tensor.shape]
    return {"name": tensor.name, "dtype": dtype_name(tensor.dtype), "shape": shape}


def main() -> None:
    """Builds what stdin asks for."""
    teller = Teller(os.fdopen(own_stdout(), "w"))
    job = job_from_line(lines_from_parent().get())
    try:
        trt = importlib.import_module(job.package)
    except (ImportError, OSError) as error:  # OSError: a library of it that cannot be loaded
        teller.say(answer={"missing": str(error)})
        _leave()
        return
    logger = collecting_logger(trt, lambda severity, said: teller.say(log=[severity, said]))
    try:
        answer = build_plan(trt, job, teller, logger)
    except MemoryError as error:
        answer = {"version": str(trt.__version__), "refusals": [f"out of memory {error}"]}
    teller.say(answer=answer)
    if "refusals" not in answer and "unable" not in answer and "disk" not in answer:
        teller.say(engine=describe_engine(trt, job, logger))
    _leave()


def _leave() -> None:
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(0)  # the package's own teardown has nothing left to do, and can crash


if __name__ == "__main__":
    main()
