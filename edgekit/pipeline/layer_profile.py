"""`edgekit bench --layers`: what each layer of an engine takes, by its runtime's own profiler."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx

from edgekit import files
from edgekit.bench.layer_times import GraphNode, LayerTable, map_layers
from edgekit.engines import onnxruntime_profile
from edgekit.engines.base import Engine
from edgekit.engines.profiled import Profiled
from edgekit.engines.trt import profile as trt_profile
from edgekit.errors import InputError
from edgekit.values import Feeds

Profile = Callable[..., Profiled]

_PROFILERS: Mapping[str, Profile] = {
    "onnxruntime": onnxruntime_profile.profile,
    "tensorrt": trt_profile.profile,
    "tensorrt_rtx": trt_profile.profile,
}
_CALLS = 200


def layer_table(engine: Engine, batches: Sequence[Feeds], threads: int) -> LayerTable:
    """The layers of an engine and the nodes of the graph that it was built from.

    That graph is the model.onnx beside the engine's folder, if it is the one of the manifest; else
    the engine's own file, where that is an ONNX file. Raises InputError for a runtime without a
    profiler that edgekit reads.
    """
    profiler = _PROFILERS.get(engine.runtime)
    if profiler is None:
        raise InputError(
            f"edgekit reads no profile of {engine.runtime}", where=str(engine.path),
            wanted=", ".join(sorted(_PROFILERS)),
        )  # fmt: skip
    profiled = profiler(engine, batches, calls=_CALLS, threads=threads)
    return map_layers(profiled, _graph_of(engine))


def exported_table(engine: Engine, export: Path) -> LayerTable:
    """The layers of an engine as its device's trtexec exported them, and their nodes."""
    return map_layers(trt_profile.exported(export, engine), _graph_of(engine))


def _graph_of(engine: Engine) -> list[GraphNode]:
    source = engine.path.parent.parent / "model.onnx"
    if source.is_file() and files.digest_file(source) == engine.model_sha256:
        return read_graph(source)
    return read_graph(engine.path) if engine.path.suffix == ".onnx" else []


def read_graph(path: Path) -> list[GraphNode]:
    """The nodes of an ONNX file; one without a name is called by its first output."""
    graph = onnx.load(path, load_external_data=False).graph
    return [
        GraphNode(
            name=node.name or node.output[0], op=node.op_type, inputs=tuple(node.input),
            outputs=tuple(name for name in node.output if name),
        )
        for node in graph.node
    ]  # fmt: skip
