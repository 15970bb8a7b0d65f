"""Whether two ONNX files say the same, field by field: what a round trip through edgekit owes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

ADDED_KEYS = {"edgekit.history", "edgekit.preprocessing"}


def assert_same_model(a: onnx.ModelProto, b: onnx.ModelProto) -> None:
    """Fails where `b` says anything else than `a`, but for what edgekit may add.

    That is types of inner values that `a` does not declare, and edgekit's own metadata. Tensors are
    compared by name, type, shape, notes and value, wherever their values are stored.
    """
    for name in ("ir_version", "producer_name", "producer_version", "domain", "model_version",
                 "doc_string"):  # fmt: skip
        _equal(getattr(a, name), getattr(b, name), name)
    _equal(_opsets(a), _opsets(b), "opset_import")
    _equal(_pairs(a), Counter(p for p in _pairs(b) if p[0] not in ADDED_KEYS), "metadata_props")
    _equal(list(a.configuration), list(b.configuration), "configuration")
    _graph(a.graph, b.graph, "graph")
    _each(a.training_info, b.training_info, "training_info", _training)
    _each(a.functions, b.functions, "functions", _function)


def _equal(a: object, b: object, path: str) -> None:
    assert a == b, f"{path}: {a!r:.300} became {b!r:.300}"


def _each(a: Any, b: Any, path: str, compare: Any) -> None:
    _equal(len(a), len(b), f"len({path})")
    for index, (one, other) in enumerate(zip(a, b, strict=True)):
        compare(one, other, f"{path}[{index}]")


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _opsets(owner: Any) -> list[tuple[str, int]]:
    return sorted((_domain(entry.domain), entry.version) for entry in owner.opset_import)


def _pairs(owner: Any) -> Counter[tuple[str, str]]:
    return Counter((entry.key, entry.value) for entry in owner.metadata_props)


def _training(a: onnx.TrainingInfoProto, b: onnx.TrainingInfoProto, path: str) -> None:
    _graph(a.initialization, b.initialization, f"{path}.initialization")
    _graph(a.algorithm, b.algorithm, f"{path}.algorithm")
    for name in ("initialization_binding", "update_binding"):
        _equal(list(getattr(a, name)), list(getattr(b, name)), f"{path}.{name}")


def _graph(a: onnx.GraphProto, b: onnx.GraphProto, path: str) -> None:
    for name in ("name", "doc_string"):
        _equal(getattr(a, name), getattr(b, name), f"{path}.{name}")
    _equal(_pairs(a), _pairs(b), f"{path}.metadata_props")
    _each(a.node, b.node, f"{path}.node", _node)
    _each(a.input, b.input, f"{path}.input", _value)
    _each(a.output, b.output, f"{path}.output", _value)
    _each(a.initializer, b.initializer, f"{path}.initializer", _tensor)
    _each(a.sparse_initializer, b.sparse_initializer, f"{path}.sparse_initializer", _sparse)
    _equal(_annotations(a), _annotations(b), f"{path}.quantization_annotation")
    _value_info(a, b, path, Counter(name for node in a.node for name in node.output))


def _annotations(graph: onnx.GraphProto) -> Counter[Any]:
    return Counter(
        (note.tensor_name, frozenset((e.key, e.value) for e in note.quant_parameter_tensor_names))
        for note in graph.quantization_annotation
    )


def _value_info(a: Any, b: Any, path: str, made: Counter[str]) -> None:
    found = {info.name: info for info in b.value_info}
    assert len(found) == len(b.value_info), f"{path}.value_info repeats a name"
    initializers = {tensor.name for tensor in getattr(a, "initializer", ())}
    for info in a.value_info:
        if info.name in made or info.name in initializers:
            _value(info, found[info.name], f'{path}.value_info["{info.name}"]')


def _value(a: onnx.ValueInfoProto, b: onnx.ValueInfoProto, path: str) -> None:
    _equal(a.name, b.name, f"{path}.name")
    _equal(a.doc_string, b.doc_string, f"{path}.doc_string")
    _equal(a.type, b.type, f"{path}.type")
    _equal(_pairs(a), _pairs(b), f"{path}.metadata_props")


def _function(a: onnx.FunctionProto, b: onnx.FunctionProto, path: str) -> None:
    for name in ("name", "overload", "doc_string"):
        _equal(getattr(a, name), getattr(b, name), f"{path}.{name}")
    _equal(_domain(a.domain), _domain(b.domain), f"{path}.domain")
    for name in ("input", "output", "attribute"):
        _equal(list(getattr(a, name)), list(getattr(b, name)), f"{path}.{name}")
    _equal(_opsets(a), _opsets(b), f"{path}.opset_import")
    _equal(_pairs(a), _pairs(b), f"{path}.metadata_props")
    _each(a.node, b.node, f"{path}.node", _node)
    _each(a.attribute_proto, b.attribute_proto, f"{path}.attribute_proto", _attribute)
    _value_info(a, b, path, Counter(name for node in a.node for name in node.output))


def _node(a: onnx.NodeProto, b: onnx.NodeProto, path: str) -> None:
    for name in ("name", "op_type", "overload", "doc_string"):
        _equal(getattr(a, name), getattr(b, name), f"{path}.{name}")
    _equal(_domain(a.domain), _domain(b.domain), f"{path}.domain")
    _equal(list(a.input), list(b.input), f"{path}.input")
    _equal(_without_trailing(a.output), _without_trailing(b.output), f"{path}.output")
    _equal(_pairs(a), _pairs(b), f"{path}.metadata_props")
    _equal(list(a.device_configurations), list(b.device_configurations), f"{path}.devices")
    _each(a.attribute, b.attribute, f"{path}.attribute", _attribute)


def _without_trailing(names: Any) -> list[str]:
    kept = list(names)
    while kept and not kept[-1]:
        kept.pop()
    return kept


def _attribute(a: onnx.AttributeProto, b: onnx.AttributeProto, path: str) -> None:
    for name in ("name", "type", "ref_attr_name", "doc_string", "i", "s"):
        _equal(getattr(a, name), getattr(b, name), f"{path}.{name}")
    _equal(np.float32(a.f).tobytes(), np.float32(b.f).tobytes(), f"{path}.f")
    for name in ("ints", "strings"):
        _equal(list(getattr(a, name)), list(getattr(b, name)), f"{path}.{name}")
    floats = [np.asarray(list(m.floats), np.float32).tobytes() for m in (a, b)]
    _equal(*floats, f"{path}.floats")
    _each(a.type_protos, b.type_protos, f"{path}.type_protos", _equal)
    for name, compare in (
        ("t", _tensor),
        ("g", _graph),
        ("tp", _equal),
        ("sparse_tensor", _sparse),
    ):
        _equal(a.HasField(name), b.HasField(name), f"{path}.{name} is there")
        if a.HasField(name):
            compare(getattr(a, name), getattr(b, name), f"{path}.{name}")
    for name, compare in (("tensors", _tensor), ("graphs", _graph), ("sparse_tensors", _sparse)):
        _each(getattr(a, name), getattr(b, name), f"{path}.{name}", compare)


def _sparse(a: onnx.SparseTensorProto, b: onnx.SparseTensorProto, path: str) -> None:
    _equal(list(a.dims), list(b.dims), f"{path}.dims")
    _tensor(a.values, b.values, f"{path}.values")
    _tensor(a.indices, b.indices, f"{path}.indices")


def _tensor(a: onnx.TensorProto, b: onnx.TensorProto, path: str) -> None:
    for name in ("name", "data_type", "doc_string"):
        _equal(getattr(a, name), getattr(b, name), f"{path}.{name}")
    _equal(list(a.dims), list(b.dims), f"{path}.dims")
    _equal(_pairs(a), _pairs(b), f"{path}.metadata_props")
    if a.data_type == onnx.TensorProto.STRING:
        _equal(list(a.string_data), list(b.string_data), path)
        return
    one, other = numpy_helper.to_array(a), numpy_helper.to_array(b)
    _equal(one.dtype, other.dtype, f"{path}: type")
    assert one.tobytes() == other.tobytes(), f"{path}: other values"
