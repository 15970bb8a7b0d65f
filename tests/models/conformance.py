"""Runs the node cases of ONNX's conformance suite through the executor."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from edgekit.errors import EdgekitError
from edgekit.models.model import Model

# The operators that the executor promises.
_LISTED = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization Cast
Ceil Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos Cosh CumSum DepthToSpace
DequantizeLinear Div Dropout Einsum Elu Equal Erf Exp Expand Flatten Floor GRU Gather
GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual
GridSample GroupNormalization HardSigmoid HardSwish Hardmax Identity If InstanceNormalization
LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool
MatMul Max MaxPool Mean Min Mish Mod Mul Neg NonMaxSuppression NonZero Not OneHot Or PRelu Pad
Pow QuantizeLinear RNN Range Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax
ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize RoiAlign Round
ScatterElements ScatterND Selu Shape Sigmoid Sign Sin Sinh Size Slice Softmax Softplus Softsign
SpaceToDepth Split Sqrt Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK Transpose Trilu
Unsqueeze Upsample Where Xor
"""
LISTED = frozenset(_LISTED.split())


@dataclass(frozen=True)
class Outcome:
    """One case: `reason` is empty where it passed."""

    case: str
    operator: str
    reason: str


def cases() -> list[Any]:
    """All node cases of the installed onnx."""
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found: list[Any] = load_model_tests(kind="node")
    return found


def operator_of(case: Any) -> str:
    """The operator that a case is about; a model of several nodes counts for its name's."""
    nodes = case.model.graph.node
    kinds = {f"{n.domain}::{n.op_type}" if n.domain else n.op_type for n in nodes}
    if len(kinds) == 1:
        return str(kinds.pop())
    return "(several)"


def run_all(listed_only: bool = False) -> Iterator[Outcome]:
    """The outcome of each case, in the suite's order."""
    for case in cases():
        operator = operator_of(case)
        if not listed_only or operator in LISTED:
            yield Outcome(case.name, operator, run(case))


def run(case: Any) -> str:
    """Why a case fails, or nothing."""
    try:
        model = Model(name=case.name, program=ir.from_proto(case.model))
    except (ValueError, TypeError, KeyError) as error:
        return f"not read: {error}"
    for inputs, expected in case.data_sets:
        try:
            found = execute(model, inputs)
        except EdgekitError as error:
            return f"refused: {error.what} {error.got}".strip()
        except Exception as error:  # whatever it is, it is this case's outcome
            return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        for one, other in zip(found, expected, strict=True):
            reason = difference(one, other, case.rtol, case.atol)
            if reason:
                return reason
    return ""


def execute(model: Model, inputs: list[Any]) -> list[Any]:
    """The executor's outputs; the inputs as torch carries them."""
    import torch

    from edgekit.models.operators.types import tensor_of
    from edgekit.models.torch_module import torch_module

    tensors = [tensor_of(_array(one)) for one in inputs]
    with torch.no_grad():
        return list(torch_module(model)(*tensors))


def difference(found: Any, expected: Any, rtol: float, atol: float) -> str:
    """How a tensor differs from the suite's array, or nothing."""
    import torch

    from edgekit.models.operators.types import tensor_of

    if not isinstance(expected, (np.ndarray, np.generic, onnx.TensorProto)):
        return f"the output is {type(expected).__name__}, no tensor"
    wanted = tensor_of(_array(expected))
    if found.dtype != wanted.dtype:
        return f"{found.dtype} instead of {wanted.dtype}"
    if tuple(found.shape) != tuple(wanted.shape):
        return f"shape {tuple(found.shape)} instead of {tuple(wanted.shape)}"
    one, other = found.detach().to(torch.float64), wanted.to(torch.float64)
    if not torch.allclose(one, other, rtol=rtol, atol=atol, equal_nan=True):
        worst = (one - other).abs().nan_to_num(nan=float("inf")).max().item()
        return f"differs by up to {worst:.3g}"
    return ""


def _array(stored: Any) -> Any:
    """The array of a tensor; the suite keeps those of rare types as protos."""
    if isinstance(stored, onnx.TensorProto):
        return onnx.numpy_helper.to_array(stored)
    return np.asarray(stored)
