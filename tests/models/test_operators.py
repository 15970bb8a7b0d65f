"""What the conformance suite leaves out: older operator versions, unusual attributes, batches.

Expected values are ONNX Runtime's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from edgekit.models.model import Model
from edgekit.values import Array

torch = pytest.importorskip("torch", reason="needs the compress extra")
ort = pytest.importorskip("onnxruntime", reason="needs the cpu extra")
pytestmark = pytest.mark.torch


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def whole(*values: int) -> Array:
    return np.array(values, np.int64)


def proto_of(
    op: str, inputs: list[Array | None], attributes: dict[str, Any], opset: int, outputs: int = 1
) -> onnx.ModelProto:
    """A model of one node: the first input is fed, the others are constants."""
    names = ["" if array is None else f"i{n}" for n, array in enumerate(inputs)]
    node = helper.make_node(op, names, [f"o{n}" for n in range(outputs)], name="it", **attributes)
    first = inputs[0]
    assert first is not None
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(
                "i0", helper.np_dtype_to_tensor_dtype(first.dtype), [None] * first.ndim
            )
        ],
        [helper.make_empty_tensor_value_info(f"o{n}") for n in range(outputs)],
        [
            numpy_helper.from_array(array, name)
            for name, array in zip(names[1:], inputs[1:], strict=True)
            if array is not None
        ],
    )
    proto = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=min(10, 3 + opset // 3)
    )
    return onnx.shape_inference.infer_shapes(proto, data_prop=True)


def by_onnxruntime(proto: onnx.ModelProto, feeds: dict[str, Array]) -> list[Array]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options)
    found: list[Array] = session.run(None, feeds)
    return found


def by_executor(proto: onnx.ModelProto, *inputs: Array) -> list[Array]:
    from edgekit.models.torch_module import torch_module

    module = torch_module(Model(name="one", program=ir.from_proto(proto)))
    with torch.no_grad():
        return [t.numpy() for t in module(*[torch.from_numpy(x) for x in inputs])]


def assert_close(found: list[Array], expected: list[Array], tolerance: float = 1e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert one.shape == other.shape
        top = float(np.abs(other.astype(np.float64)).max(initial=0.0)) or 1.0
        difference = np.abs(one.astype(np.float64) - other.astype(np.float64))
        assert difference.max(initial=0.0) / top < tolerance


IMAGE = floats(2, 4, 9, 7)
ONE = np.array(1, np.int64)

# operator, inputs, attributes, opset, number of outputs
OLD: list[tuple[str, list[Array | None], dict[str, Any], int, int]] = [
    ("BatchNormalization", [IMAGE, floats(4), floats(4), floats(4), np.abs(floats(4))], {}, 7, 1),
    ("BatchNormalization", [IMAGE, floats(4), floats(4), floats(4), np.abs(floats(4))], {}, 9, 1),
    ("Clip", [IMAGE], {"min": -0.3, "max": 0.4}, 7, 1),
    ("Clip", [IMAGE, np.float32(-0.3), np.float32(0.4)], {}, 11, 1),
    ("Clip", [IMAGE, None, np.float32(0.4)], {}, 12, 1),
    ("Dropout", [IMAGE], {"ratio": 0.3}, 7, 1),
    ("Dropout", [IMAGE], {"ratio": 0.3}, 10, 1),
    ("Flatten", [IMAGE], {"axis": 2}, 9, 1),
    ("Flatten", [IMAGE], {"axis": -1}, 11, 1),
    ("Gather", [IMAGE, whole(0, 2)], {"axis": 1}, 7, 1),
    ("Gather", [IMAGE, whole(0, -1)], {"axis": 1}, 11, 1),
    ("Gemm", [floats(3, 4), floats(5, 4), floats(5)], {"transB": 1}, 7, 1),
    ("Gemm", [floats(3, 4), floats(4, 5), floats(1, 5)], {"alpha": 0.5, "beta": 2.0}, 9, 1),
    ("LogSoftmax", [IMAGE], {"axis": 2}, 11, 1),
    ("MaxPool", [IMAGE], {"kernel_shape": [3, 3], "strides": [2, 2]}, 7, 1),
    ("MaxPool", [IMAGE], {"kernel_shape": [3, 2], "strides": [2, 2], "pads": [1, 0, 0, 1]}, 8, 2),
    ("MaxPool", [IMAGE], {"kernel_shape": [2, 2], "dilations": [2, 3], "ceil_mode": 1}, 10, 2),
    ("AveragePool", [IMAGE], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, 7, 1),
    ("AveragePool", [IMAGE], {"kernel_shape": [3, 3], "pads": [1, 0, 0, 1], "strides": [2, 2],
                              "ceil_mode": 1}, 10, 1),
    ("Pad", [IMAGE], {"pads": [0, 0, 1, 2, 0, 0, 3, 0], "value": 0.5}, 7, 1),
    ("Pad", [IMAGE], {"pads": [0, 0, 1, 2, 0, 0, 3, 0], "mode": "reflect"}, 10, 1),
    ("Pad", [IMAGE, whole(0, 0, -1, 2, 0, 0, 3, -2)], {"mode": "edge"}, 11, 1),
    ("ReduceSum", [IMAGE], {"axes": [2, 3], "keepdims": 0}, 11, 1),
    ("ReduceMean", [IMAGE], {"axes": [-1]}, 11, 1),
    ("ReduceL2", [IMAGE], {"axes": [1]}, 13, 1),
    ("Resize", [IMAGE, np.array([1, 1, 2, 3], np.float32)], {"mode": "nearest"}, 10, 1),
    ("Resize", [IMAGE, np.array([1, 1, 1.5, 0.6], np.float32)], {"mode": "linear"}, 10, 1),
    ("Slice", [IMAGE], {"starts": [1, -3], "ends": [5, 100], "axes": [2, 3]}, 9, 1),
    ("Slice", [IMAGE, whole(5, -1), whole(0, -5), whole(2, 3), whole(-2, -1)], {}, 10, 1),
    ("Softmax", [IMAGE], {"axis": 1}, 11, 1),
    ("Softmax", [IMAGE], {"axis": -1}, 11, 1),
    ("Softmax", [IMAGE], {}, 9, 1),
    ("Split", [IMAGE], {"axis": 1, "split": [1, 3]}, 11, 2),
    ("Split", [IMAGE], {"axis": 1}, 11, 2),
    ("Squeeze", [floats(2, 1, 3, 1)], {"axes": [1]}, 11, 1),
    ("Sum", [IMAGE, floats(7), floats(4, 1, 1)], {}, 8, 1),
    ("TopK", [IMAGE], {"k": 2, "axis": 1}, 9, 2),
    ("TopK", [IMAGE, whole(3)], {}, 10, 2),
    ("Unsqueeze", [floats(2, 3)], {"axes": [0, 3]}, 11, 1),
    ("Upsample", [IMAGE], {"scales": [1.0, 1.0, 2.0, 2.0], "mode": "nearest"}, 7, 1),
    ("Upsample", [IMAGE], {"scales": [1.0, 1.0, 2.0, 3.0], "mode": "linear"}, 7, 1),
    ("Upsample", [IMAGE, np.array([1, 1, 2, 1.5], np.float32)], {"mode": "nearest"}, 9, 1),
    ("OneHot", [whole(0, 2, -1, 7), ONE * 4, floats(2)], {}, 9, 1),
    ("CumSum", [IMAGE, np.array(2, np.int32)], {"reverse": 1, "exclusive": 1}, 11, 1),
    ("DepthToSpace", [IMAGE], {"blocksize": 2}, 7, 1),
    ("GroupNormalization", [IMAGE, floats(2), floats(2, seed=1)], {"num_groups": 2}, 18, 1),
]  # fmt: skip


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "opset", "outputs"),
    OLD,
    ids=[f"{n}-{case[0]}-{case[3]}" for n, case in enumerate(OLD)],
)
def test_an_older_operator_computes_what_onnxruntime_computes(
    op: str, inputs: list[Array | None], attributes: dict[str, Any], opset: int, outputs: int
) -> None:
    proto = proto_of(op, inputs, attributes, opset, outputs)
    first = inputs[0]
    assert first is not None
    assert_close(by_executor(proto, first), by_onnxruntime(proto, {"i0": first}))


COORDINATES = (
    "half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric",
    "tf_crop_and_resize",
)  # fmt: skip
SIZES = {"up": (18, 14), "down": (4, 3), "odd": (13, 5), "one": (1, 1)}


@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
def test_resize_by_sizes_in_every_mode_of_coordinates(
    coordinates: str, mode: str, size: tuple[int, int]
) -> None:
    attributes = {"coordinate_transformation_mode": coordinates, "mode": mode}
    roi = np.array([0, 0, 0.1, 0.2, 1, 1, 0.9, 0.8], np.float32)
    inputs = [IMAGE, roi if coordinates == "tf_crop_and_resize" else None, None, whole(2, 4, *size)]
    proto = proto_of("Resize", inputs, attributes, 19)
    assert_close(by_executor(proto, IMAGE), by_onnxruntime(proto, {"i0": IMAGE}))


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric", "align_corners"])
@pytest.mark.parametrize("scale", [2.0, 3.0, 0.5, 1.5])
def test_resize_to_the_nearest_rounds_as_it_says(
    rounding: str, coordinates: str, scale: float
) -> None:
    attributes = {
        "coordinate_transformation_mode": coordinates, "mode": "nearest", "nearest_mode": rounding,
    }  # fmt: skip
    scales = np.array([1, 1, scale, scale], np.float32)
    proto = proto_of("Resize", [IMAGE, None, scales], attributes, 13)
    assert_close(by_executor(proto, IMAGE), by_onnxruntime(proto, {"i0": IMAGE}))


@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_resize_antialiased_and_without_the_outside(mode: str) -> None:
    attributes = {"mode": mode, "antialias": 1}
    proto = proto_of("Resize", [IMAGE, None, None, whole(2, 4, 4, 3)], attributes, 18)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(IMAGE), size=(4, 3), antialias=True, align_corners=False,
        mode={"linear": "bilinear", "cubic": "bicubic"}[mode],
    )  # fmt: skip
    # torch normalises over what is inside and takes -0.5 for the cubic kernel then.
    attributes |= {"exclude_outside": 1, "cubic_coeff_a": -0.5}
    proto = proto_of("Resize", [IMAGE, None, None, whole(2, 4, 4, 3)], attributes, 18)
    assert_close(by_executor(proto, IMAGE), [expected.numpy()])


@pytest.mark.parametrize("attributes", [
    {"strides": [2, 2]}, {"strides": [2, 3], "output_padding": [1, 2]}, {"pads": [1, 0, 2, 1]},
    {"strides": [2, 2], "output_shape": [18, 14]}, {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"strides": [3, 2], "auto_pad": "SAME_LOWER"}, {"dilations": [2, 1], "pads": [1, 1, 1, 1]},
    {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
])  # fmt: skip
@pytest.mark.parametrize("group", [1, 2])
def test_transposed_convolution_with_all_its_attributes(
    attributes: dict[str, Any], group: int
) -> None:
    inputs = [IMAGE, floats(4, 3, 3, 3), floats(3 * group)]
    proto = proto_of("ConvTranspose", inputs, {**attributes, "group": group}, 11)
    assert_close(by_executor(proto, IMAGE), by_onnxruntime(proto, {"i0": IMAGE}))


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrent_layers_with_lengths_and_first_states(op: str, direction: str) -> None:
    gates, d = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 2 if direction == "bidirectional" else 1
    x = floats(6, 3, 5)
    inputs = [
        x, floats(d, gates * 4, 5), floats(d, gates * 4, 4, seed=1), floats(d, 8 * gates, seed=2),
        np.array([6, 2, 4], np.int32), floats(d, 3, 4, seed=3),
    ]  # fmt: skip
    if op == "LSTM":
        inputs += [floats(d, 3, 4, seed=4), floats(d, 12, seed=5)]
    outputs = 3 if op == "LSTM" else 2
    attributes: dict[str, Any] = {"hidden_size": 4, "direction": direction}
    if op == "GRU":
        attributes["linear_before_reset"] = 1
    proto = proto_of(op, inputs, attributes, 14, outputs)
    assert_close(by_executor(proto, x), by_onnxruntime(proto, {"i0": x}))


def test_non_max_suppression_keeps_what_onnxruntime_keeps() -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 8, (2, 60, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(1, 4, (2, 60, 2))], -1).astype(np.float32)
    scores = rng.uniform(size=(2, 3, 60)).astype(np.float32)
    inputs = [boxes, scores, whole(10), np.array([0.4], np.float32), np.array([0.3], np.float32)]
    proto = proto_of("NonMaxSuppression", inputs, {}, 11)
    expected = by_onnxruntime(proto, {"i0": boxes})
    assert len(expected[0]) > 20
    assert_close(by_executor(proto, boxes), expected)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_regions_are_sampled_as_onnxruntime_does(mode: str) -> None:
    x = floats(2, 3, 12, 10)
    rois = np.array([[1, 1, 7, 6], [0, 2, 9.5, 11], [-1, -1, 3, 30]], np.float32)
    attributes = {
        "output_height": 3, "output_width": 2, "sampling_ratio": 2, "spatial_scale": 0.5,
        "mode": mode,
    }  # fmt: skip
    proto = proto_of("RoiAlign", [x, rois, whole(0, 1, 1)], attributes, 16)
    assert_close(by_executor(proto, x), by_onnxruntime(proto, {"i0": x}))


def branching(size_dependent: bool) -> onnx.ModelProto:
    """y = w x where the mean of x is above 0 (or the batch is 3), else x - k."""

    def value(name: str) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["n", 4])

    then = helper.make_graph([helper.make_node("Mul", ["x", "w"], ["t"])], "then", [], [value("t")])
    other = helper.make_graph(
        [helper.make_node("Sub", ["x", "k"], ["e"])], "else", [], [value("e")],
        [numpy_helper.from_array(floats(4, seed=2), "k")],
    )  # fmt: skip
    if size_dependent:
        nodes = [
            helper.make_node("Shape", ["x"], ["s"], start=0, end=1),
            helper.make_node("Equal", ["s", "three"], ["listed"]),
            helper.make_node("Squeeze", ["listed"], ["c"]),
        ]
    else:
        nodes = [
            helper.make_node("ReduceMean", ["x"], ["m"], keepdims=0),
            helper.make_node("Greater", ["m", "zero"], ["c"]),
        ]
    graph = helper.make_graph(
        [*nodes, helper.make_node("If", ["c"], ["y"], then_branch=then, else_branch=other)],
        "branching",
        [value("x")],
        [value("y")],
        [
            numpy_helper.from_array(floats(4, seed=1), "w"),
            numpy_helper.from_array(np.float32(0), "zero"),
            numpy_helper.from_array(whole(3), "three"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


@pytest.mark.parametrize("size_dependent", [False, True])
def test_a_branch_is_chosen_anew_at_each_pass(size_dependent: bool) -> None:
    from edgekit.models.torch_module import torch_module

    proto = branching(size_dependent)
    module = torch_module(Model(name="if", program=ir.from_proto(proto)))
    above, below = np.abs(floats(3, 4)), -np.abs(floats(2, 4))
    for x in (above, below, above, -above):
        (expected,) = by_onnxruntime(proto, {"x": x})
        assert np.allclose(module(torch.from_numpy(x))[0].detach(), expected)


def shape_reading() -> onnx.ModelProto:
    """A network that reshapes by what it measures: (n, 4, h, w) -> (n, 4 h, w) + a grid."""
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Shape", ["c"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"]),
        helper.make_node("Gather", ["s", "three"], ["w"]),
        helper.make_node("Concat", ["n", "minus", "w"], ["to"], axis=0),
        helper.make_node("Reshape", ["c", "to"], ["r"]),
        helper.make_node("Squeeze", ["w"], ["count"]),
        helper.make_node("Range", ["start", "count", "step"], ["i"]),
        helper.make_node("Cast", ["i"], ["grid"], to=1),
        helper.make_node("Add", ["r", "grid"], ["y"]),
    ]
    constants = {
        "kernel": floats(4, 4, 3, 3), "zero": whole(0), "three": whole(3), "minus": whole(-1),
        "start": np.array(0), "step": np.array(1),
    }  # fmt: skip
    graph = helper.make_graph(
        nodes,
        "shapes",
        [helper.make_tensor_value_info("x", 1, ["n", 4, "h", "w"])],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def test_batches_of_one_three_and_eight_agree() -> None:
    from edgekit.models.torch_module import torch_module

    proto = shape_reading()
    module = torch_module(Model(name="shapes", program=ir.from_proto(proto)))
    x = floats(8, 4, 6, 5)
    (whole_batch,) = module(torch.from_numpy(x))
    for size in (1, 3, 8, 1, 3):
        (found,) = module(torch.from_numpy(x[:size]))
        assert torch.allclose(found, whole_batch[:size], atol=1e-6)
    (other,) = module(torch.from_numpy(x[:, :, :3, :4].copy()))
    assert_close([other.detach().numpy()], by_onnxruntime(proto, {"x": x[:, :, :3, :4].copy()}))


def test_what_follows_from_shapes_is_computed_once_for_each_shape() -> None:
    from edgekit.models import torch_module as executor

    module = executor.torch_module(Model(name="shapes", program=ir.from_proto(shape_reading())))
    ran: list[int] = []
    run = executor._run

    def counting(running: Any, values: Any) -> None:
        ran.append(len(running))
        run(running, values)

    executor._run = counting
    try:
        for x in (torch.zeros(1, 4, 6, 5), torch.zeros(1, 4, 6, 5), torch.zeros(2, 4, 6, 5)):
            ran.clear()
            module(x)
            total = sum(ran)
            assert total == (3 if len(ran) == 1 else 10)
    finally:
        executor._run = run
    assert len(module._recorded) == 2


def test_a_pass_without_gradients_does_not_spoil_a_later_one_with_them() -> None:
    from edgekit.models.torch_module import torch_module

    module = torch_module(Model(name="shapes", program=ir.from_proto(shape_reading())))
    x = torch.from_numpy(floats(2, 4, 6, 5))
    with torch.inference_mode():
        (before,) = module(x)
    (after,) = module(x)
    after.sum().backward()
    gradient = module.parameters_by_name()["kernel"].grad
    assert gradient is not None
    assert gradient.abs().sum() > 0
    assert torch.equal(before, after)


def test_torch_compile_takes_the_whole_graph_once_its_shapes_are_known() -> None:
    from edgekit.models.torch_module import torch_module

    module = torch_module(Model(name="shapes", program=ir.from_proto(shape_reading())))
    x = torch.from_numpy(floats(2, 4, 6, 5))
    (eager,) = module(x)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    (found,) = compiled(x)
    assert torch.allclose(found, eager, atol=1e-6)
