"""The trainable executor against ONNX Runtime, torch's own modules and hand arithmetic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from edgekit.errors import InputError
from edgekit.models.model import Model, constant_of, parameters, to_bytes
from edgekit.models.source import load
from edgekit.values import Array

torch = pytest.importorskip("torch", reason="needs the compress extra")
pytestmark = pytest.mark.torch

Reference = Callable[..., list[Array]]
TOLERANCE = 1e-4


def relative_error(found: Array, expected: Array) -> float:
    difference = np.abs(found.astype(np.float64) - expected)
    return float(difference.max() / (np.abs(expected).max() or 1.0))


def model_of(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, Array],
    constants: dict[str, Array] | None = None,
    *,
    outputs: tuple[str, ...] = ("y",),
    opset: int = 18,
) -> Model:
    """A Model of just these nodes; the shapes of the inputs are those of the arrays."""
    graph = helper.make_graph(
        nodes,
        "small",
        [
            helper.make_tensor_value_info(
                name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
            )
            for name, array in inputs.items()
        ],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in (constants or {}).items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return Model(
        name="small",
        program=ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True)),
    )


def execute(model: Model, feeds: dict[str, Array]) -> list[Array]:
    from edgekit.models.torch_module import torch_module

    with torch.no_grad():
        outputs = torch_module(model)(*[torch.from_numpy(array) for array in feeds.values()])
    return [output.numpy() for output in outputs]


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


IMAGE = floats(2, 4, 9, 7)
KERNEL = floats(6, 4, 3, 3, seed=1)
FLOAT16 = onnx.TensorProto.FLOAT16

# operator, inputs, constants (after the inputs), attributes, opset
CASES: list[tuple[str, list[Array], list[Array | None], dict[str, Any], int]] = [
    ("Conv", [IMAGE], [KERNEL], {}, 18),
    ("Conv", [IMAGE], [KERNEL, floats(6)], {"pads": [1, 1, 1, 1], "strides": [2, 2]}, 18),
    ("Conv", [IMAGE], [KERNEL], {"pads": [0, 1, 2, 1], "dilations": [2, 1]}, 18),
    ("Conv", [IMAGE], [floats(4, 1, 3, 3)], {"group": 4, "pads": [1, 1, 1, 1]}, 18),
    ("Conv", [IMAGE], [floats(8, 2, 1, 1)], {"group": 2}, 18),
    ("Conv", [IMAGE], [KERNEL], {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, 18),
    ("Conv", [IMAGE], [KERNEL], {"auto_pad": "SAME_LOWER", "strides": [2, 2]}, 18),
    ("Conv", [IMAGE], [KERNEL], {"auto_pad": "VALID"}, 18),
    ("Conv", [floats(2, 4, 9)], [floats(6, 4, 3)], {"pads": [1, 1]}, 18),
    (
        "BatchNormalization",
        [IMAGE],
        [floats(4), floats(4), floats(4), np.abs(floats(4))],
        {"epsilon": 1e-3},
        18,
    ),
    ("InstanceNormalization", [IMAGE], [floats(4), floats(4)], {"epsilon": 1e-3}, 18),
    ("LayerNormalization", [IMAGE], [floats(9, 7), floats(9, 7)], {"axis": 2}, 18),
    ("Relu", [IMAGE], [], {}, 18),
    ("LeakyRelu", [IMAGE], [], {"alpha": 0.2}, 18),
    ("PRelu", [IMAGE], [floats(4, 1, 1)], {}, 18),
    ("Elu", [IMAGE], [], {"alpha": 0.7}, 18),
    ("Sigmoid", [IMAGE], [], {}, 18),
    ("HardSigmoid", [IMAGE], [], {"alpha": 1 / 6, "beta": 0.5}, 18),
    ("HardSwish", [IMAGE], [], {}, 18),
    ("Tanh", [IMAGE], [], {}, 18),
    ("Softplus", [IMAGE], [], {}, 18),
    ("Mish", [IMAGE], [], {}, 18),
    ("Gelu", [IMAGE], [], {}, 20),
    ("Gelu", [IMAGE], [], {"approximate": "tanh"}, 20),
    ("Erf", [IMAGE], [], {}, 18),
    ("Exp", [IMAGE], [], {}, 18),
    ("Sqrt", [np.abs(IMAGE)], [], {}, 18),
    ("Clip", [IMAGE], [np.float32(-0.5), np.float32(0.5)], {}, 18),
    ("Clip", [IMAGE], [None, np.float32(0.5)], {}, 18),
    ("Clip", [IMAGE, np.array(0.2, np.float32)], [], {}, 18),
    ("Clip", [IMAGE], [], {"min": -0.5, "max": 0.5}, 6),
    ("Add", [IMAGE, floats(4, 1, 1)], [], {}, 18),
    ("Sub", [IMAGE, floats(7)], [], {}, 18),
    ("Mul", [IMAGE, floats(2, 4, 1, 1)], [], {}, 18),
    ("Div", [IMAGE, IMAGE + 10], [], {}, 18),
    ("Div", [ints(7, -7, 6)], [ints(2, 2, -4)], {}, 18),
    ("Pow", [np.abs(IMAGE)], [np.float32(1.5)], {}, 18),
    ("Max", [IMAGE, floats(7), floats(9, 1)], [], {}, 18),
    ("Sum", [IMAGE, floats(7), floats(9, 1)], [], {}, 18),
    ("MatMul", [floats(2, 3, 5)], [floats(5, 4)], {}, 18),
    ("Gemm", [floats(3, 5)], [floats(4, 5), floats(4)], {"transB": 1}, 18),
    ("Gemm", [floats(3, 5)], [floats(5, 4)], {}, 18),
    (
        "Gemm",
        [floats(5, 3)],
        [floats(5, 4), floats(3, 1)],
        {"transA": 1, "alpha": 0.5, "beta": 2.0},
        18,
    ),
    ("Softmax", [IMAGE], [], {"axis": 1}, 18),
    ("Softmax", [IMAGE], [], {}, 11),
    ("LogSoftmax", [floats(3, 5)], [], {}, 18),
    ("MaxPool", [IMAGE], [], {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1] * 4}, 18),
    ("MaxPool", [IMAGE], [], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}, 18),
    ("MaxPool", [IMAGE], [], {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}, 18),
    ("AveragePool", [IMAGE], [], {"kernel_shape": [3, 3], "pads": [1] * 4}, 18),
    (
        "AveragePool",
        [IMAGE],
        [],
        {"kernel_shape": [3, 3], "pads": [1] * 4, "count_include_pad": 1},
        18,
    ),
    ("AveragePool", [IMAGE], [], {"kernel_shape": [2, 2], "pads": [0, 0, 1, 1]}, 18),
    ("GlobalAveragePool", [IMAGE], [], {}, 18),
    ("GlobalMaxPool", [IMAGE], [], {}, 18),
    ("ReduceMean", [IMAGE], [ints(2, -1)], {"keepdims": 0}, 18),
    ("ReduceMean", [IMAGE], [], {"axes": [1]}, 13),
    ("ReduceMean", [IMAGE], [], {}, 18),
    ("ReduceSum", [IMAGE], [], {"noop_with_empty_axes": 1}, 18),
    ("ReduceMax", [IMAGE], [ints(1)], {}, 18),
    ("Concat", [IMAGE, floats(2, 3, 9, 7)], [], {"axis": 1}, 18),
    ("Concat", [IMAGE, floats(2, 4, 9, 2)], [], {"axis": -1}, 18),
    ("Flatten", [IMAGE], [], {"axis": 2}, 18),
    ("Flatten", [IMAGE], [], {"axis": -1}, 18),
    ("Flatten", [IMAGE], [], {"axis": 0}, 18),
    ("Reshape", [IMAGE], [ints(0, -1)], {}, 18),
    ("Reshape", [IMAGE], [ints(7, 0, 9, 2)], {}, 18),
    ("Transpose", [IMAGE], [], {"perm": [0, 2, 3, 1]}, 18),
    ("Transpose", [IMAGE], [], {}, 18),
    ("Squeeze", [floats(1, 3, 1)], [ints(0, -1)], {}, 18),
    ("Squeeze", [floats(1, 3, 1)], [], {}, 18),
    ("Squeeze", [floats(1, 3, 1)], [], {"axes": [2]}, 11),
    ("Unsqueeze", [floats(3, 2)], [ints(0, -1)], {}, 18),
    ("Unsqueeze", [floats(3, 2)], [], {"axes": [1]}, 11),
    ("Pad", [IMAGE], [ints(0, 0, 1, 2, 0, 0, 0, 1)], {}, 18),
    ("Pad", [IMAGE], [ints(0, 1, 0, 0, 0, 0, 0, 0), np.float32(3)], {}, 18),
    ("Pad", [IMAGE], [ints(0, 0, 1, 2, 0, 0, 0, 1)], {"mode": "reflect"}, 18),
    ("Pad", [IMAGE], [ints(0, 0, 1, 2, 0, 0, 0, 1)], {"mode": "edge"}, 18),
    ("Pad", [IMAGE], [], {"pads": [0, 0, 1, 2, 0, 0, 0, 1], "value": 0.5}, 10),
    ("Shape", [IMAGE], [], {}, 18),
    ("Shape", [IMAGE], [], {"start": 1, "end": -1}, 18),
    ("Gather", [IMAGE], [ints(2, 0, -1)], {"axis": 1}, 18),
    ("Gather", [IMAGE], [np.array(1, np.int64)], {"axis": -1}, 18),
    ("Slice", [IMAGE], [ints(1, 0), ints(4, -2), ints(1, 3), ints(2, 1)], {}, 18),
    ("Slice", [IMAGE], [ints(1), ints(2**62), ints(-1)], {}, 18),
    ("Slice", [IMAGE], [], {"starts": [1], "ends": [3], "axes": [2]}, 9),
    ("Cast", [IMAGE], [], {"to": FLOAT16}, 18),
    ("CastLike", [IMAGE, ints(1)], [], {}, 18),
    ("Expand", [floats(4, 1, 1)], [ints(2, 1, 3, 2)], {}, 18),
    ("DepthToSpace", [floats(2, 8, 3, 2)], [], {"blocksize": 2}, 18),
    ("DepthToSpace", [floats(2, 8, 3, 2)], [], {"blocksize": 2, "mode": "CRD"}, 18),
    ("Dropout", [IMAGE], [], {}, 18),
    ("Identity", [IMAGE], [], {}, 18),
]


@pytest.mark.parametrize(
    "case", CASES, ids=[f"{i}-{case[0]}-{case[4]}" for i, case in enumerate(CASES)]
)
def test_an_operator_computes_what_onnxruntime_computes(
    case: tuple[str, list[Array], list[Array | None], dict[str, Any], int], reference: Reference
) -> None:
    operator, inputs, constants, attributes, opset = case
    feeds = {f"x{i}": array for i, array in enumerate(inputs)}
    stored = {f"c{i}": np.asarray(c) for i, c in enumerate(constants) if c is not None}
    names = [*feeds, *(f"c{i}" if c is not None else "" for i, c in enumerate(constants))]
    node = helper.make_node(operator, names, ["y"], name="node", **attributes)
    model = model_of([node], feeds, stored, opset=opset)
    (expected,), (found,) = reference(model, feeds), execute(model, feeds)
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert relative_error(found, expected) < TOLERANCE


@pytest.mark.parametrize(
    ("attributes", "constants"),
    [({}, {"sizes": ints(1, 5, 3)}), ({"num_outputs": 5}, {})],
    ids=["given sizes", "equal parts, the last smaller"],
)
def test_split_gives_all_its_parts(
    attributes: dict[str, Any], constants: dict[str, Array], reference: Reference
) -> None:
    names = tuple(f"y{i}" for i in range(3 if constants else 5))
    node = helper.make_node("Split", ["x", *constants], list(names), axis=2, **attributes)
    model = model_of([node], {"x": IMAGE}, constants, outputs=names)
    for found, expected in zip(
        execute(model, {"x": IMAGE}), reference(model, {"x": IMAGE}), strict=True
    ):
        assert np.array_equal(found, expected)


def test_a_part_of_a_split_that_nobody_reads_is_no_matter(reference: Reference) -> None:
    nodes = [
        helper.make_node("Split", ["x"], ["a", "b"], axis=1, num_outputs=2),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    model = model_of(nodes, {"x": IMAGE})
    assert np.array_equal(execute(model, {"x": IMAGE})[0], reference(model, {"x": IMAGE})[0])


def test_a_computed_shape_follows_the_batch(reference: Reference) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["batch"], end=1),
        helper.make_node("Constant", [], ["rest"], value=numpy_helper.from_array(ints(-1, 7))),
        helper.make_node("Concat", ["batch", "rest"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["x", "sizes"], ["y"]),
    ]
    for batch in (1, 3, 8):
        feeds = {"x": floats(batch, 4, 7)}
        model = model_of(nodes, feeds)
        assert np.array_equal(execute(model, feeds)[0], reference(model, feeds)[0])


def test_a_whole_network_computes_what_onnxruntime_computes(
    residual: Model, images: Array, reference: Reference
) -> None:
    from edgekit.models.torch_module import torch_module

    (expected,) = reference(residual, {"image": images})
    module = torch_module(residual)
    for layout in (torch.contiguous_format, torch.channels_last):
        module.to(memory_format=layout)
        with torch.no_grad():
            found = module(torch.from_numpy(images).contiguous(memory_format=layout))[0].numpy()
        assert relative_error(found, expected) < TOLERANCE


def test_gradients_are_those_of_the_same_network_in_torch(residual: Model, images: Array) -> None:
    from torch.nn import functional

    from edgekit.models.torch_module import torch_module

    module = torch_module(residual).train()
    mine = {n: t for n, t in module.parameters_by_name().items() if t.requires_grad}
    theirs = {n: t.detach().clone().requires_grad_(t.requires_grad)
              for n, t in module.parameters_by_name().items()}  # fmt: skip

    def conv_bn(name: str, x: Any) -> Any:
        x = functional.conv2d(x, theirs[f"{name}.weight"],
                              padding=theirs[f"{name}.weight"].shape[2] // 2)  # fmt: skip
        mean, var, weight, bias = (
            theirs[f"{name}.bn.{part}"] for part in ("mean", "var", "weight", "bias")
        )
        return functional.batch_norm(x, mean, var, weight, bias, training=True)

    x = torch.from_numpy(images)
    stem = conv_bn("stem", x).relu()
    total = (conv_bn("second", conv_bn("first", stem).relu()) + stem).relu()
    both = torch.cat([conv_bn("left", total).relu(), conv_bn("right", total).relu()], dim=1)
    logits = functional.linear(both.mean((2, 3)), theirs["fc.weight"], theirs["fc.bias"])
    logits.square().mean().backward()
    module(x)[0].square().mean().backward()
    assert len(mine) == 2 * 5 + 5 + 2  # scale and offset of five norms, kernels, the classifier
    for name, parameter in mine.items():
        assert relative_error(parameter.grad.numpy(), theirs[name].grad.numpy()) < TOLERANCE, name
    for name, tensor in module.statistics_by_name().items():
        assert torch.allclose(tensor, theirs[name], atol=1e-6), name


def test_the_example_is_the_torch_network_that_it_was_exported_from(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Outputs, gradients and running statistics, parameter by parameter under torch's own names."""
    import importlib

    from edgekit.models.torch_module import torch_module

    folder = Path(__file__).resolve().parents[2] / "examples" / "fashion"
    monkeypatch.syspath_prepend(str(folder))
    network = importlib.import_module("train").FashionNet()
    module = torch_module(load(folder / "fashion.onnx"))
    stored = module.parameters_by_name()
    own = {n: t for n, t in network.state_dict().items() if not n.endswith("batches_tracked")}
    assert set(own) <= set(stored)
    network.load_state_dict({n: stored[n].detach() for n in own}, strict=False)
    x = torch.from_numpy(floats(4, 1, 28, 28))
    for training in (False, True):
        expected, found = network.train(training)(x), module.train(training)(x)[0]
        assert relative_error(found.detach().numpy(), expected.detach().numpy()) < TOLERANCE
    expected.square().mean().backward()
    found.square().mean().backward()
    for name, parameter in network.named_parameters():
        error = relative_error(stored[name].grad.numpy(), parameter.grad.numpy())
        assert error < TOLERANCE, name
    for name, statistic in module.statistics_by_name().items():
        assert torch.allclose(statistic, network.state_dict()[name], atol=1e-6), name


def norm_model() -> tuple[Model, Array]:
    """A BatchNormalization of momentum 0.75 over two channels, and a batch for it."""
    x = np.array([[1.0, 10.0], [3.0, 10.0], [5.0, 10.0], [7.0, 50.0]], np.float32)
    constants = {
        "scale": np.ones(2, np.float32), "offset": np.zeros(2, np.float32),
        "mean": np.array([2.0, 0.0], np.float32), "var": np.array([1.0, 1.0], np.float32),
    }  # fmt: skip
    node = helper.make_node("BatchNormalization", ["x", *constants], ["y"], momentum=0.75)
    return model_of([node], {"x": x}, constants), x


def test_training_moves_running_statistics_by_one_minus_the_momentum() -> None:
    from edgekit.models.torch_module import torch_module

    model, x = norm_model()
    module = torch_module(model).train()
    module(torch.from_numpy(x))
    statistics = module.statistics_by_name()
    # The batch: means 4 and 20, variances over n - 1 of 20/3 and 400.
    assert statistics["mean"].tolist() == pytest.approx([0.75 * 2 + 0.25 * 4, 0.25 * 20])
    assert statistics["var"].tolist() == pytest.approx([0.75 + 0.25 * 20 / 3, 0.75 + 0.25 * 400])


def test_evaluation_leaves_running_statistics_alone() -> None:
    from edgekit.models.torch_module import torch_module

    model, x = norm_model()
    module = torch_module(model)
    module(torch.from_numpy(x))
    assert {n: t.tolist() for n, t in module.statistics_by_name().items()} == {
        "mean": [2.0, 0.0], "var": [1.0, 1.0]
    }  # fmt: skip


def test_observed_statistics_are_those_of_the_one_batch_and_the_mode_stays() -> None:
    from edgekit.models.torch_module import torch_module

    model, x = norm_model()
    module = torch_module(model)
    module.observe_statistics(torch.from_numpy(x))
    statistics = module.statistics_by_name()
    assert statistics["mean"].tolist() == pytest.approx([4, 20])
    assert statistics["var"].tolist() == pytest.approx([20 / 3, 400])
    before = module(torch.from_numpy(x))[0]
    assert torch.equal(module(torch.from_numpy(x))[0], before)


def test_dropout_drops_in_training_only() -> None:
    from edgekit.models.torch_module import torch_module

    x = np.ones((100, 100), np.float32)
    model = model_of(
        [helper.make_node("Dropout", ["x", "ratio"], ["y"])], {"x": x},
        {"ratio": np.array(0.25, np.float32)},
    )  # fmt: skip
    module = torch_module(model)
    assert torch.equal(module(torch.from_numpy(x))[0], torch.from_numpy(x))
    dropped = (module.train()(torch.from_numpy(x))[0] == 0).float().mean().item()
    assert dropped == pytest.approx(0.25, abs=0.03)


def test_weights_are_trained_and_other_constants_are_not() -> None:
    from edgekit.models.torch_module import torch_module

    x = floats(2, 3, 5, seed=3)
    constants = {
        "input.mean": floats(5), "fc.weight": floats(4, 5), "fc.bias": floats(4),
        "grid": floats(3, 4), "sizes": ints(0, -1),
    }  # fmt: skip
    nodes = [
        helper.make_node("Sub", ["x", "input.mean"], ["centred"]),
        helper.make_node("Transpose", ["fc.weight"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["centred", "turned"], ["product"]),
        helper.make_node("Add", ["product", "grid"], ["moved_once"]),
        helper.make_node("Add", ["fc.bias", "product"], ["scores"]),
        helper.make_node("Add", ["scores", "moved_once"], ["moved"]),
        helper.make_node("Reshape", ["moved", "sizes"], ["y"]),
    ]
    module = torch_module(model_of(nodes, {"x": x}, constants))
    trained = {name for name, t in module.parameters_by_name().items() if t.requires_grad}
    assert trained == {"fc.weight", "fc.bias"}
    # A shape is no tensor of the module: it is handed over as numbers.
    assert set(module.parameters_by_name()) == set(constants) - {"sizes"}


def test_changed_weights_go_back_by_name_and_the_model_stays_as_it_was(
    residual: Model, images: Array, reference: Reference
) -> None:
    from edgekit.models.torch_module import torch_module, write_back

    before = to_bytes(residual)
    module = torch_module(residual)
    module.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    module.train()(torch.from_numpy(images))[0].square().mean().backward()
    optimizer.step()
    written = write_back(module, residual, "trained")
    assert to_bytes(residual) == before
    assert written.history == (*residual.history, "trained")
    old, new = dict(parameters(residual)), dict(parameters(written))
    assert {n: (a.shape, a.dtype) for n, a in old.items()} == {
        n: (a.shape, a.dtype) for n, a in new.items()
    }
    assert all(not np.array_equal(old[name], new[name]) for name in old)
    with torch.no_grad():
        found = module.eval()(torch.from_numpy(images))[0].numpy()
    (expected,) = reference(written, {"image": images})
    assert relative_error(found, expected) < TOLERANCE


def test_an_untrained_module_writes_back_the_same_numbers(residual: Model) -> None:
    from edgekit.models.torch_module import torch_module, write_back

    again = write_back(torch_module(residual), residual, "nothing")
    for name, value in again.graph.initializers.items():
        assert np.array_equal(constant_of(value), constant_of(residual.graph.initializers[name]))


def test_values_are_dropped_when_they_were_last_read() -> None:
    """Twenty layers of 4 MB without gradients may not hold more than three at once."""
    import gc
    import weakref

    from edgekit.models.torch_module import torch_module

    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(20)]
    x = floats(1, 4, 500, 500)
    module = torch_module(model_of(nodes, {"v0": x}, outputs=("v20",)))
    alive: list[weakref.ref[Any]] = []
    most = 0

    def watched(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*inputs: Any) -> Any:
            nonlocal most
            output = function(*inputs)
            alive.append(weakref.ref(output))
            most = max(most, sum(reference() is not None for reference in alive))
            return output

        return call

    module._next_passes = [(watched(f), *places) for f, *places in module._next_passes]
    gc.collect()
    module(torch.from_numpy(x))
    assert most <= 3


def test_every_missing_operator_is_named_with_its_nodes() -> None:
    from edgekit.models.torch_module import torch_module

    nodes = [
        helper.make_node("DFT", ["x"], ["a"], name="first"),
        helper.make_node("DFT", ["x"], ["b"], name="second"),
        helper.make_node("Scan", ["x"], ["y"], name="third"),
    ]
    model = model_of(nodes, {"x": floats(1, 3, 3)}, outputs=("a", "b", "y"))
    with pytest.raises(InputError) as caught:
        torch_module(model)
    assert caught.value.got == "DFT (first, second); Scan (third)"
    assert caught.value.hint


def test_a_wrong_number_of_inputs_is_refused(residual: Model) -> None:
    from edgekit.models.torch_module import torch_module

    with pytest.raises(TypeError, match="1 inputs, not 2"):
        torch_module(residual)(torch.zeros(1), torch.zeros(1))
