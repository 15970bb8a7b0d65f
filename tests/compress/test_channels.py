"""Channel removal: what goes together, and that a cut computes what a masked network computes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgekit.compress.channels.budget import allowed_counts
from edgekit.compress.channels.budgeting.limits import Limits
from edgekit.compress.channels.criteria import score_groups
from edgekit.compress.channels.cut import ChannelReport, CutOptions, cut_channels
from edgekit.compress.channels.groups import Groups, find_groups
from edgekit.compress.channels.plan import Plan, plan_from_json
from edgekit.compress.channels.remove import remove_channels
from edgekit.errors import InputError
from edgekit.models.cost import total_cost
from edgekit.models.model import Model, constant_of
from edgekit.models.source import load
from edgekit.values import Array

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent))
from conftest import residual_graph, run_reference
from masked import masked

Reference = Callable[..., list[Array]]


def halved(model: Model, *, macs: float, multiple: int = 8) -> tuple[Model, ChannelReport]:
    """The model cut to a share of its MACs by the defaults."""
    return cut_channels(model, CutOptions(limits=Limits(macs=macs), multiple=multiple))


class Net:
    """Builds a small graph, layer by layer, with seeded weights."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.channels = {"x": 3}

    def constant(self, name: str, array: Array) -> str:
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def weights(self, name: str, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:])) or 1
        values = self.rng.normal(0, fan_in**-0.5, shape).astype(np.float32)
        return self.constant(name, values)

    def add(self, op: str, sources: list[str], output: str, **attributes: object) -> str:
        self.nodes.append(helper.make_node(op, sources, [output], name=output, **attributes))
        return output

    def conv(self, source: str, name: str, channels: int, size: int = 3, group: int = 1) -> str:
        shape = (channels, self.channels[source] // group, size, size)
        inputs = [source, self.weights(f"{name}.w", *shape), self.weights(f"{name}.b", channels)]
        self.channels[name] = channels
        return self.add("Conv", inputs, name, pads=[size // 2] * 4, group=group)

    def relu(self, source: str) -> str:
        self.channels[f"{source}.r"] = self.channels[source]
        return self.add("Relu", [source], f"{source}.r")

    def norm(self, source: str) -> str:
        c, name = self.channels[source], f"{source}.n"
        parameters = [
            self.constant(f"{name}.{part}", self.rng.uniform(0.5, 1.5, c).astype(np.float32))
            for part in ("scale", "bias", "mean", "var")
        ]
        self.channels[name] = c
        return self.add("BatchNormalization", [source, *parameters], name)

    def gemm(self, source: str, width: int, classes: int = 5) -> str:
        inputs = [source, self.weights("fc.w", classes, width), self.weights("fc.b", classes)]
        return self.add("Gemm", inputs, "y", transB=1)

    def model(self, folder: Path, output: str, shape: list[object]) -> Model:
        graph = helper.make_graph(
            self.nodes, "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 8, 8])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)],
            self.constants,
        )  # fmt: skip
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        path = folder / "net.onnx"
        onnx.save(proto, path)
        return load(path)

    def pooled(self, source: str, folder: Path) -> Model:
        self.add("GlobalAveragePool", [source], "pool")
        self.add("Flatten", ["pool"], "flat")
        self.gemm("flat", self.channels[source])
        return self.model(folder, "y", ["n", 5])


def chain(folder: Path) -> Model:
    net = Net()
    a = net.relu(net.norm(net.conv("x", "a", 16)))
    return net.pooled(net.relu(net.conv(a, "b", 24)), folder)


def residual(folder: Path) -> Model:
    net = Net(1)
    a = net.relu(net.norm(net.conv("x", "a", 16)))
    b = net.relu(net.conv(a, "b", 32))
    c = net.conv(b, "c", 16)
    net.channels["sum"] = 16
    return net.pooled(net.relu(net.add("Add", [c, a], "sum")), folder)


def depthwise(folder: Path) -> Model:
    net = Net(2)
    a = net.relu(net.conv("x", "a", 16, 1))
    b = net.relu(net.norm(net.conv(a, "b", 16, 3, group=16)))
    return net.pooled(net.conv(b, "c", 24, 1), folder)


def widening_depthwise(folder: Path) -> Model:
    net = Net(3)
    a = net.relu(net.conv("x", "a", 16, 1))
    return net.pooled(net.conv(net.conv(a, "b", 32, 3, group=16), "c", 16, 1), folder)


def grouped(folder: Path) -> Model:
    net = Net(4)
    a = net.relu(net.conv("x", "a", 32))
    return net.pooled(net.relu(net.conv(a, "b", 64, 3, group=4)), folder)


def concatenation(folder: Path) -> Model:
    net = Net(5)
    a = net.relu(net.conv("x", "a", 16))
    left, right = net.relu(net.conv(a, "l", 16)), net.relu(net.conv(a, "r", 24, 1))
    net.channels["both"] = 40
    both = net.add("Concat", [left, right], "both", axis=1)
    return net.pooled(net.relu(net.conv(both, "c", 16)), folder)


def flattened(folder: Path) -> Model:
    net = Net(6)
    a = net.relu(net.conv("x", "a", 16))
    net.add("MaxPool", [a], "pool", kernel_shape=[2, 2], strides=[2, 2])
    net.add("Flatten", ["pool"], "flat")
    net.gemm("flat", 16 * 16)
    return net.model(folder, "y", ["n", 5])


def reshaped(folder: Path) -> Model:
    net = Net(7)
    a = net.relu(net.conv("x", "a", 16))
    net.add("MaxPool", [a], "pool", kernel_shape=[2, 2], strides=[2, 2])
    net.add("Reshape", ["pool", net.constant("shape", np.array([0, 256], np.int64))], "flat")
    net.gemm("flat", 256)
    return net.model(folder, "y", ["n", 5])


def gated(folder: Path) -> Model:
    net = Net(8)
    a = net.relu(net.conv("x", "a", 16))
    net.add("GlobalAveragePool", [a], "squeeze")
    net.channels["squeeze"] = 16
    net.add("Sigmoid", [net.conv(net.relu(net.conv("squeeze", "s", 16, 1)), "e", 16, 1)], "gate")
    net.channels["scaled"] = 16
    net.add("Mul", [a, "gate"], "scaled")
    return net.pooled(net.conv("scaled", "c", 24), folder)


NETS = [
    chain, residual, depthwise, widening_depthwise, grouped, concatenation, flattened, reshaped,
    gated,
]  # fmt: skip


def assert_equivalent(model: Model, cut: Model, plan: Plan, name: str = "x") -> None:
    shape = [d if isinstance(d, int) else 4 for d in model.inputs[0].shape]
    x = np.random.default_rng(9).normal(size=shape).astype(np.float32)
    expected = run_reference(masked(model, find_groups(model), plan), {name: x})[0]
    found = run_reference(cut, {name: x})[0]
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("make", NETS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("macs", [0.7, 0.5, 0.35])
def test_a_cut_computes_what_the_masked_network_computes(
    tmp_path: Path, make: Callable[[Path], Model], macs: float
) -> None:
    model = make(tmp_path)
    try:
        cut, report = halved(model, macs=macs, multiple=4)
    except InputError:  # too narrow for this budget: the nearest that it can
        cut, report = halved(model, macs=0.8, multiple=4)
    assert report.after.macs < report.before.macs
    assert total_cost(cut).macs == report.after.macs
    assert_equivalent(model, cut, report.plan)


@given(seed=st.integers(0, 10_000), share=st.floats(0.3, 0.9))
@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_choice_of_units_keeps_the_equivalence(tmp_path: Path, seed: int, share: float) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(residual_graph(seed, channels=8), path)
    model = load(path)
    groups = find_groups(model)
    rng = np.random.default_rng(seed)
    kept = [
        np.sort(rng.choice(g.units, max(1, round(share * g.units)), replace=False))
        for g in groups.groups
    ]
    cut, plan = remove_channels(model, groups, kept)
    assert_equivalent(model, cut, plan, "image")


def test_residual_add_shrinks_both_branches(tmp_path: Path) -> None:
    model = residual(tmp_path)
    group = next(g for g in find_groups(model).groups if g.name == "a.w")
    assert {m.parameter for m in group.members if m.role == "produced"} == {"a.w", "c.w"}
    assert group.units == 16


def test_depthwise_goes_with_the_channels_that_it_reads(tmp_path: Path) -> None:
    model = depthwise(tmp_path)
    cut, report = halved(model, macs=0.6, multiple=4)
    kept, _ = report.kept["a.w"]
    node = next(n for n in cut.graph if n.name == "b")
    assert node.attributes["group"].value == kept
    assert cut.graph.initializers["b.w"].shape == (kept, 1, 3, 3)


def test_flatten_gives_each_channel_all_its_columns(tmp_path: Path) -> None:
    group = next(g for g in find_groups(flattened(tmp_path)).groups if g.name == "a.w")
    columns = next(m for m in group.members if m.role == "consumed")
    assert columns.indices.shape == (16, 16)
    assert columns.indices[3].tolist() == list(range(48, 64))


def test_the_reshape_constant_follows_the_cut(tmp_path: Path) -> None:
    cut, report = halved(reshaped(tmp_path), macs=0.6, multiple=4)
    kept, _ = report.kept["a.w"]
    assert constant_of(cut.graph.initializers["shape"]).tolist() == [0, 16 * kept]


def test_outputs_and_inputs_stay_with_the_reason(tmp_path: Path) -> None:
    groups = find_groups(chain(tmp_path))
    assert "graph output" in groups.frozen["fc.w"]
    assert all((m.parameter, m.axis) != ("a.w", 1) for g in groups.groups for m in g.members)


def test_an_operator_that_is_not_understood_freezes_what_it_touches(tmp_path: Path) -> None:
    net = Net()
    a = net.conv("x", "a", 16)
    net.add("Softmax", [a], "soft", axis=1)
    net.channels["soft"] = 16
    model = net.pooled(net.relu(net.conv("soft", "b", 16)), tmp_path)
    groups = find_groups(model)
    assert "Softmax soft stands in the way" in groups.frozen["a.w"]
    assert [g.name for g in groups.groups] == ["b.w"]


def test_a_weight_that_is_used_twice_is_cut_once_for_both(tmp_path: Path) -> None:
    net = Net()
    a = net.relu(net.conv("x", "a", 16))
    b = net.relu(net.conv(a, "b", 16))
    net.channels["again"] = 16
    net.add("Conv", [b, "b.w", "b.b"], "again", pads=[1] * 4)
    model = net.pooled("again", tmp_path)
    cut, report = halved(model, macs=0.6, multiple=4)
    assert_equivalent(model, cut, report.plan)


def test_names_are_kept_and_the_original_is_untouched(tmp_path: Path) -> None:
    model = residual(tmp_path)
    before = {name: v.const_value.numpy().copy() for name, v in model.graph.initializers.items()}
    cut, _ = halved(model, macs=0.5, multiple=4)
    assert set(cut.graph.initializers) == set(before)
    assert all(
        np.array_equal(v.const_value.numpy(), before[name])
        for name, v in model.graph.initializers.items()
    )


def test_l2_takes_batchnorm_into_account_by_hand(tmp_path: Path) -> None:
    model = chain(tmp_path)
    group = next(g for g in find_groups(model).groups if g.name == "a.w")
    weight = constant_of(model.graph.initializers["a.w"])
    gamma = constant_of(model.graph.initializers["a.n.scale"])
    var = constant_of(model.graph.initializers["a.n.var"])
    norms = np.sqrt((weight**2).sum((1, 2, 3))) * gamma / np.sqrt(var + 1e-5)
    (found,) = score_groups("l2", model, [group])
    assert found == pytest.approx(norms / norms.mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("units", "multiple", "counts"),
    [(128, 32, (128, 96, 64, 32)), (64, 32, (64, 32)), (32, 32, (32, 24, 16, 8)),
     (20, 32, (20, 16, 8)), (8, 8, (8,)), (100, 32, (100, 96, 64, 32)), (5, 8, (5,))],
)  # fmt: skip
def test_allowed_counts(units: int, multiple: int, counts: tuple[int, ...]) -> None:
    assert allowed_counts(units, multiple) == counts


def test_the_budget_is_met_and_never_overshot(tmp_path: Path) -> None:
    for macs in (0.9, 0.6, 0.4):
        _, report = halved(residual(tmp_path), macs=macs, multiple=4)
        assert report.after.macs <= macs * report.before.macs


def test_a_budget_out_of_reach_names_what_can_be_reached(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be met") as caught:
        halved(chain(tmp_path), macs=0.01, multiple=8)
    assert "at least 0." in caught.value.wanted


@pytest.mark.parametrize("macs", [0, -1, 1.01])
def test_a_budget_outside_0_to_1_is_refused(tmp_path: Path, macs: float) -> None:
    with pytest.raises(InputError, match="not between 0 and 1"):
        halved(chain(tmp_path), macs=macs)


def test_nothing_to_cut_is_an_error(tmp_path: Path) -> None:
    net = Net()
    net.conv("x", "y", 8)
    model = net.model(tmp_path, "y", ["n", 8, 8, 8])
    with pytest.raises(InputError, match="no channel of this model can be removed"):
        halved(model, macs=0.5)


def test_a_plan_comes_back_from_its_text(tmp_path: Path) -> None:
    _, report = halved(chain(tmp_path), macs=0.5, multiple=4)
    again = plan_from_json(report.plan.to_json())
    assert again.kept.keys() == report.plan.kept.keys()
    assert all(np.array_equal(again.kept[k], v) for k, v in report.plan.kept.items())
    with pytest.raises(InputError):
        plan_from_json("[1, 2]")


@pytest.mark.shared_data
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "squeezenet1_1", "densenet121"])
def test_real_architectures(shared_data: Path, tmp_path: Path, name: str) -> None:
    sys.path.insert(0, str(shared_data / "graphs"))
    from fill import fill  # type: ignore[import-not-found]

    path = tmp_path / f"{name}.onnx"
    fill(shared_data / "graphs" / f"{name}.onnx", path)
    model = load(path)
    cut, report = halved(model, macs=0.5, multiple=8)
    assert 0.4 < report.after.macs / report.before.macs <= 0.5
    assert_equivalent(model, cut, report.plan, model.inputs[0].name)


def as_model(net: Net, folder: Path, *, opset: int = 17) -> Model:
    """The net with a fixed batch of 1, and an opset of its own."""
    graph = helper.make_graph(
        net.nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_empty_tensor_value_info("y")], net.constants,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(onnx.shape_inference.infer_shapes(proto), folder / "net.onnx")
    return load(folder / "net.onnx")


def first_units(groups: Groups, share: float = 0.5) -> list[Array]:
    return [np.arange(max(1, round(share * group.units))) for group in groups.groups]


def test_detection_heads_stay_and_what_they_read_can_go(tmp_path: Path) -> None:
    net = Net(12)
    trunk = net.relu(net.conv("x", "trunk", 16))
    for name, numbers in (("boxes", 4), ("scores", 6)):
        net.conv(trunk, f"{name}.conv", 3 * numbers)
        net.add("Transpose", [f"{name}.conv"], f"{name}.t", perm=[0, 2, 3, 1])
        shape = net.constant(f"{name}.shape", np.array([1, 192, numbers], np.int64))
        net.add("Reshape", [f"{name}.t", shape], name)
    net.add("Transpose", ["scores"], "by_class", perm=[0, 2, 1])
    net.add("NonMaxSuppression", ["boxes", "by_class"], "y")
    groups = find_groups(as_model(net, tmp_path))
    assert [group.name for group in groups.groups] == ["trunk.w"]
    assert groups.frozen == {
        "boxes.conv.w": "NonMaxSuppression y stands in the way",
        "scores.conv.w": "NonMaxSuppression y stands in the way",
    }
    cut, _ = remove_channels(as_model(net, tmp_path), groups, first_units(groups))
    assert cut.graph.initializers["boxes.conv.w"].shape == (12, 8, 3, 3)


@pytest.mark.parametrize("opset", [11, 13, 18])
def test_the_sizes_of_a_split_follow_in_every_opset(tmp_path: Path, opset: int) -> None:
    net = Net(13)
    a = net.relu(net.conv("x", "a", 16))
    options = {"num_outputs": 2} if opset >= 18 else {}
    net.nodes.append(helper.make_node("Split", [a], ["l", "r"], name="split", axis=1, **options))
    net.channels |= {"l": 8, "r": 8}
    net.conv("l", "b", 8)
    net.add("Concat", ["r", "b"], "both", axis=1)
    net.channels["both"] = 16
    net.conv("both", "y", 4)
    model = as_model(net, tmp_path, opset=opset)
    groups = find_groups(model)
    kept = [np.arange(group.units - 1 - k) for k, group in enumerate(groups.groups)]
    cut, plan = remove_channels(model, groups, kept)
    assert_equivalent(model, cut, plan)
    assert total_cost(cut).macs < total_cost(model).macs


def test_a_recurrent_layer_reads_fewer_and_keeps_its_state(tmp_path: Path) -> None:
    net = Net(14)
    a = net.relu(net.conv("x", "a", 16))
    net.add("ReduceMean", [a], "rows", axes=[2], keepdims=0)
    net.add("Transpose", ["rows"], "steps", perm=[2, 0, 1])
    weights = [net.weights("w", 1, 20, 16), net.weights("r", 1, 20, 5)]
    net.nodes.append(helper.make_node("LSTM", ["steps", *weights], ["y"], hidden_size=5, name="y"))
    model = as_model(net, tmp_path)
    groups = find_groups(model)
    cut, plan = remove_channels(model, groups, first_units(groups))
    assert cut.graph.initializers["w"].shape == (1, 20, 8)
    assert_equivalent(model, cut, plan)


@pytest.mark.parametrize(("count", "units"), [(2, 8), (8, 8), (4, 4)])
def test_group_normalisation_loses_whole_groups_or_places_of_each(
    tmp_path: Path, count: int, units: int
) -> None:
    """As exporters write it: InstanceNormalization over the places of each group."""
    net = Net(15)
    net.conv("x", "a", 16)
    there = net.constant("there", np.array([0, count, -1], np.int64))
    back = net.constant("back", np.array([1, 16, 8, 8], np.int64))
    ones, zeros = (
        net.constant(name, np.full(count, value, np.float32))
        for name, value in (("s", 1), ("z", 0))
    )
    net.add("Reshape", ["a", there], "grouped")
    net.add("InstanceNormalization", ["grouped", ones, zeros], "level")
    net.add("Reshape", ["level", back], "n")
    net.channels["n"] = 16
    net.conv("n", "y", 4)
    model = as_model(net, tmp_path)
    groups = find_groups(model)
    (group,) = groups.groups
    assert (group.units, group.channels_per_unit) == (units, 16 // units)
    kept = np.array([0, 2])
    cut, plan = remove_channels(model, groups, [kept])
    x = np.random.default_rng(3).normal(size=(1, 3, 8, 8)).astype(np.float32)

    # By hand: the channels that stay, each group of them normalised by itself.
    def weight(name: str) -> Array:
        return np.array(constant_of(model.graph.initializers[name]))

    channels = plan.kept["a.w", 0]
    a = convolved(x, weight("a.w")[channels], weight("a.b")[channels])
    rows = a.reshape(1, count if count == 2 else 2, -1)
    level = (rows - rows.mean(2, keepdims=True)) / np.sqrt(rows.var(2, keepdims=True) + 1e-5)
    wide = level.reshape(1, len(channels), 8, 8)
    expected = convolved(wide, weight("y.w")[:, channels], weight("y.b"))
    found = run_reference(cut, {"x": x})[0]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def convolved(x: Array, weight: Array, bias: Array) -> Array:
    """A 3 x 3 convolution with a border of zeros, in plain numpy."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    found: Array = np.einsum("ncyxij,ocij->noyx", windows, weight) + bias[:, None, None]
    return found


def test_a_written_out_layer_normalisation_is_cut_with_its_statistics(tmp_path: Path) -> None:
    net = Net(16)
    net.conv("x", "a", 16)
    net.add("ReduceMean", ["a"], "mean", axes=[1])
    net.add("Sub", ["a", "mean"], "centred")
    net.add("Mul", ["centred", "centred"], "square")
    net.add("ReduceMean", ["square"], "var", axes=[1])
    net.add("Add", ["var", net.constant("eps", np.array(1e-5, np.float32))], "safe")
    net.add("Sqrt", ["safe"], "std")
    net.add("Div", ["centred", "std"], "level")
    net.channels["level"] = 16
    net.conv("level", "y", 4)
    model = as_model(net, tmp_path)
    groups = find_groups(model)
    assert [group.name for group in groups.groups] == ["a.w"]
    cut, _ = remove_channels(model, groups, first_units(groups))
    x = np.random.default_rng(3).normal(size=(1, 3, 8, 8)).astype(np.float32)

    def weight(name: str) -> Array:
        return np.array(constant_of(model.graph.initializers[name]))

    a = convolved(x, weight("a.w")[:8], weight("a.b")[:8])
    level = (a - a.mean(1, keepdims=True)) / np.sqrt(a.var(1, keepdims=True) + 1e-5)
    expected = convolved(level, weight("y.w")[:, :8], weight("y.b"))
    found = run_reference(cut, {"x": x})[0]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_mean_over_channels_for_anything_else_stands_in_the_way(tmp_path: Path) -> None:
    net = Net(17)
    net.conv("x", "a", 16)
    net.add("ReduceMean", ["a"], "attention", axes=[1])
    net.add("Mul", ["a", "attention"], "scaled")
    net.channels["scaled"] = 16
    net.conv("scaled", "y", 4)
    groups = find_groups(as_model(net, tmp_path))
    assert not groups.groups
    assert groups.frozen["a.w"] == "ReduceMean attention stands in the way"


def test_the_first_layer_of_a_grey_picture_is_no_depthwise_one(tmp_path: Path) -> None:
    net = Net(18)
    net.channels["x"] = 1
    a = net.relu(net.conv("x", "a", 16))
    net.conv(a, "y", 4)
    graph = helper.make_graph(
        net.nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 8, 8])], net.constants,
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, tmp_path / "net.onnx")
    groups = find_groups(load(tmp_path / "net.onnx"))
    assert [(group.name, group.units) for group in groups.groups] == [("a.w", 16)]


def test_a_width_that_becomes_a_number_to_compute_with_stays(tmp_path: Path) -> None:
    net = Net(19)
    a = net.conv("x", "a", 16)
    net.add("Shape", [a], "shape")
    one = net.constant("one", np.array(1, np.int64))
    net.add("Gather", ["shape", one], "width")
    net.add("Cast", ["width"], "real", to=TensorProto.FLOAT)
    net.add("Div", [a, "real"], "scaled")
    net.channels["scaled"] = 16
    net.conv("scaled", "y", 4)
    groups = find_groups(as_model(net, tmp_path))
    assert groups.frozen["a.w"] == "Cast real computes with its sizes"
