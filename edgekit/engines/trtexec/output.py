"""What trtexec says and exports, read: the log, times, outputs, profiles, and reasons to doubt.

Source of every line: NVIDIA/TensorRT, samples/common/sampleReporting.cpp, sampleInference.cpp and
sampleEngines.cpp, whose texts are the same from 8.5 to 11.1 but where said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.engines.trtexec.flags import version_from_number
from edgekit.errors import InputError
from edgekit.values import Array, Figure, TensorSpec, Unknown

_PREFIX = re.compile(r"^\[\d\d/\d\d/\d{4}-\d\d:\d\d:\d\d\]\s*")
_VERSION = re.compile(r"&&&& \w+ TensorRT\.trtexec \[TensorRT v(\d+)\]")
_OUTCOME = re.compile(r"^&&&& (PASSED|FAILED|WAIVED)\b")
_NUMBER = r"([0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]+)?)"
_STATISTIC = re.compile(rf"(min|max|mean|median|percentile\([0-9.]+%\)) = {_NUMBER} ms")
_TIMINGS = {
    "latency": "Latency", "enqueue": "Enqueue Time", "h2d": "H2D Latency",
    "compute": "GPU Compute Time", "d2h": "D2H Latency",
}  # fmt: skip
_MIB, _GIB = 1 << 20, 1 << 30

# Of each figure the last line counts. `Created` and `Loaded engine with size` are trtexec's own,
# the others TensorRT's; none of them is what the process takes in all.
_FIGURES: Mapping[str, tuple[str, float]] = {
    "throughput_qps": (rf"Throughput: {_NUMBER} qps", 1),
    "host_wall_s": (rf"Total Host Walltime: {_NUMBER} s", 1),
    "compute_total_s": (rf"Total GPU Compute Time: {_NUMBER} s", 1),
    "build_s": (rf"Engine built in {_NUMBER} sec", 1),
    "engine_bytes": (rf"(?:Created|Loaded) engine with size: {_NUMBER} MiB", _MIB),
    "loaded_engine_bytes": (rf"Loaded engine size: {_NUMBER} MiB", _MIB),
    "context_bytes": (rf"Created execution context with device memory size: {_NUMBER} MiB", _MIB),
    "allocator_cpu_peak_bytes": (
        rf"Peak memory usage of TRT CPU/GPU memory allocators: CPU {_NUMBER} MiB", _MIB),
    "allocator_gpu_peak_bytes": (
        rf"Peak memory usage of TRT CPU/GPU memory allocators: CPU [0-9]+ MiB, GPU {_NUMBER} MiB",
        _MIB),
    "host_persistent_bytes": (rf"Total Host Persistent Memory: {_NUMBER}", 1),
    "device_persistent_bytes": (rf"Total Device Persistent Memory: {_NUMBER}", 1),
    "scratch_bytes": (rf"(?:Total|Max) Scratch Memory: {_NUMBER}", 1),
    "activation_bytes": (rf"Total Activation Memory: {_NUMBER}", 1),
    "weight_bytes": (rf"Total Weights Memory: {_NUMBER}", 1),
    "free_gpu_bytes": (rf"Free GPU memory = {_NUMBER} GiB", _GIB),
}  # fmt: skip

_LATENCY, _QUERY_KEYS = "latencyMs", ("computeMs", "latencyMs")
_DTYPES = {"bfloat16": "float32", "float8": "float32"}


@dataclass(frozen=True, kw_only=True)
class TrtexecLog:
    """A run of trtexec as its log tells it.

    `outcome` is PASSED, FAILED, WAIVED, or empty where it never came to an end. `timings_ms` holds
    what the summary says of latency, enqueue, h2d, compute and d2h, each by min, max, mean, median
    and percentile; `figures` bytes, seconds and queries a second by the names in this module.
    """

    outcome: str
    version: str
    timings_ms: Mapping[str, Mapping[str, float]]
    figures: Mapping[str, float]
    captured_graph: bool
    warnings: tuple[str, ...]
    errors: tuple[str, ...]
    doubts: tuple[str, ...] = ()

    def figure(self, name: str) -> Figure:
        """One of the figures; an unknown one says that the log does not have it."""
        return self.figures.get(name, Unknown(f"trtexec's log says nothing of {name}"))


def read_log(text: str, *, wants_graph: bool = False) -> TrtexecLog:
    """What a log says, however it ends. `wants_graph`: kernels were to start as one CUDA graph.

    A graph that cannot be captured is given up in silence, so that only the line that tells of
    the capture proves it.
    """
    lines = [_PREFIX.sub("", line.rstrip()) for line in text.splitlines()]
    outcomes = [m.group(1) for line in lines if (m := _OUTCOME.match(line))]
    version = _VERSION.search(text)
    captured = "Successfully captured CUDA graph" in text
    warnings = tuple(dict.fromkeys(_said(lines, "[W]")))
    return TrtexecLog(
        outcome=outcomes[-1] if outcomes else "",
        version=version_from_number(version.group(1)) if version else "",
        timings_ms=_timings(lines),
        figures=_figures(text),
        captured_graph=captured,
        warnings=warnings,
        errors=tuple(dict.fromkeys(_said(lines, "[E]"))),
        doubts=_doubts(warnings, no_graph=wants_graph and not captured),
    )


def _said(lines: Sequence[str], mark: str) -> list[str]:
    found = (line[len(mark) :].strip() for line in lines if line.startswith(mark))
    return [text for text in found if text]


def _timings(lines: Sequence[str]) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for line in lines:
        said = line.partition("] ")[2] if line.startswith("[") else line
        for name, label in _TIMINGS.items():
            if said.startswith(f"{label}: ") and (values := _STATISTIC.findall(said)):
                found[name] = {statistic: float(value) for statistic, value in values}
    return found


def _figures(text: str) -> dict[str, float]:
    found = {}
    for name, (pattern, scale) in _FIGURES.items():
        values = re.findall(pattern, text)
        if values:
            found[name] = float(values[-1]) * scale
    return found


def _doubts(warnings: Sequence[str], *, no_graph: bool) -> tuple[str, ...]:
    """Reasons to doubt a measurement, in our words where we know what a warning means."""
    doubts = []
    for warning in warnings:
        if "GPU compute time is unstable" in warning:
            spread = re.search(rf"coefficient of variance = {_NUMBER}%", warning)
            by = f" (coefficient of variation {spread.group(1)}%)" if spread else ""
            doubts.append(f"the GPU's compute time is unstable{by}")
        elif "Throughput may be bound by Enqueue Time" in warning:
            doubts.append("the throughput may be bound by the CPU that starts the kernels")
        elif "Throughput may be bound by host-to-device" in warning:
            doubts.append("the throughput may be bound by copies to the device")
        elif "Throughput may be bound by device-to-host" in warning:
            doubts.append("the throughput may be bound by copies from the device")
        elif "engine plan file across different models of devices" in warning:
            doubts.append("the engine was built on another model of GPU")
    if no_graph:
        doubts.append("the kernels were not captured as a CUDA graph, but started one by one")
    return tuple(dict.fromkeys(doubts))


def read_times(path: Path) -> tuple[float, ...]:
    """Milliseconds of each query after the warm-up, in their order, of `--exportTimes`.

    The latency is that of copy to the device, computation and copy back, as far as they were not
    switched off. Raises InputError where the file is no such thing, or cut short.
    """
    queries = _array(path, "times")
    found = []
    for query in queries:
        if not isinstance(query, Mapping) or any(
            not isinstance(query.get(key), (int, float)) for key in _QUERY_KEYS
        ):
            raise _damaged(path, "times", f"{query!r:.80}")
        found.append(float(query[_LATENCY]))
    if not found or not np.isfinite(found).all() or min(found) <= 0:
        raise _damaged(path, "times", "no query" if not found else "a time that is none")
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class LayerTiming:
    """One layer's share of an engine's time, as TensorRT's profiler tells it.

    `median_ms` is unknown where the version does not print it.
    """

    name: str
    mean_ms: float
    median_ms: Figure
    share: float


def read_profile(path: Path) -> tuple[int, tuple[LayerTiming, ...]]:
    """How many iterations were profiled, and each layer's time, of `--exportProfile`.

    Raises InputError where the file is no such thing, or cut short.
    """
    entries = _array(path, "profile")
    try:
        count = int(entries[0]["count"])
        layers = tuple(
            LayerTiming(
                name=str(entry["name"]), mean_ms=float(entry["averageMs"]),
                median_ms=float(entry["medianMs"]) if "medianMs" in entry
                else Unknown("this version of trtexec does not print it"),
                share=float(entry["percentage"]) / 100,
            )
            for entry in entries[1:]
        )  # fmt: skip
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, "profile", f"{type(error).__name__}: {error}") from error
    return count, layers


def read_outputs(path: Path, outputs: Sequence[TensorSpec] = ()) -> dict[str, Array]:
    """The outputs of one batch by name, of `--exportOutput`, in the types of `outputs`.

    Raises InputError where the file is no such thing or cut short, and where an output has become
    NaN or infinite.
    """
    entries = _array(path, "outputs")
    dtypes = {spec.name: _DTYPES.get(spec.dtype, spec.dtype) for spec in outputs}
    found = {}
    try:
        for entry in entries:
            name, dimensions = str(entry["name"]), str(entry["dimensions"])
            shape = tuple(int(size) for size in dimensions.split("x")) if dimensions else ()
            values = np.asarray(entry["values"], np.float64).reshape(shape)
            found[name] = values.astype(dtypes.get(name, "float32"))
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path, "outputs", f"{type(error).__name__}: {error}") from error
    for name, array in found.items():
        if not np.isfinite(array).all():
            raise InputError(
                f'the output "{name}" becomes NaN or infinite on the device',
                where=str(path), got=f"{int((~np.isfinite(array)).sum())} values of {array.size}",
                hint="The engine overflows: keep the layers before it in a wider type.",
            )  # fmt: skip
    return found


# C++ streams write what JSON has no word for.
_NOT_JSON = re.compile(r"(?<=[\[,:\s])(-?)(nan|inf)(?=[\],\s])", re.IGNORECASE)
_JSON_WORDS = {"nan": "NaN", "inf": "Infinity"}


def _array(path: Path, what: str) -> list[Any]:
    try:
        text = path.read_text()
        text = _NOT_JSON.sub(lambda m: m.group(1) + _JSON_WORDS[m.group(2).lower()], text)
        stored = json.loads(text.replace("-NaN", "NaN"))
    except (OSError, ValueError) as error:
        raise _damaged(path, what, f"{type(error).__name__}: {error}") from error
    if not isinstance(stored, list):
        raise _damaged(path, what, f"{stored!r:.80}")
    return stored


def _damaged(path: Path, what: str, got: str) -> InputError:
    return InputError(
        f"the {what} that trtexec exported cannot be read", where=str(path), got=got,
        wanted="a JSON array, whole", hint="Run it again on the device; was it stopped, or the "
        "disk full?",
    )  # fmt: skip
