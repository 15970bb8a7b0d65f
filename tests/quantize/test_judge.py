"""What is lost where: parts of outputs, each node alone, all of them together, what is clipped."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent))
from test_place import TENSORRT, U8U8, observed

from edgekit.engines.onnxruntime import OnnxRuntimeSession, open_model
from edgekit.errors import InputError
from edgekit.models.model import Model, after_step, editable
from edgekit.models.simplify import fold_batchnorm
from edgekit.models.source import load
from edgekit.quantize.dialects import Dialect
from edgekit.quantize.grids import Grid
from edgekit.quantize.judging.alone import alone
from edgekit.quantize.judging.layers import clipped_share, damage_alone, judge_layers
from edgekit.quantize.judging.outputs import judge, judge_models, part_error_from_json
from edgekit.quantize.judging.parts import Part, output_parts
from edgekit.quantize.judging.pieces import in_pieces
from edgekit.quantize.place import place
from edgekit.quantize.prepare import prepared
from edgekit.quantize.ranges import Ranges, minmax
from edgekit.quantize.ranging.histogram import TensorRange
from edgekit.quantize.scheme import Scheme, make_scheme
from edgekit.quantize.write import write_qdq
from edgekit.values import Array, Batch, Unknown

Reference = Callable[..., list[Array]]


def emulated(model: Model) -> OnnxRuntimeSession:
    return open_model(model, threads=1, optimise=False)


def graph_of(
    path: Path, nodes: list[onnx.NodeProto], shapes: dict[str, list[int | str]],
    outputs: dict[str, list[int | str]], constants: dict[str, Array],
) -> Model:  # fmt: skip
    def info(items: dict[str, list[int | str]]) -> list[onnx.ValueInfoProto]:
        return [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in items.items()]

    graph = helper.make_graph(
        nodes, "graph", info(shapes), info(outputs),
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    return load(path)


def detector(path: Path) -> Model:
    """Two scales; of each four rows of boxes and three of scores; in pixels, the batch last but 2.

    output (n, anchors, 7) = Transpose(Concat(boxes * 8, Sigmoid(scores)))
    """
    nodes = []
    for i, size in enumerate((4, 2)):
        nodes += [
            helper.make_node("Concat", [f"box{i}", f"score{i}"], [f"both{i}"], axis=1),
            helper.make_node("Reshape", [f"both{i}", f"flat{i}"], [f"rows{i}"]),
        ]
        del size
    nodes += [
        helper.make_node("Concat", ["rows0", "rows1"], ["joined"], axis=-1),
        helper.make_node("Mul", ["joined", "eight"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["output"], perm=[0, 2, 1]),
    ]
    return graph_of(
        path, nodes,
        {f"{what}{i}": ["n", rows, size, size] for what, rows in (("box", 4), ("score", 3))
         for i, size in enumerate((4, 2))},
        {"output": ["n", 20, 7]},
        {"flat0": np.array([0, 7, 16]), "flat1": np.array([0, 7, 4]),
         "eight": np.array(8, np.float32)},
    )  # fmt: skip


def test_a_detectors_output_falls_into_boxes_and_scores_of_each_scale(
    tmp_path: Path, reference: Reference
) -> None:
    model = detector(tmp_path / "detector.onnx")
    rng = np.random.default_rng(0)
    feeds = {
        spec.name: rng.normal(size=(2, *map(int, spec.shape[1:]))).astype(np.float32)
        for spec in model.inputs
    }
    (output,) = reference(model, feeds)
    parts = output_parts(model)
    assert [part.name for part in parts] == ["box0", "score0", "box1", "score1"]
    for part in parts:
        source = feeds[part.name]
        wanted = 8 * source.reshape(2, source.shape[1], -1).transpose(0, 2, 1)
        np.testing.assert_array_equal(part.of(output), wanted)


def test_an_output_that_is_no_concatenation_is_one_part(residual: Model) -> None:
    assert output_parts(residual) == (Part(output="logits", name="logits"),)


def test_a_reshape_that_mixes_the_concatenated_axis_keeps_the_output_whole(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["both"], axis=1),
        helper.make_node("Reshape", ["both", "shape"], ["output"]),
    ]
    model = graph_of(
        tmp_path / "mixed.onnx", nodes, {"a": ["n", 2, 3], "b": ["n", 4, 3]},
        {"output": ["n", 18]}, {"shape": np.array([0, 18])},
    )  # fmt: skip
    assert [part.ranges for part in output_parts(model)] == [()]


def test_errors_are_those_of_hand_arithmetic() -> None:
    part = Part(output="y", name="y")
    x, y = [np.array([[3.0, 4.0]]), np.array([[0.0, 12.0]])], [
        np.array([[3.0, 5.0]]), np.array([[0.0, 10.0]]),
    ]  # fmt: skip
    (found,) = judge([{"y": one} for one in x], [{"y": one} for one in y], [part])
    assert found.samples == 2
    # sum x^2 = 9 + 16 + 144, sum (x - y)^2 = 1 + 4, sum xy = 9 + 20 + 120, sum y^2 = 9 + 25 + 100
    assert found.sqnr_db == pytest.approx(10 * math.log10(169 / 5))
    assert found.cosine == pytest.approx(149 / math.sqrt(169 * 134))
    assert found.largest == 2.0
    assert found.relative == pytest.approx(2 / 12)
    assert part_error_from_json(found.to_json()) == found


def test_dead_scores_show_beside_boxes_that_are_fine() -> None:
    boxes, scores = np.linspace(0, 1024, 80).reshape(2, 20, 2), np.full((2, 20, 1), 0.4)
    expected = np.concatenate([boxes, scores], 2)
    found = np.round(expected / 8) * 8  # one scale for both: every score becomes 0
    whole = Part(output="y", name="y")
    parts = [
        Part(output="y", name="boxes", ranges=((2, 0, 2),)),
        Part(output="y", name="scores", ranges=((2, 2, 3),)),
    ]
    one, box, score = judge([{"y": expected}], [{"y": found}], [whole, *parts])
    assert not isinstance(one.sqnr_db, Unknown)
    assert one.sqnr_db > 40
    assert box.sqnr_db == pytest.approx(one.sqnr_db, abs=0.1)
    assert score.sqnr_db == pytest.approx(0)
    assert isinstance(score.cosine, Unknown)


def test_identical_outputs_have_no_sqnr() -> None:
    same = {"y": np.ones((1, 3))}
    (found,) = judge([same], [same], [Part(output="y", name="y")])
    assert isinstance(found.sqnr_db, Unknown)
    assert found.cosine == pytest.approx(1)


@pytest.mark.parametrize(
    ("expected", "found", "said"),
    [
        ([np.ones((1, 2))], [np.ones((1, 3))], "same shape"),
        ([np.ones((1, 2))], [np.full((1, 2), np.nan)], "NaN"),
        ([np.ones((1, 2))], [], "fewer"),
        ([np.ones((1, 2))], [np.ones((1, 2))] * 2, "more"),
        ([], [], "no sample"),
    ],
)
def test_streams_that_cannot_be_judged_are_refused(
    expected: list[Array], found: list[Array], said: str
) -> None:
    part = Part(output="y", name="y")
    with pytest.raises(InputError, match=said):
        judge([{"y": one} for one in expected], [{"y": one} for one in found], [part])


@pytest.fixture(params=[TENSORRT, U8U8], ids=["tensorrt", "u8u8"])
def dialect(request: pytest.FixtureRequest) -> Dialect:
    found: Dialect = request.param
    return found


@pytest.fixture
def case(residual: Model, images: Array, dialect: Dialect) -> tuple[Model, Scheme, Ranges]:
    model = prepared(fold_batchnorm(residual)[0])
    ranges = observed(model, images)
    return model, make_scheme(model, place(model, dialect), ranges, minmax), ranges


def batches_of(images: Array, size: int = 8) -> list[Batch]:
    return [Batch(inputs={"image": images[i : i + size]}) for i in range(0, len(images), size)]


def tapped(model: Model, name: str) -> Model:
    program = editable(model)
    (value,) = (v for node in program.graph for v in node.outputs if v.name == name)
    program.graph.outputs[:] = [value]
    return after_step(model, program, "tap")


def test_each_node_alone_is_as_the_network_with_all_others_in_float(
    case: tuple[Model, Scheme, Ranges], images: Array, reference: Reference
) -> None:
    model, scheme, ranges = case
    found = {e.node: e for e in judge_layers(model, scheme, ranges, batches_of(images), emulated)}
    made = {node.name: node for node in model.graph}
    seen = 0
    for name in scheme.placement.integer:
        if scheme.placement.integer[name] not in ("Conv", "Gemm"):
            continue
        by_itself, _ = write_qdq(model, alone(model, scheme, name))
        site = made[name].outputs[0].name or ""
        behind = [use.node for use in made[name].outputs[0].uses()]
        if scheme.dialect.fused_activations and [b.op_type for b in behind] == ["Relu"]:
            site = behind[0].outputs[0].name or ""
        values = {v.name for node in by_itself.graph for v in node.outputs}
        at = f"{site}.dq" if f"{site}.dq" in values else site
        (other,) = reference(tapped(by_itself, at), {"image": images})
        (exact,) = reference(tapped(model, site), {"image": images})
        wanted = 10 * np.log10(np.square(exact).sum() / np.square(exact - other).sum())
        assert found[name].alone_db == pytest.approx(wanted, abs=0.05)
        seen += 1
    assert seen == 6


def test_what_has_come_together_at_the_last_node_is_the_outputs_error(
    case: tuple[Model, Scheme, Ranges], images: Array, reference: Reference
) -> None:
    model, scheme, ranges = case
    found = {e.node: e for e in judge_layers(model, scheme, ranges, batches_of(images), emulated)}
    quantized, _ = write_qdq(model, scheme)
    (exact,), (other,) = (reference(m, {"image": images}) for m in (model, quantized))
    wanted = 10 * np.log10(np.square(exact).sum() / np.square(exact - other).sum())
    assert found["logits"].accumulated_db == pytest.approx(wanted, abs=0.05)
    (whole,) = judge_models(model, quantized, batches_of(images), emulated, emulated)
    assert whole.sqnr_db == pytest.approx(wanted, abs=0.05)
    assert whole.samples == len(images)


def test_every_node_is_in_the_layers_with_figures_or_a_reason(
    case: tuple[Model, Scheme, Ranges], images: Array
) -> None:
    model, scheme, ranges = case
    found = judge_layers(
        model, scheme, ranges, batches_of(images), emulated, damage={"stem": 0.001}
    )
    assert [layer.node for layer in found] == [node.name for node in model.graph]
    for layer in found:
        on_integers = layer.node in scheme.placement.integer
        assert bool(layer.reason) != on_integers
        assert isinstance(layer.alone_db, Unknown) != on_integers
    (stem,) = (layer for layer in found if layer.node == "stem")
    assert stem.output_db == pytest.approx(30)
    assert {tensor.role for tensor in stem.tensors} >= {"input", "weight"}
    assert stem.clipped == pytest.approx(0, abs=2e-3)  # min-max clips half a step at most


def test_a_node_with_several_outputs_is_judged_by_all_of_them(
    tmp_path: Path, reference: Reference
) -> None:
    rng = np.random.default_rng(0)
    constants = {
        "a": rng.normal(0, 0.3, (6, 3, 1, 1)).astype(np.float32), "sizes": np.array([2, 4]),
        "b": rng.normal(0, 0.3, (2, 2, 1, 1)).astype(np.float32),
        "c": rng.normal(0, 0.3, (2, 4, 1, 1)).astype(np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["image", "a"], ["x"], name="stem"),
        helper.make_node("Split", ["x", "sizes"], ["left", "right"], name="split", axis=1),
        helper.make_node("Conv", ["left", "b"], ["p"], name="first"),
        helper.make_node("Conv", ["right", "c"], ["q"], name="second"),
        helper.make_node("Add", ["p", "q"], ["out"], name="sum"),
    ]
    model = prepared(
        graph_of(tmp_path / "split.onnx", nodes, {"image": ["n", 3, 4, 4]},
                 {"out": ["n", 2, 4, 4]}, constants)
    )  # fmt: skip
    images = rng.normal(size=(8, 3, 4, 4)).astype(np.float32)
    ranges = observed(model, images)
    scheme = make_scheme(model, place(model, U8U8), ranges, minmax)
    assert "split" in scheme.placement.integer
    found = {e.node: e for e in judge_layers(model, scheme, ranges, batches_of(images), emulated)}
    (x,) = reference(tapped(model, "x"), {"image": images})
    # Its inputs and outputs have one grid: what is lost is what the grid loses of x.
    lost = scheme.activations["x"].round_trip(x) - x
    wanted = 10 * np.log10(np.square(x).sum() / np.square(lost).sum())
    assert found["split"].alone_db == pytest.approx(wanted, abs=0.01)


def test_large_batches_are_cut_to_what_the_memory_takes(residual: Model, images: Array) -> None:
    # stem.relu holds 16 * 8 * 8 float32 of a sample: 4,096 bytes.
    batches = batches_of(images, 20)
    found = list(in_pieces(residual, ["stem.relu"], batches, most_bytes=3 * 4096))
    assert [len(batch) for batch in found] == [3, 3, 3, 3, 3, 3, 2, 3, 3, 3, 3]
    joined = np.concatenate([batch.inputs["image"] for batch in found])
    np.testing.assert_array_equal(joined, images)
    assert list(in_pieces(residual, ["stem.relu"], batches)) == batches
    (first, *_) = in_pieces(residual, ["stem.relu"], batches, most_bytes=1)
    assert len(first) == 1


def test_no_sample_for_the_layers_is_refused(case: tuple[Model, Scheme, Ranges]) -> None:
    with pytest.raises(InputError, match="no sample"):
        judge_layers(*case, [], emulated)


def test_the_damage_of_one_node_is_that_of_a_run_of_the_written_network(
    case: tuple[Model, Scheme, Ranges], images: Array, reference: Reference
) -> None:
    model, scheme, _ = case
    found = damage_alone(model, scheme, ["first"], batches_of(images), emulated)
    by_itself, _ = write_qdq(model, alone(model, scheme, "first"))
    (exact,), (other,) = (reference(m, {"image": images}) for m in (model, by_itself))
    wanted = float(np.square(exact - other).sum() / np.square(exact).sum())
    assert found == {"first": pytest.approx(wanted, rel=0.01)}


def test_the_clipped_share_is_counted_by_hand() -> None:
    spread = TensorRange(low=-4.0, high=4.0, reach=4.0, counts=np.ones(8, np.int64))
    grid = Grid(scale=np.float32(2 / 127), zero_point=np.int8(0))  # -128 .. 127 steps
    wanted = (4 - 2 + 4 - 2 * 128 / 127) / 8
    assert clipped_share(spread, grid) == pytest.approx(wanted)


def test_nothing_outside_the_exact_ends_is_clipped() -> None:
    spread = TensorRange(low=0.0, high=2.5, reach=4.0, counts=np.array([0, 0, 0, 0, 3, 2, 1, 0]))
    grid = Grid(scale=np.float32(2.5 / 127), zero_point=np.int8(0))
    assert clipped_share(spread, grid) == pytest.approx(0, abs=1e-6)
