"""What a rule is given: the graph, and who is to read it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from edgekit.models.model import Model, constant_of
from edgekit.quantize.dialects import Dialect
from edgekit.targets import Target

Severity = Literal["error", "warning", "note"]
Runtime = Literal["tensorrt", "onnxruntime"]
Version = tuple[int, ...]

QDQ = ("QuantizeLinear", "DequantizeLinear")
LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_WEIGHT_WRAPPERS = frozenset({
    *QDQ, "Identity", "Cast", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Constant",
})  # fmt: skip
_STRONG = (11, 0)  # TensorRT-RTX knows what TensorRT 11 does
_VERSIONS = {"tensorrt-8": (8, 5), "tensorrt-10": (10, 0), "tensorrt-strong": _STRONG}


@dataclass(frozen=True, kw_only=True)
class Reader:
    """Who reads the file: a runtime, its version, the opsets that it takes, the processor.

    An empty version of ONNX Runtime is today's. `saturates`: its 8-bit kernels add in 16 bits.
    """

    runtime: Runtime
    version: Version = ()
    opsets: tuple[int, int] = (1, 10_000)
    half_precision: bool = False
    saturates: bool = False

    @property
    def name(self) -> str:
        """As a sentence names it."""
        return "TensorRT" if self.runtime == "tensorrt" else "ONNX Runtime"


def reader_of(wanted: Dialect | Target | Reader) -> Reader:
    """The Reader that a dialect is for, or that runs on a target."""
    if isinstance(wanted, Reader):
        return wanted
    if isinstance(wanted, Dialect):
        return Reader(
            runtime=wanted.runtime, version=_VERSIONS.get(wanted.name, ()), opsets=wanted.opsets,
            half_precision=wanted.half_precision, saturates=wanted.name == "ort-avx2",
        )  # fmt: skip
    runtime = wanted.runtime
    opsets = (1, runtime.opset)
    if runtime.name in ("onnxruntime", "openvino"):  # both read that dialect
        return Reader(runtime="onnxruntime", opsets=opsets)
    version = tuple(int(part) for part in runtime.version.split(".")[:2])
    version = _STRONG if runtime.name == "tensorrt_rtx" else version
    return Reader(
        runtime="tensorrt", version=version, opsets=opsets, half_precision=version >= _STRONG
    )


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The model and its Reader."""

    model: Model
    reader: Reader

    @property
    def is_tensorrt(self) -> bool:
        """Whether TensorRT reads it."""
        return self.reader.runtime == "tensorrt"


Check = Callable[[ir.Node, Facts], Iterator[str]]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule: who has it, how grave it is, where it is from, what mends it, and its function.

    The function gives one sentence for each way in which a node breaks the rule.
    """

    name: str
    runtimes: tuple[Runtime, ...]
    severity: Severity
    source: str
    fix: str
    check: Check


def is_standard(node: ir.Node) -> bool:
    """Whether the operator is ONNX's own."""
    return node.domain in ("", "ai.onnx")


def is_pair_half(node: ir.Node | None) -> bool:
    """Whether the node is a QuantizeLinear or a DequantizeLinear."""
    return node is not None and is_standard(node) and node.op_type in QDQ


def behind_dequantize(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that gives the value, if one does."""
    node = value.producer() if value is not None else None
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def comes_from_weights(value: ir.Value | None) -> bool:
    """Whether the value is stored, or is a stored one in another form."""
    while value is not None and constant_of(value) is None:
        producer = value.producer()
        if producer is None or producer.op_type not in _WEIGHT_WRAPPERS or not producer.inputs:
            return False
        value = producer.inputs[0]
    return value is not None


def stored_weight(node: ir.Node) -> ir.Value | None:
    """The stored tensor that a layer reads, be it through Q/DQ; None for two activations."""
    for value in node.inputs[1:2]:
        found = value
        while found is not None and constant_of(found) is None:
            producer = found.producer()
            if not is_pair_half(producer):
                return None
            assert producer is not None
            found = producer.inputs[0]
        return found
    return None
