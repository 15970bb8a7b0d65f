"""The per-layer table: what is measured, what is kept, and what the whole is held against."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from edgekit.bench import layers as bench_layers
from edgekit.bench.layers import LayerPlan, LayerTime, layer_model, layer_time, measure_layers
from edgekit.cli import app
from edgekit.compress.channels.budgeting.latency import measured_latency
from edgekit.compress.channels.budgeting.layers import Layer, network_of
from edgekit.compress.channels.groups import find_groups
from edgekit.engines.base import EngineRequest
from edgekit.errors import InputError
from edgekit.models.cost import node_costs, total_cost
from edgekit.models.model import Model
from edgekit.models.source import load
from edgekit.pipeline import table as tables
from edgekit.pipeline.origin import Origin
from edgekit.pipeline.table import TableReport, TableRequest, load_table, make_table
from edgekit.targets import load_target
from edgekit.values import Feeds, TensorSpec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conftest import residual_graph, run_reference

QUICK = LayerPlan(rounds=2, turn_s=0.001, threads=1)


def many_layers(folder: Path) -> Model:
    """Dense, strided, depthwise, grouped, transposed and `auto_pad` convolutions, and products."""
    rng = np.random.default_rng(0)
    stored, nodes = [], []

    def weight(name: str, *shape: int) -> str:
        stored.append(numpy_helper.from_array(rng.normal(0, 0.1, shape).astype(np.float32), name))
        return name

    def conv(
        source: str, name: str, shape: tuple[int, ...], op: str = "Conv", **how: object
    ) -> str:
        nodes.append(helper.make_node(op, [source, weight(f"{name}.w", *shape)], [name], **how))
        nodes.append(helper.make_node("Relu", [name], [f"{name}.r"]))
        return f"{name}.r"

    x = conv("x", "dense", (16, 3, 3, 3), pads=[1] * 4)
    x = conv(x, "strided", (32, 16, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER")
    x = conv(x, "depthwise", (32, 1, 5, 5), pads=[4] * 4, group=32, dilations=[2, 2])
    x = conv(x, "grouped", (48, 8, 1, 1), group=4)
    x = conv(x, "up", (48, 16, 2, 2), "ConvTranspose", strides=[2, 2])
    nodes.append(helper.make_node("GlobalAveragePool", [x], ["pool"]))
    nodes.append(helper.make_node("Flatten", ["pool"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", weight("m.w", 16, 24)], ["m"]))
    nodes.append(helper.make_node("Gemm", ["m", weight("g.w", 10, 24)], ["y"], transB=1))
    graph = helper.make_graph(
        nodes, "many",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        stored,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(proto, folder / "many.onnx")
    return load(folder / "many.onnx")


def test_every_layer_alone_has_the_macs_that_it_has_in_its_network(tmp_path: Path) -> None:
    model = many_layers(tmp_path)
    network = network_of(model, find_groups(model).groups, runtime="onnxruntime", batch=2)
    alone = [total_cost(layer_model(placed.layer, 1)).macs for placed in network.layers]
    assert alone == [cost.macs for cost in node_costs(model, batch=2) if cost.macs]


@pytest.mark.parametrize("copies", [1, 3])
def test_a_graph_of_copies_has_so_many_times_the_macs_and_runs(tmp_path: Path, copies: int) -> None:
    model = many_layers(tmp_path)
    for placed in network_of(model, find_groups(model).groups, runtime="onnxruntime").layers:
        once, several = (layer_model(placed.layer, n) for n in (1, copies))
        assert total_cost(several).macs == copies * total_cost(once).macs
        feeds = {
            spec.name: np.ones([int(n) for n in spec.shape], np.float32) for spec in several.inputs
        }
        (output,) = run_reference(several, feeds)
        assert np.isfinite(output).all()
        assert output.std() > 0


def test_depthwise_groups_follow_their_channels_and_grouped_ones_stay(tmp_path: Path) -> None:
    model = many_layers(tmp_path)
    network = network_of(model, find_groups(model).groups, runtime="onnxruntime")
    depthwise = next(p for p in network.layers if p.layer.group == 32)
    widths = [(p.channels_in, p.channels_out, p.group) for r in depthwise.points(8) for p in r]
    assert widths == [(8, 8, 8), (16, 16, 16), (24, 24, 24), (32, 32, 32)]
    grouped = next(p for p in network.layers if p.layer.group == 4)
    assert {p.group for row in grouped.points(8) for p in row} == {4}
    assert all(not p.channels_out % 4 for row in grouped.points(8) for p in row)


class FakeSession:
    """A session whose call takes 50 us and a nanosecond for each MAC, on a clock of its own."""

    def __init__(self, model: Model, clock: list[float]) -> None:
        self.inputs: tuple[TensorSpec, ...] = model.inputs
        self.outputs: tuple[TensorSpec, ...] = model.outputs
        self._seconds = 5e-5 + 1e-9 * total_cost(model).macs
        self._clock = clock

    def stage(self, feeds: Feeds) -> None:
        pass

    def execute(self) -> None:
        self._clock[0] += self._seconds


@pytest.fixture
def fake_device(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    @contextmanager
    def opened(model: Model) -> Iterator[FakeSession]:
        yield FakeSession(model, clock)

    def build(request: EngineRequest, folder: Path) -> Model:
        return load(request.model_path)

    runtime = SimpleNamespace(build=build, open=opened)
    monkeypatch.setattr(bench_layers, "runtime_module", lambda name: runtime)
    monkeypatch.setattr(
        bench_layers, "time", SimpleNamespace(perf_counter=lambda: clock[0], time=lambda: 7.0)
    )


@pytest.mark.usefixtures("fake_device")
def test_what_a_call_costs_is_no_part_of_a_layers_time(tmp_path: Path) -> None:
    model = many_layers(tmp_path)
    network = network_of(model, find_groups(model).groups, runtime="onnxruntime")
    layers = [placed.layer for placed in network.layers]
    found = measure_layers(layers, load_target("cpu"), QUICK)
    macs = [total_cost(layer_model(layer, 1)).macs for layer in layers]
    assert [one.seconds for one in found] == pytest.approx([1e-9 * n for n in macs], rel=1e-6)
    assert all(one.resolved and one.spread < 1e-6 and one.taken_at == 7.0 for one in found)


@pytest.mark.parametrize(
    ("slopes", "seconds", "resolved"),
    [([2e-6, 3e-6, 4e-6], 3e-6, True), ([-1e-6, 1e-7, 2e-6], 1.5e-6, False),
     ([-2e-6, -1e-6, -1e-6], 1.5e-6, False), ([0.0, 0.0, 0.0], 1e-9, False)],
)  # fmt: skip
def test_a_layer_that_cannot_be_told_from_nothing_is_never_0(
    slopes: list[float], seconds: float, resolved: bool
) -> None:
    found = layer_time(float(np.median(slopes)), slopes)
    assert found.seconds == pytest.approx(seconds)
    assert found.resolved is resolved


def pretended(layer: Layer) -> LayerTime:
    """By hand: a nanosecond for each pair of channels."""
    seconds = 1e-9 * layer.channels_in * layer.channels_out / layer.group
    return LayerTime(seconds=seconds, spread=0.01, rounds=9, resolved=True, taken_at=1e9)


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> list[Layer]:
    """Nothing is run: layers take what `pretended` says, the whole 1 ms. The layers asked for."""
    asked: list[Layer] = []

    def measure(layers: Sequence[Layer], *_: object, **__: object) -> tuple[LayerTime, ...]:
        asked.extend(layers)
        return tuple(map(pretended, layers))

    monkeypatch.setattr(tables, "measure_layers", measure)
    monkeypatch.setattr(tables, "measure_bytes_per_s", lambda *_: 1e9)
    monkeypatch.setattr(tables, "whole_latency", lambda *_: (1e-3, ("other programs",)))
    return asked


def request_of(path: Path, folder: Path, **how: object) -> TableRequest:
    base = TableRequest(
        origin=Origin(place=str(path)), target="cpu", cache=folder / "cache", threads=1
    )
    return replace(base, **how)  # type: ignore[arg-type]


def test_the_table_holds_every_layer_at_every_width_once(
    pretend: list[Layer], residual_path: Path, tmp_path: Path
) -> None:
    report = make_table(request_of(residual_path, tmp_path))
    assert len(pretend) == len(set(pretend)) == len(report.document["layers"])
    model = load(residual_path)
    network = network_of(model, find_groups(model).groups, runtime="onnxruntime")
    wanted = {p for placed in network.layers for row in placed.points(8) for p in row}
    assert set(pretend) == wanted


def test_a_second_table_measures_nothing_again(
    pretend: list[Layer], residual_path: Path, tmp_path: Path
) -> None:
    first = make_table(request_of(residual_path, tmp_path)).document
    pretend.clear()
    second = make_table(request_of(residual_path, tmp_path)).document
    assert pretend == []
    assert (second["measured_now"], second["from_cache"]) == (0, first["measured_now"])
    assert second["layers"] == first["layers"]


@pytest.mark.usefixtures("pretend")
def test_another_model_takes_the_layers_that_it_shares(
    pretend: list[Layer], residual_path: Path, tmp_path: Path
) -> None:
    make_table(request_of(residual_path, tmp_path))
    known = set(pretend)
    pretend.clear()
    onnx.save(residual_graph(channels=32), tmp_path / "wider.onnx")
    make_table(request_of(tmp_path / "wider.onnx", tmp_path))
    assert pretend
    assert not known & set(pretend)


@pytest.mark.parametrize("how", [{"threads": 2}, {"batch": 4}])
def test_other_conditions_are_other_layers(
    pretend: list[Layer], residual_path: Path, tmp_path: Path, how: dict[str, object]
) -> None:
    make_table(request_of(residual_path, tmp_path))
    count = len(pretend)
    make_table(request_of(residual_path, tmp_path, **how))
    assert len(pretend) == 2 * count


def test_a_table_that_was_interrupted_goes_on_where_it_was(
    pretend: list[Layer], residual_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure: Callable[..., tuple[LayerTime, ...]] = tables.measure_layers
    calls = []

    def interrupted(layers: Sequence[Layer], *rest: object, **more: object) -> object:
        calls.append(len(layers))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(layers, *rest, **more)

    monkeypatch.setattr(tables, "measure_layers", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make_table(request_of(residual_path, tmp_path))
    done = set(pretend)
    assert len(done) == sum(calls[:2])
    monkeypatch.setattr(tables, "measure_layers", measure)
    pretend.clear()
    document = make_table(request_of(residual_path, tmp_path)).document
    assert not done & set(pretend)
    assert len(done) + len(pretend) == len(document["layers"])


@pytest.mark.parametrize("content", [b"", b"{", b'{"time": {"seconds": 0}}', b"[1]", b"\xff"])
def test_a_damaged_entry_is_measured_again(
    pretend: list[Layer], residual_path: Path, tmp_path: Path, content: bytes
) -> None:
    make_table(request_of(residual_path, tmp_path))
    count = len(pretend)
    entries = sorted((tmp_path / "cache").iterdir())
    entries[0].write_bytes(content)
    entries[1].write_bytes(content)
    pretend.clear()
    make_table(request_of(residual_path, tmp_path))
    assert 1 <= len(pretend) <= 2 < count


@pytest.mark.usefixtures("pretend")
def test_the_parts_add_up_to_the_whole_that_was_measured(
    residual_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "table.json"
    document = make_table(request_of(residual_path, tmp_path, out=out)).document
    # By hand: stem 3 * 16, two of the block, a branch of 1x1 and one of 3x3: 16 * 16, Gemm 32 * 5.
    assert document["layers_ms"] == pytest.approx(1e-6 * (3 * 16 + 4 * 16 * 16 + 32 * 5))
    assert document["whole_ms"] == 1.0
    # A sum that is far from the whole is doubted, beside what the whole's measurement doubts.
    assert document["doubts"][0] == "other programs"
    assert "times the sum of its parts" in document["doubts"][1]
    assert document["scale"] == pytest.approx(1 / (document["layers_ms"] + document["other_ms"]))
    model = load(residual_path)
    latency = measured_latency(model, find_groups(model).groups, load_table(out))
    assert latency.source == "measured"
    assert latency.whole == pytest.approx(1.0, rel=1e-9)


def test_a_target_that_is_not_here_is_not_measured_and_names_the_roofline(
    pretend: list[Layer], residual_path: Path, tmp_path: Path
) -> None:
    report = make_table(request_of(residual_path, tmp_path, target="jetson-orin-nano-8gb"))
    assert report.exit_code == 3
    assert "not measured here" in report.document["verdict"]
    assert "roofline" in report.document["instead"]
    assert pretend == []


@pytest.mark.parametrize(
    ("how", "said"),
    [({"batch": 0}, "at least one sample"), ({"threads": -1}, "counted from 1"),
     ({"target": "cpo"}, 'no target called "cpo"')],
)  # fmt: skip
def test_a_request_that_makes_no_sense_is_refused(
    pretend: list[Layer], residual_path: Path, tmp_path: Path, how: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        make_table(request_of(residual_path, tmp_path, **how))
    assert pretend == []


def test_a_model_without_layers_is_refused(pretend: list[Layer], tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "none",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, 8, 8])],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        tmp_path / "none.onnx",
    )
    with pytest.raises(InputError, match="no layer of this model"):
        make_table(request_of(tmp_path / "none.onnx", tmp_path))
    assert pretend == []


def test_a_precision_that_the_target_lacks_is_refused(
    pretend: list[Layer], residual_path: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="cannot be measured in fp16") as caught:
        make_table(request_of(residual_path, tmp_path, precision="fp16"))
    assert caught.value.wanted == "fp32, int8"
    assert pretend == []


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "no table"), ("[]", "no table"), ('{"format": 99}', "another version"),
     ('{"format": 1, "runtime": "onnxruntime", "batch": 1, "layers": [], "bytes_per_s": 0, '
      '"scale": 1}', "no table"),
     ('{"format": 1, "runtime": "onnxruntime", "batch": 1, "layers": [{"layer": {"op": "LSTM"}, '
      '"seconds": 1}], "bytes_per_s": 1, "scale": 1}', "no table")],
)  # fmt: skip
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, text: str, said: str) -> None:
    place = tmp_path / "table.json"
    place.write_text(text)
    with pytest.raises(InputError, match=said):
        load_table(place)


def test_a_table_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such table"):
        load_table(tmp_path / "table.json")


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_real_table_of_a_small_network(
    residual_path: Path, tmp_path: Path, precision: str
) -> None:
    events: list[str] = []
    report = make_table(
        request_of(
            residual_path, tmp_path, plan=QUICK, out=tmp_path / "t.json", precision=precision
        ),
        on_event=lambda event: events.append(f"{event.step} {event.state}"),
    )
    assert isinstance(report, TableReport)
    table = load_table(tmp_path / "t.json")
    assert all(0 < seconds < 1 for seconds in table.seconds.values())
    assert {layer.precision for layer in table.seconds} == {table.precision} == {precision}
    assert 0 < report.document["whole_ms"] < 1e3
    assert {"layers started", "layers done", "whole network done"} <= set(events)


@pytest.mark.usefixtures("pretend")
def test_the_verb_prints_one_document_and_leaves_the_table(
    residual_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "table.json"
    done = CliRunner().invoke(
        app,
        ["table", str(residual_path), "--target", "cpu", "--cache", str(tmp_path / "cache"),
         "-o", str(out), "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["whole_ms"] == 1.0
    assert load_table(out).batch == 1


def test_the_verb_says_3_where_nothing_can_be_measured(residual_path: Path) -> None:
    done = CliRunner().invoke(
        app, ["table", str(residual_path), "--target", "jetson-orin-nano-8gb", "--json"]
    )
    assert done.exit_code == 3
    assert "not measured here" in json.loads(done.stdout)["verdict"]
