"""The layers of a TensorRT engine by TensorRT's IProfiler, and as trtexec exported them.

IProfiler is called for each layer of each `execute_async_v3` from 8.5 on (NVIDIA's API reference,
IProfiler; its Python page names `execute_v2` alone). Written against that page, and run against a
stand-in only: it has never been run with TensorRT itself.
"""

from __future__ import annotations

import importlib
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgekit.engines.base import Engine
from edgekit.engines.profiled import Profiled, ProfiledLayer
from edgekit.engines.trt.inspector import names_in
from edgekit.engines.trt.session import open_plan
from edgekit.engines.trtexec.output import read_profile
from edgekit.errors import InputError
from edgekit.values import Feeds, Session, Unknown

_UNCOUNTED = 3


def profile(engine: Engine, batches: Sequence[Feeds], *, calls: int, threads: int = 0) -> Profiled:
    """The layers over `calls` runs; a few before do not count. Raises as the runtime's `open`."""
    with open_plan(engine, engine.runtime, engine.runtime.removeprefix("tensorrt_")) as session:
        trt = importlib.import_module(engine.runtime)
        return profile_session(trt, session, session.report_layers_to, engine, (batches, calls))


def profile_session(
    trt: Any, session: Session, report_to: Callable[[Any], None], engine: Engine,
    runs: tuple[Sequence[Feeds], int],
) -> Profiled:  # fmt: skip
    """The same of an open session. Raises InputError where TensorRT reports no layer."""
    batches, calls = runs
    collector = _collector_of(trt)
    report_to(collector)
    seconds: list[float] = []
    for call in range(_UNCOUNTED + calls):
        if call == _UNCOUNTED:
            collector.times.clear()
            seconds.clear()
        session.stage(batches[call % len(batches)])
        begun = time.perf_counter()
        session.execute()
        seconds.append(time.perf_counter() - begun)
    if not collector.times:
        raise InputError(
            "TensorRT's profiler reported no layer", where=str(engine.path),
            hint="Its trtexec does: --exportProfile, then edgekit bench --layers --profile FILE.",
        )  # fmt: skip
    nodes = _nodes_of(engine)
    return Profiled(
        layers=tuple(
            ProfiledLayer(
                name=name, kind="", seconds=sum(times) / 1e3 / calls,
                median_seconds=statistics.median(times) / 1e3,
                nodes=nodes.get(name, names_in(name)),
            )
            for name, times in collector.times.items()
        ),
        whole_seconds=sum(seconds) / calls,
        calls=calls,
        source="TensorRT's IProfiler, without a CUDA graph",
    )  # fmt: skip


def exported(path: Path, engine: Engine) -> Profiled:
    """What `trtexec --exportProfile` wrote. Raises InputError where it is no such file."""
    count, layers = read_profile(path)
    nodes = _nodes_of(engine)
    return Profiled(
        layers=tuple(
            ProfiledLayer(
                name=layer.name, kind="", seconds=layer.mean_ms / 1e3,
                median_seconds=layer.median_ms
                if isinstance(layer.median_ms, Unknown)
                else layer.median_ms / 1e3,
                nodes=nodes.get(layer.name, names_in(layer.name)),
            )
            for layer in layers
        ),
        whole_seconds=Unknown("trtexec's profile has the layers alone"),
        calls=count,
        source="trtexec --exportProfile",
    )  # fmt: skip


def _nodes_of(engine: Engine) -> dict[str, tuple[str, ...]]:
    """The nodes of each layer, where the inspector told them when the engine was built."""
    layers = engine.layers
    return (
        {} if isinstance(layers, Unknown) else {one.name: one.nodes for one in layers if one.nodes}
    )


def _collector_of(trt: Any) -> Any:
    class Collector(trt.IProfiler):  # type: ignore[misc]
        """Milliseconds by layer, an entry a report."""

        def __init__(self) -> None:
            trt.IProfiler.__init__(self)  # TensorRT's own page asks for it by name
            self.times: dict[str, list[float]] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.times.setdefault(layer_name, []).append(ms)

    return Collector()
