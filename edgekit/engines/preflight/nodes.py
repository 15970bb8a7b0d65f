"""The nodes and tensors of a graph that TensorRT of one version refuses, or may refuse."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import onnx_ir as ir

from edgekit.engines.base import EngineRequest, Shape, input_extents
from edgekit.engines.preflight import dla_rules, operators
from edgekit.engines.preflight.answers import Answer, Line, NodeFinding, line_of
from edgekit.errors import InputError
from edgekit.models.cost import sizes
from edgekit.models.model import Model, constant_of
from edgekit.quantize import lint

_TYPED_BY_GRAPH = (11, 0)
_INT64_IS_NATIVE = (10, 0)
_UINT8_INPUTS = (8, 5)

# A type that needs a version and a compute capability: DataType's members by version, and NVIDIA's
# table of precisions.
_NEEDS: dict[ir.DataType, tuple[operators.Version, tuple[int, int]]] = {
    ir.DataType.BFLOAT16: ((10, 0), (8, 0)),
    ir.DataType.INT4: ((10, 0), (0, 0)),
    ir.DataType.FLOAT8E4M3FN: ((8, 6), (8, 9)),
    ir.DataType.FLOAT4E2M1: ((10, 8), (10, 0)),
}
_HAS = frozenset({
    ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE, ir.DataType.INT8,
    ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.UINT8,
})  # fmt: skip


def of_operators(model: Model, version: operators.Version) -> tuple[NodeFinding, ...]:
    """The nodes whose operator the version has not, or of which no source says so."""
    found = []
    for node in model.graph.all_nodes():
        refusal = operators.refusal(node, version)
        reason = refusal or operators.doubt(node)
        if reason:
            found.append(
                NodeFinding(
                    node=operators.name_of(node), operator=node.op_type, check="operators",
                    answer=Answer.REFUSED if refusal else Answer.UNKNOWN, reason=reason,
                    remedy=operators.remedy(node),
                )
            )  # fmt: skip
    return tuple(found)


def of_types(
    request: EngineRequest, model: Model, version: operators.Version
) -> tuple[NodeFinding, ...]:
    """The tensors of a type that the version or the device has not."""
    capability = operators.version_numbers(str(request.target.compute_capability))
    found = []
    for value in _values(model):
        reason = _type_refusal(value, version, capability)
        if reason:
            producer = value.producer()
            found.append(
                NodeFinding(
                    node=value.name or "a tensor without a name",
                    operator=producer.op_type if producer is not None else "",
                    check="types", answer=Answer.REFUSED, reason=reason,
                    remedy="Cast it to float32, float16, int8 or int32 where the model is made.",
                )
            )  # fmt: skip
    return tuple(found)


def conversions(model: Model, version: operators.Version) -> str:
    """What the runtime does to types that it takes: wide floats and, before 10, wide integers."""
    values = list(_values(model))
    said = []
    if any(value.dtype == ir.DataType.DOUBLE for value in values):
        said.append("float64 is computed in float32")
    wide = [v for v in (*model.graph.inputs, *model.graph.outputs) if v.dtype == ir.DataType.INT64]
    if wide and version < _INT64_IS_NATIVE:
        said.append("int64 inputs and outputs become int32")
    return "; ".join(said)


def _type_refusal(
    value: ir.Value, version: operators.Version, capability: operators.Version
) -> str:
    kind = value.dtype
    if kind is None:
        return ""
    if kind in _NEEDS:
        since, fast = _NEEDS[kind]
        if version < since:
            return f"TensorRT has {kind.name} from {since[0]}.{since[1]} on"
        if (0, 0) < capability < fast:
            return f"{kind.name} needs compute capability {fast[0]}.{fast[1]}"
        return ""
    if kind not in _HAS:
        return f"TensorRT has no {kind.name}"
    if kind == ir.DataType.UINT8:
        return _uint8_refusal(value, version)
    return ""


def _uint8_refusal(value: ir.Value, version: operators.Version) -> str:
    """Bytes may only come in or go out, beside a Cast; Q/DQ have rules of their own."""
    producer = value.producer()
    kinds = {node.op_type for node, _ in value.uses()}
    if kinds & {"DequantizeLinear", "QuantizeLinear"} or (
        producer is not None and producer.op_type == "QuantizeLinear"
    ):
        return ""
    comes_in = value.is_graph_input() and kinds <= {"Cast"}
    goes_out = value.is_graph_output() and producer is not None and producer.op_type == "Cast"
    if (comes_in or goes_out) and version >= _UINT8_INPUTS:
        return ""
    if comes_in or goes_out:
        return "TensorRT has UINT8 inputs and outputs from 8.5 on"
    return "TensorRT has UINT8 only as an input or output of the network, beside a Cast"


def of_shapes(request: EngineRequest, model: Model) -> tuple[NodeFinding, ...]:
    """The nodes whose sizes contradict each other at a size asked for, or depend on what is fed."""
    extents = input_extents(model.inputs, request)
    found: dict[tuple[str, str], NodeFinding] = {}
    tried: list[Mapping[str, Shape]] = []
    for place, called in enumerate(("smallest", "usual", "largest")):
        shapes = {name: extent[place] for name, extent in extents.items()}
        if shapes in tried:
            continue
        tried.append(shapes)
        for finding in _shape_findings(model, shapes, called):
            found.setdefault((finding.node, finding.answer.value), finding)
    return tuple(found.values())


def _shape_findings(
    model: Model, shapes: Mapping[str, Shape], called: str
) -> Iterator[NodeFinding]:
    try:
        known = sizes.forms(model, shapes=shapes)
    except InputError as error:
        yield NodeFinding(
            node=model.name, operator="", check="shapes", answer=Answer.UNKNOWN,
            reason=f"at the {called} size: {error.what}: {error.got}",
            remedy="Choose other sizes, or export the model with dynamic ones.",
        )  # fmt: skip
        return
    for node in model.graph:
        if node.op_type == "Reshape" and (said := _volumes(node, known)):
            yield NodeFinding(
                node=operators.name_of(node), operator="Reshape", check="shapes",
                answer=Answer.REFUSED, reason=f"at the {called} size {said}",
                remedy="Its target shape is fixed: export the model with a dynamic batch, or "
                "build it for that one size.",
            )  # fmt: skip
        elif _depends_on_values(node, known):
            yield NodeFinding(
                node=operators.name_of(node), operator=node.op_type, check="shapes",
                answer=Answer.UNKNOWN, reason="the sizes of its output are not known beforehand",
                remedy="Where they depend on what is fed, no CUDA graph holds it and its memory "
                "cannot be planned: cut the model before it, or let the device decide.",
            )  # fmt: skip


def _depends_on_values(node: ir.Node, known: sizes.Forms) -> bool:
    """Whether the sizes of all that comes in are known and those of an output are not."""
    open_ones = [v for v in node.outputs if v in known and v.uses() and known[v].sizes is None]
    open_ones += [v for v in node.outputs if v.is_graph_output() and known[v].sizes is None]
    return bool(open_ones) and all(
        known[v].sizes is not None for v in node.inputs if v is not None and v in known
    )


def _volumes(node: ir.Node, known: sizes.Forms) -> str:
    """How a Reshape to a stored shape contradicts what comes in; empty where it does not."""
    source = node.inputs[0]
    target = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
    before = known[source].sizes if source is not None and source in known else None
    if before is None or target is None or not (target > 0).all():
        return ""
    after = [int(size) for size in target]
    if math.prod(before) == math.prod(after):
        return ""
    return f"it would make {after} of {list(before)}"


def of_dla(request: EngineRequest, model: Model) -> tuple[NodeFinding, ...]:
    """The nodes that a DLA does not take at the size to optimise for."""
    shapes = {name: best for name, (_, best, _) in input_extents(model.inputs, request).items()}
    try:
        known = sizes.forms(model, shapes=shapes)
    except InputError:  # the check of shapes says so
        known = {}
    return dla_rules.fallbacks(model, known)


def of_pairs(
    request: EngineRequest, model: Model, version: operators.Version
) -> tuple[Line, tuple[NodeFinding, ...]]:
    """The line about Q/DQ, and the nodes that the parser would not read.

    The rest of the lint is advice, and only counted.
    """
    found = lint.lint(model, lint.Reader(runtime="tensorrt", version=version))
    kinds = {operators.name_of(node): node.op_type for node in model.graph}
    broken = tuple(
        NodeFinding(
            node=one.node, operator=kinds.get(one.node, ""), check="Q/DQ", answer=Answer.REFUSED,
            reason=one.said, remedy=one.fix,
        )
        for one in found
        if one.severity == "error"
    )  # fmt: skip
    count = sum(node.op_type in lint.QDQ for node in model.graph)
    advice = sum(one.severity == "warning" for one in found)
    more = f"; {advice} warnings, which edgekit lint lists" if advice else ""
    line = line_of("Q/DQ", broken, f"{count} nodes, no rule broken{more}")
    whole = []
    if request.precision == "int8" and not count:
        whole.append("INT8 was asked for, and the graph has no Q/DQ: it would not be INT8")
    if request.precision != "int8" and count and version < _TYPED_BY_GRAPH:
        whole.append(f"the graph has Q/DQ, which TensorRT builds as int8, not {request.precision}")
    if whole:
        said = "; ".join([*whole, *([line.said] if broken else [])])
        line = Line(check="Q/DQ", answer=Answer.REFUSED, said=said)
    return line, broken


def _values(model: Model) -> Iterator[ir.Value]:
    graph = model.graph
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph.all_nodes():
        yield from node.outputs
