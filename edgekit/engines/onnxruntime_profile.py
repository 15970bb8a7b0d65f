"""ONNX Runtime's own profile of an engine: how long each node of the graph that it runs takes."""

from __future__ import annotations

import json
import re
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import onnx

from edgekit.engines.base import Engine
from edgekit.engines.onnxruntime_session import (
    OPENED_LEVEL,
    OnnxRuntimeSession,
    inference_session,
    package,
    session_options,
)
from edgekit.engines.profiled import Profiled, ProfiledLayer
from edgekit.engines.session_settings import settings_from_manifest
from edgekit.errors import InputError
from edgekit.values import Feeds, run

_SUFFIX = "_kernel_time"
# A node in the processor's own layout is named after the tensor that it makes (onnxruntime's
# core/optimizer/nchwc_transformer.cc).
_NCHWC = re.compile(r"(.+)_nchwc(?:_\d+)?$")
_MOST_EVENTS = 400_000  # the profiler stops at a million
_UNCOUNTED = 3


def profile(engine: Engine, batches: Sequence[Feeds], *, calls: int, threads: int = 0) -> Profiled:
    """The time of each node, in microseconds' steps, over `calls` calls; a few before do not count.

    The settings are those that the engine is opened with. Raises as `open` does, and InputError
    where the profile cannot be read.
    """
    ort = package()
    settings = settings_from_manifest(engine.settings)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        options = session_options(ort, settings, OPENED_LEVEL)
        if threads:
            options.intra_op_num_threads = threads
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder, "profile"))
        options.optimized_model_filepath = str(Path(folder, "run.onnx"))
        native = inference_session(ort, engine.path, options, str(engine.path))
        graph = onnx.load(Path(folder, "run.onnx"), load_external_data=False).graph
        with OnnxRuntimeSession(native, where=str(engine.path)) as session:
            most = max(1, _MOST_EVENTS // max(1, len(graph.node)))
            for call in range(_UNCOUNTED + min(calls, most)):
                run(session, batches[call % len(batches)])
            place = Path(native.end_profiling())
        ends = {
            node.name: tuple(node.output) for node in graph.node
            if node.name and not node.op_type.startswith("Reorder")  # of a layout, not a result
        }  # fmt: skip
        return read_profile(place.read_text(), ends)


def read_profile(text: str, ends: dict[str, tuple[str, ...]]) -> Profiled:
    """A profile's text; `ends` are the tensors that each node of the graph makes.

    Of each call only what lies within one `model_run` counts, and the first three calls do not.
    Raises InputError where it is no such text.
    """
    try:
        events = json.loads(text)
        runs = sorted(
            (int(e["ts"]), int(e["ts"]) + int(e["dur"])) for e in events
            if e.get("cat") == "Session" and e["name"] == "model_run"
        )[_UNCOUNTED:]  # fmt: skip
        kernels = [
            e for e in events
            if e.get("cat") == "Node" and e["name"].endswith(_SUFFIX)
            and runs and runs[0][0] <= int(e["ts"]) <= runs[-1][1]
        ]  # fmt: skip
        took: dict[str, list[float]] = defaultdict(list)
        kinds: dict[str, str] = {}
        for event in kernels:
            name = event["name"].removesuffix(_SUFFIX)
            took[name].append(int(event["dur"]) / 1e6)
            kinds[name] = str(event["args"].get("op_name", ""))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _no_profile(f"{type(error).__name__}: {error}") from error
    if not runs or not took:
        raise _no_profile("no call, or no node")
    return Profiled(
        layers=tuple(
            ProfiledLayer(
                name=name, kind=kinds[name], seconds=sum(seconds) / len(runs),
                median_seconds=statistics.median(seconds), ends=_ends(name, ends),
            )
            for name, seconds in took.items()
        ),
        whole_seconds=sum(end - begin for begin, end in runs) / 1e6 / len(runs),
        calls=len(runs),
        source="ONNX Runtime's profile, whole microseconds",
    )  # fmt: skip


def _ends(name: str, ends: dict[str, tuple[str, ...]]) -> tuple[str, ...]:
    in_layout = _NCHWC.match(name)
    return (*((in_layout[1],) if in_layout else ()), *ends.get(name, ()))


def _no_profile(got: str) -> InputError:
    return InputError("this is no profile of ONNX Runtime", got=got, wanted="calls and their nodes")
