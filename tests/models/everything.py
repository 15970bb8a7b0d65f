"""An ONNX file that uses every field of the format that a file may use."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from edgekit.values import Array

_DIALECT = "example.custom"


def noted(message: object, *words: str) -> None:
    """Adds metadata to a message, in an order that is not alphabetical."""
    for word in reversed(words):
        entry = message.metadata_props.add()  # type: ignore[attr-defined]
        entry.key, entry.value = word, f"about {word}"


def everything(seed: int = 0) -> onnx.ModelProto:
    """A model that ONNX's checker takes, of the newest IR version; small and large tensors."""
    rng = np.random.default_rng(seed)
    graph = onnx.GraphProto(name="everything", doc_string="a graph")
    noted(graph, "z graph", "a graph")
    graph.input.add().CopyFrom(
        helper.make_tensor_value_info(
            "x", TensorProto.FLOAT, ["n", 8], "an input", ["BATCH", "FEATURE"]
        )
    )
    graph.input[0].type.denotation = "TENSOR"
    noted(graph.input[0], "input")
    graph.output.add().CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", None]))
    graph.output.add().CopyFrom(
        helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["batch", "d"])
    )
    graph.initializer.append(tensor(rng.normal(size=(8, 6)), "plain"))
    graph.initializer.append(tensor(rng.normal(size=(6, 4096)), "large"))
    graph.initializer[0].doc_string = "a weight"
    noted(graph.initializer[0], "b weight", "a weight")
    noted(graph.initializer[1], "large weight")
    graph.initializer.extend(of_every_type())
    graph.sparse_initializer.append(sparse(rng, "sparse", (4096, 3)))
    made = helper.make_tensor_value_info("first", TensorProto.FLOAT, ["rows", None], "first")
    noted(made, "value")
    graph.value_info.append(made)
    node = helper.make_node("MatMul", ["x", "plain"], ["first"], name="one", doc_string="a node")
    noted(node, "z node", "a node")
    graph.node.append(node)
    graph.node.append(helper.make_node("MatMul", ["first", "large"], ["second"], name=""))
    graph.node.append(helper.make_node("MatMul", ["second", "sparse"], ["third"], name="same"))
    graph.node.append(helper.make_node("Scaled", ["third"], ["y"], "same", domain="example.body",
                                       overload="loud", amount=0.5))  # fmt: skip
    graph.node.append(custom_node(rng))
    graph.node.append(helper.make_node("Dropout", ["x", "", ""], ["kept", ""], name="dropout"))
    graph.node.append(helper.make_node("Identity", ["kept"], ["inner"], name="identity"))
    graph.node.append(helper.make_node("Identity", ["x"], ["dead"], name="dead"))
    note = graph.quantization_annotation.add(tensor_name="first")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="float16")
    note.quant_parameter_tensor_names.add(key="ZERO_POINT_TENSOR", value="uint8")
    note = graph.quantization_annotation.add(tensor_name="plain")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="float16")
    note = graph.quantization_annotation.add(tensor_name="y")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="float16")
    opsets = [("", 23), (_DIALECT, 3), ("example.body", 1)]
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*entry) for entry in opsets],
        ir_version=11, producer_name="a producer", producer_version="1.2", model_version=7,
        domain="example", doc_string="a model", functions=[scaled()],
    )  # fmt: skip
    noted(model, "z model", "a model")
    model.configuration.add(name="two devices", num_devices=2, device=["one", "two"])
    placed = graph_node(model, "one").device_configurations.add(configuration_id="two devices")
    placed.pipeline_stage = 1
    spec = placed.sharding_spec.add(tensor_name="plain", device=[0, 1])
    spec.sharded_dim.add(axis=0).simple_sharding.add(dim_value=4, num_shards=2)
    training = model.training_info.add()
    training.initialization.CopyFrom(
        helper.make_graph([helper.make_node("Identity", ["plain"], ["fresh"])], "begin", [],
                          [helper.make_tensor_value_info("fresh", TensorProto.FLOAT, [8, 6])])
    )  # fmt: skip
    training.initialization_binding.add(key="plain", value="fresh")
    return model


def graph_node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """The node of this name."""
    return next(node for node in model.graph.node if node.name == name)


def tensor(array: Array, name: str) -> onnx.TensorProto:
    """A float32 tensor."""
    return numpy_helper.from_array(np.asarray(array, np.float32), name)


def of_every_type() -> list[onnx.TensorProto]:
    """A tensor of each type, in raw data and in the typed field of the message."""
    found = []
    for name, number in TensorProto.DataType.items():
        if number == TensorProto.UNDEFINED:
            continue
        kind = helper.tensor_dtype_to_np_dtype(number)
        low = "abc" if number == TensorProto.STRING else name.lower()
        if number == TensorProto.STRING:
            found.append(helper.make_tensor("string", number, [3], [b"a", "ä".encode(), b"\xff"]))
            continue
        array = np.array([1, 0, 1, 1, 0], np.float32).astype(kind)
        raw = numpy_helper.from_array(array, low)
        found.append(raw)
        typed = helper.make_tensor(f"{low}.typed", number, [5], array)
        found.append(typed)
    return found


def sparse(rng: np.random.Generator, name: str, shape: tuple[int, int]) -> onnx.SparseTensorProto:
    """Five values at linear places."""
    places = np.sort(rng.choice(shape[0] * shape[1], 5, replace=False)).astype(np.int64)
    return helper.make_sparse_tensor(
        tensor(rng.normal(size=5), name), numpy_helper.from_array(places, f"{name}.at"), list(shape)
    )


def custom_node(rng: np.random.Generator) -> onnx.NodeProto:
    """A node of an unknown operator with an attribute of each type."""
    inside = helper.make_graph(
        [helper.make_node("Add", ["first", "b"], ["out"], name="add"),
         helper.make_node("Constant", [], ["c"], value=tensor(rng.normal(size=3), "c"))],
        "inside", [], [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["r", 6])],
        [tensor(rng.normal(size=(1, 6)), "b")], doc_string="a subgraph",
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["out"])], "other", [],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 8])],
        sparse_initializer=[sparse(rng, "thin", (2, 5))],
    )  # fmt: skip
    types = [
        helper.make_tensor_type_proto(TensorProto.FLOAT, ["a", 3]),
        helper.make_sequence_type_proto(helper.make_tensor_type_proto(TensorProto.INT64, None)),
        helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.BOOL, [])),
    ]
    node = helper.make_node(
        "Anything", ["first", "", "plain"], ["custom"], domain=_DIALECT, name="custom",
        float=0.1, int=-(2**63), string="text ä", tensor=tensor(rng.normal(size=(2, 3)), "t"),
        graph=inside, floats=[0.1, float("inf")], ints=[1, -2], strings=["a", ""],
        tensors=[tensor(rng.normal(size=2), ""), tensor(rng.normal(size=40_000), "large too")],
        graphs=[other, inside], sparse=sparse(rng, "s", (9, 9)), type=types[0],
    )  # fmt: skip
    node.attribute.append(
        AttributeProto(name="bytes", type=AttributeProto.STRING, s=b"\xff\xfe\x00")
    )
    node.attribute.append(
        AttributeProto(name="many bytes", type=AttributeProto.STRINGS, strings=[b"\xff", b"ok"])
    )
    node.attribute.append(
        AttributeProto(name="disguised", type=AttributeProto.STRING, s=b"edgekit.carried:AAAA")
    )
    node.attribute.append(
        AttributeProto(name="types", type=AttributeProto.TYPE_PROTOS, type_protos=types)
    )
    many = AttributeProto(name="sparse ones", type=AttributeProto.SPARSE_TENSORS)
    many.sparse_tensors.append(sparse(rng, "t", (3, 3)))
    node.attribute.append(many)
    node.attribute[0].doc_string = "an attribute"
    return node


def scaled() -> onnx.FunctionProto:
    """y = x * amount, with a default and a reference to the attribute."""
    constant = helper.make_node("Constant", [], ["factor"], name="factor")
    constant.attribute.append(
        AttributeProto(name="value_float", type=AttributeProto.FLOAT, ref_attr_name="amount")
    )
    body = [constant, helper.make_node("Mul", ["in", "factor"], ["out"], name="mul")]
    function = helper.make_function(
        "example.body", "Scaled", ["in"], ["out"], body, [helper.make_opsetid("", 23)],
        ["unused"], [helper.make_attribute("amount", 2.0)], "a function", "loud",
        [helper.make_tensor_value_info("factor", TensorProto.FLOAT, [])],
    )  # fmt: skip
    noted(function, "z function", "a function")
    return function
