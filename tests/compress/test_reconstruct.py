"""Closed-form repair: least squares against the formula, and networks that it can make whole."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.compress.channels.groups import find_groups
from edgekit.compress.channels.plan import Plan
from edgekit.compress.channels.reconstruct import ReconstructOptions, reconstruct
from edgekit.compress.channels.remove import remove_channels
from edgekit.compress.statistics import estimate_statistics
from edgekit.data.batches import Batches
from edgekit.errors import InputError
from edgekit.models.model import (
    Model,
    after_step,
    constant_of,
    editable,
    parameters,
    set_parameter,
    to_bytes,
)
from edgekit.models.source import load
from edgekit.values import Array

torch = pytest.importorskip("torch", reason="needs the compress extra")
pytestmark = pytest.mark.torch

from edgekit.compress.channels.repair.least_squares import fit, no_rows  # noqa: E402
from edgekit.compress.channels.repair.products import find_products  # noqa: E402

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conftest import run_reference  # noqa: E402

EXACT = ReconstructOptions(ridges=(1e-9,), rectified=0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These networks are too small to be shared out between threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Net:
    """A small graph from its nodes and constants; the input is `x`, the output `y`."""

    def __init__(self, shape: list[Any], seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.shape = shape
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, Array] = {}

    def weight(self, name: str, *shape: int) -> str:
        fan_in = int(np.prod(shape[1:])) or 1
        return self.constant(name, self.rng.normal(0, fan_in**-0.5, shape).astype(np.float32))

    def constant(self, name: str, array: Array) -> str:
        self.constants[name] = array
        return name

    def node(self, op: str, sources: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, sources, [output], name=output, **attributes))
        return output

    def norm(self, source: str, channels: int) -> str:
        name = f"{source}.n"
        parts = [
            self.constant(f"{name}.{p}", self.rng.uniform(0.5, 1.5, channels).astype(np.float32))
            for p in ("scale", "bias", "mean", "var")
        ]
        return self.node("BatchNormalization", [source, *parts], name)

    def model(self, folder: Path, rank: int) -> Model:
        output = ["n", *(None for _ in range(rank - 1))]
        graph = helper.make_graph(
            self.nodes, "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, self.shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, output)],
            [numpy_helper.from_array(array, name) for name, array in self.constants.items()],
        )  # fmt: skip
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        onnx.save(onnx.shape_inference.infer_shapes(proto), folder / "net.onnx")
        return load(folder / "net.onnx")


def samples(model: Model, count: int, seed: int) -> Array:
    shape = [count, *(int(s) for s in model.inputs[0].shape[1:])]
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def batches_of(array: Array, name: str = "x") -> Batches:
    return Batches(arrays={name: array}, pixels={}, batch_size=16)


def without(model: Model, units: Mapping[str, list[int]]) -> tuple[Model, Plan]:
    """The Model without these units of the groups that these weights make."""
    groups = find_groups(model)
    named = {group.name: group for group in groups.groups}
    assert set(units) <= set(named), list(named)
    kept = [np.setdiff1d(np.arange(g.units), units.get(g.name, [])) for g in groups.groups]
    return remove_channels(model, groups, kept)


def error_of(model: Model, original: Model, x: Array, name: str = "x") -> float:
    found, expected = (run_reference(m, {name: x})[0] for m in (model, original))
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def with_parameter(model: Model, name: str, array: Array) -> Model:
    program = editable(model)
    set_parameter(program.graph, name, array)
    return after_step(model, program, "changed")


# Each node that multiplies by a constant: the shapes of its input and its weight, attributes.
CASES: dict[str, tuple[str, list[Any], tuple[int, ...], dict[str, Any]]] = {
    "conv": ("Conv", ["n", 4, 7, 9], (6, 4, 3, 3), {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    "dilated": ("Conv", ["n", 4, 9, 9], (6, 4, 3, 2), {"dilations": [2, 3]}),
    "same_upper": ("Conv", ["n", 4, 7, 8], (6, 4, 4, 3),
                   {"auto_pad": "SAME_UPPER", "strides": [2, 2]}),
    "same_lower": ("Conv", ["n", 4, 7, 8], (6, 4, 4, 3),
                   {"auto_pad": "SAME_LOWER", "strides": [3, 2]}),
    "grouped": ("Conv", ["n", 6, 5, 5], (9, 2, 3, 3), {"group": 3, "pads": [1, 1, 1, 1]}),
    "depthwise": ("Conv", ["n", 6, 5, 5], (12, 1, 3, 3), {"group": 6}),
    "one_axis": ("Conv", ["n", 4, 12], (5, 4, 3), {"strides": [2], "pads": [1, 1]}),
    "three_axes": ("Conv", ["n", 2, 4, 5, 6], (3, 2, 2, 3, 2), {"pads": [0, 1, 1, 0, 1, 1]}),
    "transposed": ("ConvTranspose", ["n", 4, 5, 6], (4, 3, 3, 2), {"strides": [2, 3]}),
    "transposed_padded": ("ConvTranspose", ["n", 4, 5, 6], (4, 3, 3, 4),
                          {"strides": [2, 2], "pads": [1, 1, 0, 2], "output_padding": [1, 1]}),
    "transposed_dilated": ("ConvTranspose", ["n", 4, 5, 6], (4, 3, 3, 3),
                           {"dilations": [2, 1], "pads": [1, 0, 1, 0]}),
    "transposed_depthwise": ("ConvTranspose", ["n", 4, 5, 6], (4, 1, 2, 2),
                             {"group": 4, "strides": [2, 2]}),
    "transposed_same": ("ConvTranspose", ["n", 4, 5, 6], (4, 3, 3, 3),
                        {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "gemm": ("Gemm", ["n", 7], (7, 5), {"alpha": 0.5}),
    "gemm_turned": ("Gemm", ["n", 7], (5, 7), {"transB": 1}),
    "matmul": ("MatMul", ["n", 3, 7], (7, 5), {}),
    "matmul_turned": ("MatMul", ["n", 3, 2, 7], (5, 7), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_rows_times_matrix_are_what_the_node_puts_out(case: str, tmp_path: Path) -> None:
    op, shape, weight_shape, attributes = CASES[case]
    net = Net(shape, 3)
    weight = net.weight("w", *weight_shape)
    if case == "matmul_turned":
        weight = net.node("Transpose", [weight], "w.t", perm=[1, 0])
    net.node(op, ["x", weight], "y", **attributes)
    model = net.model(tmp_path, len(shape))
    x = samples(model, 3, 4)
    y = run_reference(model, {"x": x})[0]
    (product,), left = find_products(model.graph)
    assert not left
    stored = constant_of(model.graph.initializers["w"])
    assert stored is not None
    matrix = product.matrix(stored)
    assert np.array_equal(product.stored(matrix, stored), stored)
    assert (matrix.shape[1], matrix.shape[0] * matrix.shape[2]) == (product.width, product.channels)
    source, output = torch.from_numpy(x), torch.from_numpy(y)
    for most in (10**6, 2):
        places = product.places(output, most, torch.Generator().manual_seed(0))
        rows = product.rows(source, output, places)
        expected = product.columns(output, places)
        assert rows.shape[:2] == expected.shape[:2]
        assert (rows.double() @ matrix - expected).abs().max() < 1e-4 * np.abs(y).max()
    assert len(places) == 2


def ridge_by_hand(
    x: Array, y: Array, present: Array, share: float, *, movable: bool
) -> tuple[Array, Array]:
    """W and b by numpy's least squares on the rows, under them sqrt(lambda) (W - W0) = 0."""
    mean_x, mean_y = (a.mean(0) if movable else np.zeros(a.shape[1]) for a in (x, y))
    centred = x - mean_x
    pull = np.sqrt(share * np.square(centred).sum(0).mean()) * np.eye(x.shape[1])
    rows = np.concatenate([centred, pull])
    aims = np.concatenate([y - mean_y, pull @ present])
    weight = np.linalg.lstsq(rows, aims, rcond=None)[0]
    return weight, mean_y - mean_x @ weight


@pytest.mark.parametrize("movable", [True, False])
@pytest.mark.parametrize(("count", "few"), [(60, False), (60, True), (8, True), (8, False)])
def test_the_fit_is_the_ridge_regression_of_its_rows(count: int, few: bool, movable: bool) -> None:
    rng = np.random.default_rng(count)
    x = rng.normal(0.7, 1, (2, count, 12)).astype(np.float32)
    y, present = rng.normal(0.2, 1, (2, count, 5)).astype(np.float32), rng.normal(size=(2, 12, 5))
    halves = no_rows(2, 12, 5, few=few), no_rows(2, 12, 5, few=few)
    for half, part in zip(halves, (slice(0, 5), slice(5, None)), strict=True):
        half.add(torch.from_numpy(x[:, part]), torch.from_numpy(y[:, part] + 9))
        half.forget_targets()
        half.add_targets(torch.from_numpy(x[:, part]), torch.from_numpy(y[:, part]))
    found = fit(halves, torch.from_numpy(present), movable=movable, shares=[0.03])
    before = after = 0.0
    for group in range(2):
        weight, b = ridge_by_hand(x[group], y[group], present[group], 0.03, movable=movable)
        assert np.abs(found.weight[group].numpy() - weight).max() < 1e-4
        assert np.abs(found.intercept[group].numpy() - b).max() < 1e-4
        before += np.square(x[group] @ present[group] - y[group]).sum()
        after += np.square(x[group] @ weight + b - y[group]).sum()
    variance = np.square(y - y.mean(1, keepdims=True)).sum()
    assert found.before == pytest.approx(before / variance, rel=1e-4)
    assert found.after == pytest.approx(after / variance, rel=1e-3)


def test_the_pull_is_the_one_that_predicts_the_other_half_best() -> None:
    rng = np.random.default_rng(0)
    present = rng.normal(size=(1, 20, 3))
    x = rng.normal(size=(2, 1, 22, 20))
    for noise, expected in ((0.0, 1e-6), (20.0, 1e3)):  # nothing but W0 is known where all is noise
        y = x @ (present + 0.5) + noise * rng.normal(size=(2, 1, 22, 3))
        for few in (True, False):
            halves = no_rows(1, 20, 3, few=few), no_rows(1, 20, 3, few=few)
            for half, rows, aims in zip(halves, x, y, strict=True):
                half.add(torch.from_numpy(rows).float(), torch.from_numpy(aims).float())
            found = fit(halves, torch.from_numpy(present), movable=True, shares=[1e-6, 1e3])
            assert found.ridge == expected


def duplicated(kind: str, folder: Path) -> tuple[Model, dict[str, list[int]]]:
    """A network in which each channel of a layer is there twice, and the second ones to cut."""
    net = Net(["n", 4, 6, 6], 5)
    twice = net.rng.normal(0, 0.4, (4, 4, 3, 3)).astype(np.float32)
    net.constant("a.w", np.concatenate([twice, twice]))
    source = net.node("Relu", [net.node("Conv", ["x", "a.w"], "a", pads=[1] * 4)], "a.r")
    rank = 4
    if kind == "conv":
        net.node("Conv", [source, net.weight("b.w", 5, 8, 3, 3), net.weight("b.b", 5)], "y")
    elif kind == "transposed":
        net.node("ConvTranspose", [source, net.weight("b.w", 8, 5, 3, 3)], "y", strides=[2, 2])
    elif kind in ("gemm", "turned"):
        pooled = net.node("Flatten", [net.node("GlobalAveragePool", [source], "p")], "f")
        rank = 2
        if kind == "gemm":
            parts = [pooled, net.weight("b.w", 5, 8), net.weight("b.b", 5)]
            net.node("Gemm", parts, "y", transB=1, alpha=2.0, beta=0.5)
        else:
            turned = net.node("Transpose", [net.weight("b.w", 5, 8)], "b.t", perm=[1, 0])
            net.node("MatMul", [pooled, turned], "y")
    elif kind == "normalised":
        both = net.norm(net.node("Conv", [source, net.weight("b.w", 5, 8, 1, 1)], "b"), 5)
        net.node("Relu", [both], "y")
    else:  # shared: one weight reads the channels, then what it made of them
        net.weight("b.w", 8, 8, 1, 1)
        again = net.node("Relu", [net.node("Conv", [source, "b.w"], "b")], "b.r")
        net.constants["b.w"][4:] = net.constants["b.w"][:4]
        net.node(
            "Conv", [net.node("Conv", [again, "b.w"], "c"), net.weight("d.w", 3, 8, 1, 1)], "y"
        )
    return net.model(folder, rank), {"a.w": [4, 5, 6, 7]}


KINDS = ["conv", "transposed", "gemm", "turned", "normalised", "shared"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_another_channel_says_too_is_restored_exactly(kind: str, tmp_path: Path) -> None:
    model, units = duplicated(kind, tmp_path)
    cut, plan = without(model, units)
    seen, unseen = samples(model, 48, 1), samples(model, 8, 2)
    repaired, report = reconstruct(cut, model, plan, batches_of(seen), options=EXACT)
    assert error_of(cut, model, unseen) > 0.05
    assert error_of(repaired, model, unseen) < 1e-4
    assert report.layers[0].weight == "b.w"
    assert report.layers[0].before > 0.01
    assert report.layers[0].after < 1e-6
    assert not report.left


def constant_channel(behind: str, folder: Path) -> Model:
    """A network with a channel that is 3 everywhere, read by a layer without or with a bias."""
    net = Net(["n", 3, 5, 5], 6)
    net.weight("a.w", 4, 3, 3, 3)
    net.constants["a.w"][2] = 0
    net.constant("a.b", np.array([0.1, -0.2, 3, 0.3], np.float32))
    source = net.node("Relu", [net.node("Conv", ["x", "a.w", "a.b"], "a")], "a.r")
    if behind == "bias":
        net.node("Conv", [source, net.weight("b.w", 5, 4, 1, 1), net.weight("b.b", 5)], "y")
    elif behind == "norm":
        made = net.node("Conv", [source, net.weight("b.w", 5, 4, 1, 1)], "b")
        net.node("Relu", [net.norm(made, 5)], "y")
    else:
        shifted = [net.node("Conv", [source, net.weight("b.w", 5, 4, 1, 1)], "b")]
        net.node("Add", [*shifted, net.weight("b.s", 1, 5, 1, 1)], "y")
    return net.model(folder, 4)


@pytest.mark.parametrize(
    ("behind", "changed"), [("bias", "b.b"), ("norm", "b.n.mean"), ("added", "b.s")]
)
def test_what_a_removed_channel_always_added_goes_into_the_constant_behind(
    behind: str, changed: str, tmp_path: Path
) -> None:
    model = constant_channel(behind, tmp_path)
    cut, plan = without(model, {"a.w": [2]})
    options = ReconstructOptions(ridges=(1e-3,))
    repaired, _ = reconstruct(cut, model, plan, batches_of(samples(model, 32, 1)), options=options)
    unseen = samples(model, 8, 2)
    assert error_of(cut, model, unseen) > 0.1
    assert error_of(repaired, model, unseen) < 1e-4
    moved = {
        n
        for n, a in parameters(repaired)
        if not np.allclose(a, dict(parameters(cut))[n], atol=1e-4)
    }
    assert moved == {changed}


def residual_net(folder: Path) -> Model:
    """A stem, two residual blocks with BatchNormalization, pooling and a Gemm."""
    net = Net(["n", 3, 8, 8], 8)
    stem = net.node("Conv", ["x", net.weight("s.w", 8, 3, 3, 3)], "s")
    stream = net.node("Relu", [net.norm(stem, 8)], "s.r")
    for name in ("a", "b"):
        first = net.node("Conv", [stream, net.weight(f"{name}.w", 12, 8, 3, 3)], name, pads=[1] * 4)
        inner = net.node("Relu", [net.norm(first, 12)], f"{name}.r")
        weight = net.weight(f"{name}.v", 8, 12, 3, 3)
        last = net.node("Conv", [inner, weight], f"{name}.c", pads=[1] * 4)
        total = net.node("Add", [net.norm(last, 8), stream], f"{name}.sum")
        stream = net.node("Relu", [total], f"{name}.out")
    flat = net.node("Flatten", [net.node("GlobalAveragePool", [stream], "p")], "f")
    net.node("Gemm", [flat, net.weight("fc.w", 5, 8), net.weight("fc.b", 5)], "y", transB=1)
    return net.model(folder, 2)


HALF = {"a.w": [0, 2, 4, 6, 8, 10], "b.w": [1, 3, 5, 7, 9, 11]}


def squared_error(model: Model, original: Model, x: Array) -> float:
    found, expected = (run_reference(m, {"x": x})[0] for m in (model, original))
    return float(np.square(found - expected).mean() / expected.var())


def test_unseen_samples_come_nearer_to_the_original(tmp_path: Path) -> None:
    model = residual_net(tmp_path)
    cut, plan = without(model, HALF)
    repaired, report = reconstruct(cut, model, plan, batches_of(samples(model, 400, 1)))
    unseen = samples(model, 200, 2)
    assert squared_error(repaired, model, unseen) < 0.25 * squared_error(cut, model, unseen)
    assert [layer.weight for layer in report.layers] == ["a.v", "b.w", "b.v", "fc.w"]
    assert all(layer.after < layer.before for layer in report.layers)
    assert "4 layers fitted on 400 samples" in str(report)


def test_a_branch_makes_up_for_the_drift_of_the_one_that_it_is_added_to(tmp_path: Path) -> None:
    """b.v's aim is by hand: the original's sum less the drifted stream, through b's norm."""
    model = residual_net(tmp_path)
    cut, plan = without(model, HALF)
    seen = samples(model, 60, 1)
    options = ReconstructOptions(ridges=(1e-6,), rectified=0, rows=10**6)
    repaired, _ = reconstruct(cut, model, plan, batches_of(seen), options=options)

    def inner(one: Model, *names: str) -> list[Array]:
        program = editable(one)
        values = {v.name: v for node in program.graph for v in node.outputs}
        program.graph.outputs.extend(values[name] for name in names)
        found: list[Array] = run_reference(after_step(one, program, "tap"), {"x": seen})
        return found[1:]

    (total,) = inner(model, "b.sum")
    hidden, stream = inner(repaired, "b.r", "a.out")
    scale, bias, var = (
        dict(parameters(model))[f"b.c.n.{part}"].reshape(1, -1, 1, 1)
        for part in ("scale", "bias", "var")
    )
    mean = dict(parameters(cut))["b.c.n.mean"].reshape(1, -1, 1, 1)
    aim = (total - stream - bias) * np.sqrt(var + 1e-5) / scale + mean
    padded = np.pad(hidden, ((0, 0), (0, 0), (1, 1), (1, 1)))
    window = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))  # n c h w 3 3
    rows = window.transpose(0, 2, 3, 1, 4, 5).reshape(60 * 36, -1).astype(np.float64)
    rows = np.concatenate([rows, np.ones((len(rows), 1))], 1)
    expected = np.linalg.lstsq(rows, aim.transpose(0, 2, 3, 1).reshape(-1, 8), rcond=None)[0]
    found = dict(parameters(repaired))["b.v"].reshape(8, -1).T
    assert np.abs(found - expected[:-1]).max() < 1e-3 * np.abs(expected).max()
    shift = dict(parameters(cut))["b.c.n.mean"] - dict(parameters(repaired))["b.c.n.mean"]
    assert np.abs(shift - expected[-1]).max() < 1e-3 * np.abs(expected).max()


def test_fits_for_the_relu_come_nearer_to_what_it_lets_through(tmp_path: Path) -> None:
    net = Net(["n", 3, 6, 6], 11)
    source = net.node("Relu", [net.node("Conv", ["x", net.weight("a.w", 12, 3, 3, 3)], "a")], "a.r")
    made = net.node("Conv", [source, net.weight("b.w", 6, 12, 1, 1), net.weight("b.b", 6)], "b")
    net.node("Relu", [made], "y")
    model = net.model(tmp_path, 4)
    cut, plan = without(model, {"a.w": [0, 3, 5, 8, 9, 11]})
    seen = samples(model, 200, 1)
    errors = []
    for turns in (0, 1, 6):
        options = ReconstructOptions(rectified=turns, rows=10**6, ridges=(1e-6,))
        repaired, _ = reconstruct(cut, model, plan, batches_of(seen), options=options)
        errors.append(squared_error(repaired, model, seen))
    assert max(errors[1:]) < 0.99 * errors[0]


def test_without_drifted_only_layers_that_lost_inputs_change(tmp_path: Path) -> None:
    model = residual_net(tmp_path)
    cut, plan = without(model, HALF)
    seen = batches_of(samples(model, 64, 1))
    repaired, report = reconstruct(
        cut, model, plan, seen, options=ReconstructOptions(drifted=False)
    )
    assert [layer.weight for layer in report.layers] == ["a.v", "b.v"]
    changed = {
        n for n, a in parameters(repaired) if not np.array_equal(a, dict(parameters(cut))[n])
    }
    assert changed == {"a.v", "b.v", "a.c.n.mean", "b.c.n.mean"}


def test_names_shapes_and_types_are_kept_and_nothing_is_written_into(tmp_path: Path) -> None:
    model = residual_net(tmp_path)
    cut, plan = without(model, HALF)
    before = to_bytes(cut), to_bytes(model)
    seen = batches_of(samples(model, 64, 1))
    repaired, _ = reconstruct(cut, model, plan, seen)
    assert (to_bytes(cut), to_bytes(model)) == before
    assert repaired.history == (*cut.history, "reconstruct")
    assert {n: (a.shape, a.dtype) for n, a in parameters(repaired)} == {
        n: (a.shape, a.dtype) for n, a in parameters(cut)
    }
    labelled = Batches(arrays=seen.arrays, labels=np.full(64, 10**9), pixels={}, batch_size=16)
    assert to_bytes(reconstruct(cut, model, plan, labelled)[0]) == to_bytes(repaired)


def test_without_memory_for_activations_the_result_is_the_same(tmp_path: Path) -> None:
    model = residual_net(tmp_path)
    cut, plan = without(model, HALF)
    seen = batches_of(samples(model, 100, 1))
    much, none = (
        dict(parameters(reconstruct(cut, model, plan, seen, options=options)[0]))
        for options in (ReconstructOptions(), ReconstructOptions(memory_bytes=0))
    )
    assert all(np.allclose(much[name], none[name], rtol=1e-4, atol=1e-5) for name in much)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_a_few_samples_do_no_harm(count: int, tmp_path: Path) -> None:
    """A single sample has fewer rows than fc.w has inputs."""
    model = residual_net(tmp_path)
    cut, plan = without(model, HALF)
    repaired, report = reconstruct(cut, model, plan, batches_of(samples(model, count, 1)))
    unseen = samples(model, 200, 2)
    assert report.samples == count
    assert report.layers[-1].rows == count
    assert squared_error(repaired, model, unseen) < squared_error(cut, model, unseen)


def test_a_model_that_takes_a_fixed_number_of_samples_gets_as_many(tmp_path: Path) -> None:
    net = Net([4, 3, 6, 6], 12)
    source = net.node("Relu", [net.node("Conv", ["x", net.weight("a.w", 8, 3, 3, 3)], "a")], "a.r")
    shape = net.constant("shape", np.array([4, 128], np.int64))
    flat = net.node("Reshape", [source, shape], "f")
    net.node("Gemm", [flat, net.weight("fc.w", 128, 5), net.weight("fc.b", 5)], "y")
    model = net.model(tmp_path, 2)
    cut, plan = without(model, {"a.w": [1, 2]})
    repaired, report = reconstruct(cut, model, plan, batches_of(samples(model, 203, 1)))
    assert report.samples == 200
    unseen = samples(model, 4, 2)
    assert squared_error(repaired, model, unseen) < squared_error(cut, model, unseen)
    with pytest.raises(InputError, match="fewer samples than the model takes"):
        reconstruct(cut, model, plan, batches_of(samples(model, 3, 1)))


def test_a_channel_that_the_norm_takes_away_is_left_as_it_is(tmp_path: Path) -> None:
    model = residual_net(tmp_path)
    gains = np.array(dict(parameters(model))["b.n.scale"])
    gains[3] = 0
    model = with_parameter(model, "b.n.scale", gains)
    cut, plan = without(model, {"a.w": [0, 2, 4, 6, 8, 10]})
    repaired, _ = reconstruct(cut, model, plan, batches_of(samples(model, 64, 1)))
    before, after = (dict(parameters(m))["b.w"] for m in (cut, repaired))
    assert np.allclose(before[3], after[3], atol=1e-5)
    assert not np.allclose(before[2], after[2], atol=1e-3)


def test_nothing_to_repair_is_an_empty_report(tmp_path: Path) -> None:
    model = residual_net(tmp_path)
    cut, plan = without(model, {})
    repaired, report = reconstruct(cut, model, plan, batches_of(samples(model, 8, 1)))
    assert report.layers == ()
    assert dict(report.left) == {}
    assert all(a is b or np.array_equal(a, b) for (_, a), (_, b) in
               zip(parameters(cut), parameters(repaired), strict=True))  # fmt: skip


def test_bad_input_is_one_clear_error(tmp_path: Path) -> None:
    model = residual_net(tmp_path)
    cut, plan = without(model, HALF)
    seen = samples(model, 16, 1)
    broken = seen.copy()
    broken[3, 0, 0, 0] = np.nan
    weight = np.array(dict(parameters(cut))["b.v"])
    weight[0, 0, 0, 0] = np.inf
    (tmp_path / "other").mkdir()
    other = duplicated("conv", tmp_path / "other")[0]
    for one, full, batches, said in (
        (cut, model, batches_of(broken), "becomes NaN or infinite on these samples"),
        (cut, model, batches_of(seen, "image"), 'do not fit the input "x"'),
        (cut, model, batches_of(seen[:, :2]), 'do not fit the input "x"'),
        (cut, model, batches_of(seen.astype(np.float64)), 'do not fit the input "x"'),
        (cut, model, batches_of(seen[:0]), "there are none"),
        (with_parameter(cut, "b.v", weight), model, batches_of(seen), '"b.v" holds NaN'),
        (cut, other, batches_of(seen), "inputs and outputs"),
    ):
        with pytest.raises(InputError, match=said):
            reconstruct(one, full, plan, batches)


def test_statistics_are_those_of_what_the_norm_reads(tmp_path: Path) -> None:
    net = Net(["n", 3, 5, 5], 13)
    net.norm(net.node("Conv", ["x", net.weight("a.w", 4, 3, 3, 3)], "a"), 4)
    net.node("Relu", ["a.n"], "y")
    model = net.model(tmp_path, 4)
    x = samples(model, 200, 1)
    found, count = estimate_statistics(model, batches_of(x))
    assert count == 2
    window = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (2, 3))
    a = np.einsum("nchwij,ocij->nohw", window, dict(parameters(model))["a.w"], dtype=np.float64)
    after = dict(parameters(found))
    assert np.allclose(after["a.n.mean"], a.mean((0, 2, 3)), atol=1e-5)
    # The mean of two halves' variances is less than the whole's by that of their means.
    assert np.allclose(after["a.n.var"], a.var((0, 2, 3)), rtol=1e-2)
    assert np.array_equal(after["a.w"], dict(parameters(model))["a.w"])
    x[0] = np.inf
    with pytest.raises(InputError, match="statistic"):
        estimate_statistics(model, batches_of(x))


def test_a_model_without_norms_has_no_statistics(tmp_path: Path) -> None:
    model, _ = duplicated("conv", tmp_path)
    assert estimate_statistics(model, batches_of(samples(model, 4, 1))) == (model, 0)


@pytest.mark.shared_data
def test_a_trained_resnet_cut_to_half_is_repaired(shared_data: Path) -> None:
    """On samples that the repair has not seen, agreement with the original more than doubles."""
    model = load(shared_data / "models" / "resnet20-cifar10.onnx")
    sys.path.insert(0, str(shared_data))
    import load as reader  # type: ignore[import-not-found]

    pixels = reader.cifar10("test")[0][:800].transpose(0, 3, 1, 2).astype(np.float32) / 255
    mean, std = (np.array(v, np.float32).reshape(1, 3, 1, 1)
                 for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))  # fmt: skip
    x = np.ascontiguousarray((pixels - mean) / std)
    groups = find_groups(model).groups
    half = {g.name: list(range(0, g.units, 2)) for g in groups if ".conv1." in g.name}
    cut, plan = without(model, half)
    options = ReconstructOptions(rectified=0, rows=20)
    repaired, _ = reconstruct(cut, model, plan, batches_of(x[:400], "input"), options=options)
    answers = [run_reference(m, {"input": x[400:]})[0].argmax(1) for m in (model, cut, repaired)]
    agree = [float((answers[0] == one).mean()) for one in answers[1:]]
    assert agree[0] < 0.35
    assert agree[1] > 0.7
