"""Where and how one runtime wants its QuantizeLinear and DequantizeLinear: rules as data."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Set
from dataclasses import dataclass, replace
from typing import Literal

from edgekit.errors import InputError


class Side(enum.Enum):
    """Which tensors of an operator get a Q/DQ pair, where the operator works on integers at all."""

    INPUTS = "inputs"  # the reader of the output decides about the output
    BOTH = "both"
    JOIN = "join"  # all inputs; for a Concat that wants one scale
    SKIP = "skip"  # of a residual Add: the input that no convolution ends in
    COPY = "copy"  # input and output, on one grid: nothing is computed


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """The integer types, zero points and places of Q/DQ for one runtime.

    `opsets` are the lowest and highest operator set that its files may have. `sources` say where
    the rules are from.
    """

    name: str
    runtime: Literal["tensorrt", "onnxruntime"]
    activation: str  # "int8" or "uint8"
    symmetric: bool  # activations: zero point 0
    weight: str  # "int8" (zero point 0) or "uint8" (zero point 128), per output channel
    stored_weights: bool  # True: integers behind one DequantizeLinear; False: floats, Q and DQ
    integer_bias: bool  # int32 with scale s_x * s_w[k], zero point 0; else it stays floating point
    quantized_outputs: bool  # a kernel is an integer one only if its output is quantized too
    places: Mapping[str, Side]
    shared_scale: Set[str]  # operators whose inputs and output must have one scale
    fused_activations: Set[str]  # absorbed by the grid of their output, when it ends where they do
    opsets: tuple[int, int]
    half_precision: bool = False  # what is not integer shall be float16 (`quantize.fp16`)
    adds_in_16_bits: bool = False  # two products, before 32: see `quantize.saturation`
    written: Literal["qdq", "cache"] = "qdq"  # "cache": a calibration cache beside a float graph
    sources: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        """Every rule, JSON-ready and in the same order in every process."""
        found: dict[str, object] = {}
        for name, value in vars(self).items():
            if isinstance(value, Mapping):
                found[name] = {op: side.value for op, side in sorted(value.items())}
            elif isinstance(value, (Set, tuple)):
                found[name] = sorted(value) if isinstance(value, Set) else list(value)
            else:
                found[name] = value
        return found


_COPIES = frozenset({
    "DepthToSpace", "Flatten", "Gather", "MaxPool", "Reshape", "Resize", "Slice", "Split",
    "Squeeze", "Transpose", "Unsqueeze",
})  # fmt: skip

_GUIDE = 'TensorRT guide, "Q/DQ Layer-Placement Recommendations" (explicit quantization)'
_PARSER = "onnx-tensorrt, importers of QuantizeLinear and DequantizeLinear, 8.2-GA to 10.1-GA"

TENSORRT = Dialect(
    name="tensorrt-10",
    runtime="tensorrt",
    activation="int8",
    symmetric=True,
    weight="int8",
    stored_weights=True,
    integer_bias=False,
    quantized_outputs=False,
    places={
        **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), Side.INPUTS),
        **dict.fromkeys(_COPIES, Side.COPY),
        "Add": Side.SKIP,
        "Concat": Side.JOIN,
        "Mul": Side.BOTH,
        "AveragePool": Side.BOTH,
        "GlobalAveragePool": Side.BOTH,
    },
    shared_scale=_COPIES | {"Concat"},
    fused_activations=frozenset(),
    opsets=(13, 20),
    sources=(
        _GUIDE,
        _PARSER,
        "TensorRT 10 quantized types: INT8 initializers behind DequantizeLinear are read",
    ),
)

TENSORRT_8 = replace(
    TENSORRT,
    name="tensorrt-8",
    stored_weights=False,
    opsets=(13, 16),
    sources=(
        _GUIDE,
        _PARSER,
        "TensorRT 8.x guide: pre-quantized ONNX models with INT8 tensors are not supported",
    ),
)

TENSORRT_STRONG = replace(
    TENSORRT,
    name="tensorrt-strong",
    half_precision=True,
    opsets=(13, 24),
    sources=(
        _GUIDE,
        "TensorRT 11 and TensorRT-RTX: networks are strongly typed, so whatever is float32 in the "
        "graph runs in float32; float16 scales are in ONNX from opset 19 on",
        "TensorRT-RTX 1.7: convolutions whose input and kernel differ in type are refused (seen)",
    ),
)

DLA = replace(
    TENSORRT,
    name="dla",
    written="cache",
    quantized_outputs=True,
    places={
        **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul"), Side.BOTH),
        **dict.fromkeys(("AveragePool", "GlobalAveragePool", "Add", "Mul"), Side.BOTH),
        **dict.fromkeys(_COPIES, Side.COPY),
        "Concat": Side.JOIN,
    },
    fused_activations=frozenset({"Relu", "Clip"}),
    opsets=(11, 20),
    sources=(
        "TensorRT up to 10.7, implicit quantization: a calibration cache beside a float graph",
        "Deep-Learning-Accelerator-SW, operators/README.md: Q/DQ nodes are not native to the DLA; "
        "two INT8 inputs of an elementwise layer want one dynamic range",
    ),
    shared_scale=_COPIES | {"Concat"},
)

ORT_VNNI = Dialect(
    name="ort-vnni",
    runtime="onnxruntime",
    activation="uint8",
    symmetric=False,
    weight="int8",
    stored_weights=True,
    integer_bias=True,
    quantized_outputs=True,
    places={
        **dict.fromkeys(("Conv", "Gemm", "MatMul"), Side.INPUTS),
        **dict.fromkeys(("Add", "Mul", "Concat"), Side.BOTH),
        **dict.fromkeys(("AveragePool", "GlobalAveragePool", "Sigmoid", "LeakyRelu"), Side.BOTH),
        **dict.fromkeys(_COPIES, Side.COPY),
    },
    shared_scale=_COPIES,
    fused_activations=frozenset({"Relu", "Clip"}),
    opsets=(13, 24),
    sources=(
        "ONNX Runtime 1.32, CPU provider, its optimised graphs as seen: a Conv is QLinearConv only "
        "with a quantized output; Relu and Clip vanish where the output's grid ends where they do; "
        "HardSwish, Tanh, Resize linear, Pad and ConvTranspose have no integer kernel",
        "onnxruntime.quantization: uint8 activations and int8 weights where the processor has VNNI",
    ),
)

ORT_ARM = replace(
    ORT_VNNI,
    name="ort-arm",
    activation="int8",
    sources=(*ORT_VNNI.sources[:1], "onnxruntime.quantization: int8 on both sides on ARM"),
)

ORT_AVX2 = replace(
    ORT_VNNI,
    name="ort-avx2",
    adds_in_16_bits=True,
    sources=(
        *ORT_VNNI.sources[:1],
        "ONNX Runtime 1.32 on AVX2, measured: uint8 activations with int8 weights are the fastest "
        "kernels, and lose nothing where no two neighbouring products leave 16 bits; uint8 weights "
        "with zero point 128 lose nothing either and take 1.4 times as long, int8 on both sides "
        "1.5 to 2 times",
    ),
)

DIALECTS: Mapping[str, Dialect] = {
    dialect.name: dialect
    for dialect in (TENSORRT_8, TENSORRT, TENSORRT_STRONG, ORT_AVX2, ORT_VNNI, ORT_ARM, DLA)
}

_VNNI = frozenset({"avx512_vnni", "avx_vnni"})


def tensorrt_dialect(version: str) -> Dialect:
    """TensorRT's dialect for that version: before 10 its parser refuses INT8 weights.

    From 11 on networks are strongly typed.
    """
    major = int(version.split(".", maxsplit=1)[0])
    return TENSORRT_8 if major < 10 else TENSORRT if major < 11 else TENSORRT_STRONG


def onnxruntime_dialect(cpu_flags: Set[str], *, arm: bool) -> Dialect:
    """ONNX Runtime's dialect for that processor."""
    if arm:
        return ORT_ARM
    return ORT_VNNI if cpu_flags & _VNNI else ORT_AVX2


def dialect_named(
    name: str, *, version: str = "10", cpu_flags: Set[str] = frozenset(), arm: bool = False
) -> Dialect:
    """The dialect of that name, one of `DIALECTS`, or the one that a target's file means.

    There "tensorrt" is resolved by the runtime's version, "onnxruntime" by the processor. Raises
    InputError for an unknown name.
    """
    if name == "tensorrt":
        return tensorrt_dialect(version)
    if name == "onnxruntime":
        return onnxruntime_dialect(cpu_flags, arm=arm)
    if name in DIALECTS:
        return DIALECTS[name]
    raise InputError(
        f'there is no dialect called "{name}"', got=name,
        wanted=", ".join(("tensorrt", "onnxruntime", *DIALECTS)),
    )  # fmt: skip
