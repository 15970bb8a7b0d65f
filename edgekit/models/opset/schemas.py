"""What ONNX says of each operator's versions, and which new versions changed nothing but types."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

import onnx
import onnx_ir as ir

OLDEST = 7
LATEST = 26
"""The first and the last opset whose boundaries are in the tables."""

_MATHS = (
    "Abs Add Ceil Clip Div Erf Exp Floor Log MatMul Max Mean Min Mod Mul Neg Pow Reciprocal Relu "
    "Sigmoid Sign Sqrt Sub Sum Tanh"
)
_REDUCTIONS = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd "
    "ReduceSumSquare"
)
_SINCE_23 = "Constant ConstantOfShape Flatten Identity If Loop Pad Reshape Scan Shape Size Squeeze "

# opset -> the operators that it gave a new version with the same meaning: more types, other words.
# Whether a node's types, attributes and inputs fit the other version is checked node by node.
_SAME = {
    8: "Max MaxPool Mean Min Sum",
    9: "BatchNormalization Cast Constant Flatten Gemm Greater Less MatMul PRelu",
    10: "AveragePool Dropout MaxPool",
    11: "AveragePool Compress Constant Conv ConvTranspose Equal Gemm If Loop LpPool MaxPool "
    "MaxUnpool NonMaxSuppression Scan",
    12: "ArgMax ArgMin Clip Constant GatherND Max MaxPool Min Pow ReduceMax ReduceMin",
    13: f"{_MATHS} {_REDUCTIONS} ArgMax ArgMin Cast Concat Constant DepthToSpace DequantizeLinear "
    "Dropout Equal Expand Flatten Gather GatherElements GatherND Gemm Greater Identity If IsNaN "
    "LRN Less Loop MeanVarianceNormalization NegativeLogLikelihoodLoss NonZero Pad QuantizeLinear "
    "Reshape Resize ScatterElements ScatterND Shape Size Slice SoftmaxCrossEntropyLoss "
    "SpaceToDepth Tile Transpose",
    14: "Add CumSum Div GRU Identity LSTM Mul RNN Relu Reshape Sub",
    15: "BatchNormalization Pow Shape",
    16: "GreaterOrEqual Identity If LeakyRelu LessOrEqual Loop PRelu Scan ScatterElements "
    "ScatterND Where",
    18: "LpPool OptionalGetElement OptionalHasElement Pad Resize ScatterElements ScatterND",
    19: "AveragePool Cast CastLike Constant DequantizeLinear Equal Identity If Loop Pad "
    "QuantizeLinear Reshape Resize Scan Shape Size",
    20: "ConstantOfShape IsInf IsNaN ReduceMax ReduceMin",
    21: "Cast CastLike Constant ConstantOfShape DequantizeLinear Flatten Identity If Loop Pad "
    "QLinearMatMul QuantizeLinear Reshape Scan Shape Size Squeeze Transpose Unsqueeze",
    22: "Acos Acosh Asin Asinh Atan Atanh AveragePool Bernoulli Conv ConvTranspose Cos Cosh "
    "DeformConv Det Dropout Elu EyeLike GRU GlobalAveragePool GlobalLpPool GlobalMaxPool "
    "GridSample HardSigmoid HardSwish InstanceNormalization LSTM LpNormalization LpPool MaxPool "
    "MaxRoiPool MaxUnpool Mish Multinomial NegativeLogLikelihoodLoss RNN RandomNormal "
    "RandomNormalLike RandomUniform RandomUniformLike RoiAlign Round Selu Sin Sinh Softplus "
    "Softsign Tan ThresholdedRelu",
    23: f"{_SINCE_23} Cast CastLike DequantizeLinear QuantizeLinear Transpose Unsqueeze",
    24: f"{_SINCE_23} Attention Cast CastLike DequantizeLinear QuantizeLinear SplitToSequence "
    "TopK Transpose Unsqueeze",
    25: f"{_SINCE_23} Attention Cast CastLike DequantizeLinear QuantizeLinear Transpose Unsqueeze",
}
SAME: Mapping[int, frozenset[str]] = {n: frozenset(names.split()) for n, names in _SAME.items()}


@cache
def schema_at(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    """The default operator set's definition that holds at `opset`; None where there is none."""
    try:
        return onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None


def begins_at(op_type: str, opset: int) -> bool:
    """Whether a version of the operator begins at exactly this opset."""
    schema = schema_at(op_type, opset)
    return schema is not None and int(schema.since_version) == opset


def misfits(node: ir.Node, opset: int) -> Iterator[str]:
    """What of the node the operator's version at `opset` does not know.

    Inputs and outputs are counted, attributes looked up, element types compared with those that
    are allowed, and one type asked for where the definition has one letter. A value whose type
    nobody knows (in the body of a function) is taken as fitting.
    """
    schema = schema_at(node.op_type, opset)
    if schema is None or schema.deprecated:
        yield f"ONNX has no {node.op_type} at opset {opset}"
        return
    version = f"version {schema.since_version}"
    for name in node.attributes:
        if name not in schema.attributes:
            yield f"{version} has no attribute {name}"
    for name, wanted in schema.attributes.items():
        if wanted.required and name not in node.attributes:
            yield f"{version} wants the attribute {name}"
    allowed = {c.type_param_str: set(c.allowed_type_strs) for c in schema.type_constraints}
    bound: dict[str, str] = {}
    sides = (
        ("input", node.inputs, schema.inputs, schema.min_input),
        ("output", node.outputs, schema.outputs, schema.min_output),
    )
    for side, values, formals, fewest in sides:
        count = max((i + 1 for i, v in enumerate(values) if v is not None and v.name), default=0)
        if count < fewest:
            yield f"{version} wants {fewest} {side}s, this one has {count}"
        for index, value in enumerate(values[:count]):
            last = formals[-1] if formals else None
            formal = formals[index] if index < len(formals) else last
            variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
            if formal is None or (index >= len(formals) and formal.option != variadic):
                yield f"{version} has {len(formals)} {side}s, this one has {count}"
                break
            kind = type_name(value.type) if value is not None else ""
            if not kind:
                continue
            if kind not in allowed.get(formal.type_str, {formal.type_str}):
                yield f"{version} does not take {kind} as {side} {formal.name}"
            elif formal.is_homogeneous and bound.setdefault(formal.type_str, kind) != kind:
                yield f"{version} wants one type, not {bound[formal.type_str]} and {kind}"


def type_name(kind: ir.TypeProtocol | None) -> str:
    """The type as ONNX's definitions write it, as in `tensor(float)`; "" where it is unknown."""
    if isinstance(kind, ir.SequenceType):
        return f"seq({type_name(kind.elem_type)})"
    if isinstance(kind, ir.OptionalType):
        return f"optional({type_name(kind.elem_type)})"
    if kind is None or kind.dtype == ir.DataType.UNDEFINED:
        return ""
    return f"tensor({kind.dtype.name.lower()})"
