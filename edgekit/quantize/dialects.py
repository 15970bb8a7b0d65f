"""Where and how one runtime wants its QuantizeLinear and DequantizeLinear: rules as data.

Sources: TensorRT's guide, "Q/DQ Layer-Placement Recommendations" (explicit quantization), and its
ONNX parser; for ONNX Runtime the fusions of its CPU provider as seen with 1.32 (a Conv, its ReLU
and the Q behind it become one QLinearConv only where the zero point is the range's minimum).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace

from edgekit.errors import InputError


class Side(enum.Enum):
    """Which tensors of an operator get a Q/DQ pair."""

    INPUTS = "inputs"
    BOTH = "both"
    SKIP = "skip"  # of a residual Add: the input that no convolution ends in


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """The integer types, zero points and places of Q/DQ for one runtime."""

    name: str
    activation: str  # "int8" or "uint8"
    symmetric: bool  # activations: zero point 0
    weight: str  # "int8" (zero point 0) or "uint8" (zero point 128), per output channel
    stored_weights: bool  # True: integers behind one DequantizeLinear; False: floats, Q and DQ
    integer_bias: bool  # int32 with scale s_x * s_w[k], zero point 0; else it stays floating point
    places: Mapping[str, Side]
    shared_scale: Set[str]  # operators whose inputs and output must have one scale
    fused_activations: Set[str]  # no Q/DQ between an operator of `places` and one of these

    def as_json(self) -> dict[str, object]:
        """Every rule, JSON-ready and in the same order in every process."""
        found: dict[str, object] = {}
        for name, value in vars(self).items():
            if isinstance(value, Mapping):
                found[name] = {op: side.value for op, side in sorted(value.items())}
            else:
                found[name] = sorted(value) if isinstance(value, Set) else value
        return found


_WEIGHTED = ("Conv", "Gemm", "MatMul")
_COPIES = frozenset({"MaxPool", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose"})

TENSORRT = Dialect(
    name="tensorrt",
    activation="int8",
    symmetric=True,
    weight="int8",
    stored_weights=True,
    integer_bias=False,
    places={
        **dict.fromkeys((*_WEIGHTED, "ConvTranspose"), Side.INPUTS),
        "Add": Side.SKIP,
        "Concat": Side.INPUTS,
        "AveragePool": Side.BOTH,
        "GlobalAveragePool": Side.BOTH,
    },
    shared_scale=_COPIES | {"Concat"},
    fused_activations=frozenset(),
)

_ONNXRUNTIME = Dialect(
    name="onnxruntime",
    activation="uint8",
    symmetric=False,
    weight="int8",
    stored_weights=True,
    integer_bias=True,
    places=dict.fromkeys(
        (*_WEIGHTED, "Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "MaxPool"),
        Side.BOTH,
    ),
    shared_scale=_COPIES,
    fused_activations=frozenset({"Relu"}),
)

_VNNI = frozenset({"avx512_vnni", "avx_vnni"})


def tensorrt_dialect(version: str) -> Dialect:
    """TensorRT's dialect for that version: before 10 its parser refuses INT8 weights."""
    return replace(TENSORRT, stored_weights=int(version.split(".", maxsplit=1)[0]) >= 10)


def onnxruntime_dialect(cpu_flags: Set[str], *, arm: bool) -> Dialect:
    """ONNX Runtime's dialect for that processor.

    Without VNNI the 8-bit kernels of x86 add two products of uint8 and int8 in 16 bits and
    saturate; uint8 weights with zero point 128 go through another kernel, which does not. On ARM
    both sides are int8.
    """
    if arm:
        return replace(_ONNXRUNTIME, name="onnxruntime-s8s8", activation="int8")
    if cpu_flags & _VNNI:
        return replace(_ONNXRUNTIME, name="onnxruntime-u8s8")
    return replace(_ONNXRUNTIME, name="onnxruntime-u8u8", weight="uint8")


def dialect_named(name: str, *, version: str, cpu_flags: Set[str], arm: bool) -> Dialect:
    """The dialect that a target's file names. Raises InputError for an unknown one."""
    if name == "tensorrt":
        return tensorrt_dialect(version)
    if name == "onnxruntime":
        return onnxruntime_dialect(cpu_flags, arm=arm)
    raise InputError(f'there is no dialect called "{name}"', wanted="tensorrt, onnxruntime")
