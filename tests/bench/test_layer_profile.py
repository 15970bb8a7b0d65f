"""Layers of a profile: ONNX Runtime's read, and mapped back to the graph's nodes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from edgekit.bench.layer_times import GraphNode, map_layers
from edgekit.bench.loops import EmptySession
from edgekit.cli import app
from edgekit.engines import onnxruntime as runtime
from edgekit.engines.base import Engine, EngineRequest
from edgekit.engines.onnxruntime_profile import profile, read_profile
from edgekit.engines.profiled import Profiled, ProfiledLayer
from edgekit.engines.trt.profile import profile_session
from edgekit.errors import InputError
from edgekit.pipeline.layer_profile import read_graph
from edgekit.targets import load_target
from edgekit.values import Unknown


def node(name: str, op: str, inputs: str, outputs: str) -> GraphNode:
    return GraphNode(name=name, op=op, inputs=tuple(inputs.split()), outputs=tuple(outputs.split()))


RESIDUAL = (
    node("stem", "Conv", "x w1", "a"), node("stem_bn", "BatchNormalization", "a s", "b"),
    node("stem_relu", "Relu", "b", "c"), node("body", "Conv", "c w2", "d"),
    node("sum", "Add", "d c", "e"), node("relu", "Relu", "e", "f"),
    node("pool", "GlobalAveragePool", "f", "g"), node("flat", "Flatten", "g", "h"),
    node("head", "Gemm", "h w3", "y"),
)  # fmt: skip


def profiled(*layers: ProfiledLayer, whole: float | Unknown = 1e-3) -> Profiled:
    return Profiled(layers=layers, whole_seconds=whole, calls=10, source="by hand")


def layer(name: str, seconds: float, ends: str = "", nodes: str = "") -> ProfiledLayer:
    return ProfiledLayer(
        name=name, kind="", seconds=seconds, median_seconds=seconds, ends=tuple(ends.split()),
        nodes=tuple(nodes.split()),
    )  # fmt: skip


def test_fused_nodes_stand_with_their_layer_and_each_node_once() -> None:
    table = map_layers(
        profiled(
            layer("c_nchwc", 4e-4, "c"), layer("d_nchwc", 3e-4, "d"), layer("reorder", 1e-4),
            layer("pool", 5e-5), layer("y", 5e-5, "unheard y"),
        ),
        RESIDUAL,
    )  # fmt: skip
    assert {one.layer.name: one.nodes for one in table.layers} == {
        "c_nchwc": ("stem", "stem_bn", "stem_relu"),
        "d_nchwc": ("body", "sum", "relu"),
        "reorder": (),
        "pool": ("pool",),
        "y": ("flat", "head"),
    }
    assert table.unmapped_share == pytest.approx(1 / 9)
    assert table.between_share == pytest.approx(0.1)
    assert sum(one.share for one in table.layers) == pytest.approx(1)


def test_what_a_layer_names_goes_before_what_it_ends_in() -> None:
    table = map_layers(profiled(layer("stem + stem_relu", 1e-4, "", "stem stem_relu")), RESIDUAL)
    assert table.layers[0].nodes == ("stem", "stem_relu")


def test_without_a_graph_all_is_unmapped_and_the_whole_may_be_unknown() -> None:
    table = map_layers(profiled(layer("a", 1e-4), whole=Unknown("not told")), ())
    assert table.unmapped_share == 1
    assert table.between_share == Unknown("not told")


def events(calls: int) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    for call in range(calls):
        at = 1000 * call
        for name, op, dur in (("c", "Conv", 100 + call), ("g", "Gemm", 50)):
            found.append(
                {"cat": "Node", "name": f"{name}_kernel_time", "ts": at + 1, "dur": dur,
                 "args": {"op_name": op}}
            )  # fmt: skip
        found.append({"cat": "Session", "name": "model_run", "ts": at, "dur": 200, "args": {}})
    return found


def test_a_profile_is_read_without_its_first_calls() -> None:
    found = read_profile(json.dumps(events(7)), {"c": ("t",)})
    assert found.calls == 4
    assert found.whole_seconds == pytest.approx(200e-6)
    conv, gemm = found.layers
    assert (conv.name, conv.kind, conv.ends) == ("c", "Conv", ("t",))
    assert conv.seconds == pytest.approx((103 + 104 + 105 + 106) / 4 / 1e6)
    assert gemm.median_seconds == pytest.approx(50e-6)


@pytest.mark.parametrize("text", ["", "[", "{}", "[]", "[1]", json.dumps(events(2)),
                                  '[{"cat": "Session", "name": "model_run"}]'])  # fmt: skip
def test_what_is_no_profile_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no profile"):
        read_profile(text, {})


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """A residual block with all that ONNX Runtime fuses, and a head; the source beside it."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("layers")
    weights = {
        "w1": rng.normal(size=(32, 3, 3, 3)), "w2": rng.normal(size=(32, 32, 3, 3)) / 17,
        "w3": rng.normal(size=(32, 10)), **{n: np.ones(32) for n in ("s", "v")},
        **{n: np.zeros(32) for n in ("o", "m")},
    }  # fmt: skip
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="stem", **pads),
        helper.make_node("BatchNormalization", ["a", "s", "o", "m", "v"], ["b"], name="stem_bn"),
        helper.make_node("Relu", ["b"], ["c"], name="stem_relu"),
        helper.make_node("Conv", ["c", "w2"], ["d"], name="body", **pads),
        helper.make_node("Add", ["d", "c"], ["e"], name="sum"),
        helper.make_node("Relu", ["e"], ["f"], name="relu"),
        helper.make_node("GlobalAveragePool", ["f"], ["g"], name="pool"),
        helper.make_node("Flatten", ["g"], ["h"], name="flat"),
        helper.make_node("Gemm", ["h", "w3"], ["y"], name="head"),
    ]
    graph = helper.make_graph(
        nodes, "residual",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(proto, folder / "model.onnx")
    (folder / "engine").mkdir()
    return runtime.build(
        EngineRequest(
            model_path=folder / "model.onnx", name="residual", target=load_target("cpu"),
            precision="fp32", threads=1, batch=(1, 1, 1),
        ),
        folder / "engine",
    )  # fmt: skip


def test_a_real_profile_finds_every_node_of_the_model_that_was_built(engine: Engine) -> None:
    feeds = [{"x": np.random.default_rng(1).normal(size=(1, 3, 32, 32)).astype(np.float32)}]
    found = profile(engine, feeds, calls=20, threads=1)
    assert found.calls == 20
    table = map_layers(found, read_graph(engine.path.parent.parent / "model.onnx"))
    nodes = [name for one in table.layers for name in one.nodes]
    assert sorted(nodes) == sorted(
        ["stem", "stem_bn", "stem_relu", "body", "sum", "relu", "pool", "flat", "head"]
    )
    by_node = {name: one for one in table.layers for name in one.nodes}
    assert by_node["stem"] is by_node["stem_relu"]
    assert by_node["body"] is by_node["sum"]
    # 10 times the MACs; by the median, for a neighbour can hold one call up for long.
    assert max(table.layers, key=lambda one: one.layer.median_seconds) is by_node["body"]
    assert table.unmapped_share < 0.3
    total = sum(one.layer.seconds for one in table.layers)
    assert not isinstance(found.whole_seconds, Unknown)
    assert total <= found.whole_seconds


def test_the_verb_prints_the_layers_and_writes_them(engine: Engine, tmp_path: Path) -> None:
    data, out = tmp_path / "data.npz", tmp_path / "layers.json"
    np.savez(data, x=np.random.default_rng(1).normal(size=(4, 3, 32, 32)).astype(np.float32))
    arguments = ["bench", str(engine.path.parent), "--data", str(data), "--layers", "--json"]
    done = CliRunner().invoke(app, [*arguments, "-o", str(out)])
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document == json.loads(out.read_text())
    assert any("body" in one["nodes"] for one in document["layers"])
    assert 0 <= document["unmapped_share"] < 1
    shown = CliRunner().invoke(app, arguments[:-1])
    assert shown.exit_code == 0, shown.output
    refused = CliRunner().invoke(app, [*arguments, "--aa"])
    assert refused.exit_code == 2


class FakeProfiler:
    """What TensorRT's IProfiler is to Python: a base whose __init__ must be called."""

    def __init__(self) -> None:
        self.ready = True


class FakeTrtSession(EmptySession):
    """Reports two layers a run, the first runs of it slowly."""

    def __init__(self, layers: tuple[str, ...]) -> None:
        self._layers, self._runs = layers, 0

    def report_to(self, profiler: Any) -> None:
        assert profiler.ready
        self._profiler = profiler

    def execute(self) -> None:
        self._runs += 1
        for index, name in enumerate(self._layers):
            self._profiler.report_layer_time(name, 100.0 if self._runs <= 3 else 1.0 + index)


def test_tensorrts_profiler_is_asked_after_the_first_runs(engine: Engine) -> None:
    session = FakeTrtSession(("stem + stem_relu", "{ForeignNode[pool...head]}", "Reformat 3"))
    found = profile_session(
        SimpleNamespace(IProfiler=FakeProfiler), session, session.report_to, engine, ([{}], 5)
    )
    assert [one.seconds for one in found.layers] == pytest.approx([1e-3, 2e-3, 3e-3])
    table = map_layers(found, RESIDUAL)
    assert [one.nodes for one in table.layers] == [("stem", "stem_relu"), ("pool", "head"), ()]
    assert table.unmapped_share == pytest.approx(0.5)


def test_a_profiler_that_reports_nothing_is_an_error(engine: Engine) -> None:
    session = FakeTrtSession(())
    with pytest.raises(InputError, match="no layer"):
        profile_session(
            SimpleNamespace(IProfiler=FakeProfiler), session, session.report_to, engine, ([{}], 5)
        )


def test_an_export_of_trtexec_is_mapped_to_the_nodes_too(engine: Engine, tmp_path: Path) -> None:
    layers = [("stem + stem_bn", 1.0), ("body + sum + relu", 2.5), ("Reformatting CopyNode", 0.5)]
    document = [
        {"count": 50},
        *({"name": name, "timeMs": 50 * ms, "averageMs": ms, "percentage": 25.0 * ms}
          for name, ms in layers),
    ]  # fmt: skip
    export = tmp_path / "profile.json"
    export.write_text(json.dumps(document))
    done = CliRunner().invoke(
        app,
        ["bench", str(engine.path.parent), "--layers", "--profile", str(export), "--json"],
    )
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["unmapped_share"] == pytest.approx(0.125)
    assert found["layers"][1]["nodes"] == ["body", "sum", "relu"]
    assert set(found["whole_ms"]) == {"unknown"}
