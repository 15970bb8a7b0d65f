"""What a conversion keeps of a whole model, what it refuses, and well-known networks."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent))
from opset_cases import Case, assert_same, floats, model_of, positive, proto_of, run, whole

from edgekit.errors import InputError
from edgekit.models.model import Model, parameters, to_bytes
from edgekit.models.opset import NEWEST, converted, lowered, raised
from edgekit.models.source import load

X = floats(2, 4, 6, 6)


def tensor(name: str, shape: list[int | str], kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def block(opset: int = 20, **more: Any) -> onnx.ModelProto:
    """LayerNormalization and Gelu, with a value named as a new one would like to be named."""
    nodes = [
        helper.make_node("LayerNormalization", ["x", "ln.weight", "ln.bias"], ["a"], name="ln"),
        helper.make_node("Relu", ["a"], ["ln.Sub_out"], name="ln.Sub"),
        helper.make_node("Gelu", ["ln.Sub_out"], ["b"], name="act"),
        helper.make_node("Mul", ["b", "scale"], ["y"], name="end"),
    ]
    held = [
        numpy_helper.from_array(array, name)
        for name, array in (
            ("ln.weight", positive(6)), ("ln.bias", floats(6)), ("scale", positive(1)),
        )
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "block", [tensor("x", ["batch", 6])], [tensor("y", ["batch", 6])], held
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9, **more
    )


def test_parameters_nodes_inputs_and_outputs_keep_their_names() -> None:
    model = model_of(block())
    lower = lowered(model, 13)
    assert [name for name, _ in parameters(lower)] == ["ln.weight", "ln.bias", "scale"]
    names = [node.name for node in lower.graph]
    assert [name for name in names if name in ("ln", "ln.Sub", "act", "end")] == [
        "ln", "ln.Sub", "act", "end",
    ]  # fmt: skip
    assert {name.split(".")[0] for name in names if name} == {"ln", "act", "end"}
    values = [value.name for node in lower.graph for value in node.outputs]
    assert len(set(names)) == len(names)
    assert len(set(values)) == len(values)
    assert [str(spec) for spec in lower.inputs] == ["x float32 (batch, 6)"]
    assert [str(spec) for spec in lower.outputs] == ["y float32 (batch, 6)"]
    assert_same(run(lower, floats(3, 6)), run(model, floats(3, 6)))


def test_every_new_value_has_its_type_and_shape() -> None:
    lower = lowered(model_of(block()), 13)
    for node in lower.graph:
        for value in node.outputs:
            assert value.dtype is not None, value.name
            assert value.shape is not None, value.name
    sub = next(node for node in lower.graph if node.op_type == "Sub")
    assert [str(size) for size in sub.outputs[0].shape or ()] == ["batch", "6"]


def test_the_model_given_stays_as_it_was_and_history_and_metadata_go_on() -> None:
    model = model_of(block())
    model.program.metadata_props["author"] = "somebody"
    before = to_bytes(model)
    lower = lowered(model, 13)
    assert to_bytes(model) == before
    assert model.opset == 20
    assert lower.opset == 13
    assert lower.history == ("opset 13",)
    assert raised(lower, 18).history == ("opset 13", "opset 18")
    assert lower.program.metadata_props["author"] == "somebody"


@pytest.mark.parametrize(
    ("opset", "version"), [(17, 8), (16, 8), (13, 7), (11, 6)], ids=str
)  # ONNX's own table of releases
def test_the_ir_version_is_that_of_the_opset_s_time(opset: int, version: int) -> None:
    assert lowered(model_of(block()), opset).program.ir_version == version


def test_an_old_ir_version_is_kept_when_lowering_and_raised_when_raising() -> None:
    model = model_of(proto_of(Case("Relu", 12, (X,)), ir_version=4))
    assert lowered(model, 11).program.ir_version == 4
    assert raised(model, 18).program.ir_version == 8


def test_a_model_is_itself_at_its_own_opset() -> None:
    model = model_of(block())
    assert converted(model, 20) is model
    assert lowered(model, 20) is model
    assert raised(model, 20) is model
    assert converted(model, 17).opset == 17
    assert converted(model, 21).opset == 21
    assert raised(model).opset == NEWEST


def test_what_cannot_be_lowered_is_named_all_at_once() -> None:
    nodes = [
        helper.make_node("Gelu", ["x"], ["a"], name="fine"),
        helper.make_node("Det", ["a"], ["d"], name="volume"),
        helper.make_node("ScatterND", ["a", "where", "what"], ["s"], name="sum", reduction="add"),
        helper.make_node("GridSample", ["x4", "grid"], ["g"], name="warp"),
    ]
    held = [
        numpy_helper.from_array(whole(0).reshape(1, 1), "where"),
        numpy_helper.from_array(floats(1, 6, 6), "what"),
        numpy_helper.from_array(X, "x4"),
        numpy_helper.from_array(floats(2, 3, 3, 2), "grid"),
    ]
    outputs = [tensor("d", [4]), tensor("s", [4, 6, 6]), tensor("g", [2, 4, 3, 3])]
    graph = helper.make_graph(nodes, "many", [tensor("x", [4, 6, 6])], outputs, held)
    model = model_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    with pytest.raises(InputError) as caught:
        lowered(model, 10)
    assert caught.value.what == "3 nodes cannot be lowered to opset 10"
    assert caught.value.got.splitlines()[1:] == [
        '  Det "volume" (version 11): ONNX has it from opset 11 on',
        '  ScatterND "sum" (version 18): reduction=add came with opset 16',
        '  GridSample "warp" (version 20): ONNX has it from opset 16 on',
    ]


def test_a_type_that_the_older_version_lacks_is_named() -> None:
    model = model_of(proto_of(Case("Add", 14, (np.ones(3, np.int8), np.ones(3, np.int8)))))
    with pytest.raises(InputError, match=r'Add "it" .* does not take tensor\(int8\)'):
        lowered(model, 13)


def test_scales_for_each_channel_are_refused_below_13() -> None:
    case = Case("DequantizeLinear", 13, ((X * 9).astype(np.int8), positive(4)), {"axis": 1})
    with pytest.raises(InputError, match="scales are for each channel"):
        lowered(model_of(proto_of(case)), 12)


@pytest.mark.parametrize(
    ("function", "opset", "message"),
    [
        (raised, 19, "raised to a higher opset"),
        (lowered, 21, "lowered to a lower opset"),
        (raised, 99, "does not know"),
        (lowered, 6, "does not know"),
    ],
)
def test_a_wrong_direction_or_an_unknown_opset_is_refused(
    function: Any, opset: int, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        function(model_of(block()), opset)


def test_branches_are_converted_too() -> None:
    then = helper.make_graph([helper.make_node("Gelu", ["x"], ["t"], name="act")], "then", [],
                             [tensor("t", [2, 6])])  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("ReduceMean", ["x", "axes"], ["m"], name="mean"),
         helper.make_node("Expand", ["m", "shape"], ["e"], name="wide")],
        "else", [], [tensor("e", [2, 6])], [numpy_helper.from_array(whole(1), "axes")],
    )  # fmt: skip
    node = helper.make_node("If", ["choice"], ["y"], name="if", then_branch=then, else_branch=other)
    graph = helper.make_graph(
        [node], "branches", [tensor("x", [2, 6]), tensor("choice", [], TensorProto.BOOL)],
        [tensor("y", [2, 6])], [numpy_helper.from_array(whole(2, 6), "shape")],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    model = model_of(proto)
    for target in (17, 11, NEWEST):
        other_model = converted(model, target)
        for choice in (True, False):
            feeds = floats(2, 6), np.array(choice)
            assert_same(run(other_model, *feeds), run(model, *feeds))
    assert "Gelu" not in {node.op_type for node in lowered(model, 17).graph.all_nodes()}


def with_function(function: onnx.FunctionProto, opset: int) -> onnx.ModelProto:
    node = helper.make_node("Mine", ["x"], ["y"], name="mine", domain="my", alpha=0.3)
    graph = helper.make_graph([node], "one", [tensor("x", [2, 6])], [tensor("y", [2, 6])])
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("my", 1)]
    return helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=9)


def test_bodies_of_functions_are_converted_too() -> None:
    imports = [helper.make_opsetid("", 20)]
    leaky = helper.make_node("LeakyRelu", ["s"], ["b"], name="leaky")
    reference = leaky.attribute.add()
    reference.name, reference.ref_attr_name = "alpha", "alpha"
    reference.type = onnx.AttributeProto.FLOAT
    nodes = [helper.make_node("HardSwish", ["a"], ["s"], name="swish"), leaky]
    model = model_of(
        with_function(
            helper.make_function("my", "Mine", ["a"], ["b"], nodes, imports, ["alpha"]), 20
        )
    )
    for target in (13, NEWEST):
        other = converted(model, target)
        assert [f.opset_imports[""] for f in other.program.functions.values()] == [target]
        assert other.program.opset_imports["my"] == 1
        assert_same(run(other, floats(2, 6)), run(model, floats(2, 6)))


def test_a_function_whose_types_are_unknown_is_refused_by_name() -> None:
    imports = [helper.make_opsetid("", 20)]
    nodes = [helper.make_node("Gelu", ["a"], ["b"], name="act")]
    proto = with_function(helper.make_function("my", "Mine", ["a"], ["b"], nodes, imports), 20)
    del proto.graph.node[0].attribute[:]
    with pytest.raises(InputError, match=r'Gelu "act" .*the type of "a" is not known'):
        lowered(model_of(proto), 17)


def test_custom_domains_are_carried_through_untouched() -> None:
    nodes = [
        helper.make_node("Gelu", ["x"], ["a"], name="act"),
        helper.make_node("Plugin", ["a"], ["y"], name="plugin", domain="vendor", mode="fast"),
    ]
    graph = helper.make_graph(nodes, "one", [tensor("x", [2, 6])], [tensor("y", [2, 6])])
    imports = [helper.make_opsetid("", 20), helper.make_opsetid("vendor", 3)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=9)
    lower = lowered(Model(name="one", program=ir.from_proto(proto)), 13)
    plugin = next(node for node in lower.graph if node.domain == "vendor")
    assert (plugin.op_type, plugin.attributes["mode"].as_string()) == ("Plugin", "fast")
    assert lower.program.opset_imports == {"": 13, "vendor": 3}


def test_statistics_of_a_layer_keep_their_names_as_outputs() -> None:
    case = Case("LayerNormalization", 17, (X, positive(6), floats(6)), outputs=3)
    lower = lowered(model_of(proto_of(case)), 13)
    assert [value.name for value in lower.graph.outputs] == ["o0", "o1", "o2"]


NETWORKS = (
    "vit_tiny_patch16_224", "convnext_tiny", "mobilevit_s", "mobilenet_v3_large",
    "lraspp_mobilenet_v3_large", "shufflenet_v2_x1_0",
)  # fmt: skip


@pytest.fixture(scope="module")
def fill(shared_data: Path) -> Any:
    spec = importlib.util.spec_from_file_location("fill", shared_data / "graphs" / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.fill


@pytest.mark.shared_data
@pytest.mark.parametrize("name", NETWORKS)
def test_well_known_networks_reach_old_opsets(
    name: str, shared_data: Path, fill: Any, tmp_path: Path
) -> None:
    fill(shared_data / "graphs" / f"{name}.onnx", tmp_path / "net.onnx")
    model = load(tmp_path / "net.onnx")
    spec = model.inputs[0]
    feed = np.random.default_rng(0).normal(size=spec.shape).astype(np.float32)
    expected = run(model, feed)
    for target in (17, 16, 13):
        for one, other in zip(run(lowered(model, target), feed), expected, strict=True):
            assert np.abs(one - other).max() < 1e-4 * np.abs(other).max()
