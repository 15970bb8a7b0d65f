"""Which nodes a runtime runs as one kernel: a plain model of what fuses, for estimates only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import onnx_ir as ir

from edgekit.models.cost.anatomy import fixed_values, is_standard, is_view, live_nodes, reads
from edgekit.models.cost.macs import multiplies
from edgekit.models.model import Model

Runtime = Literal["onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"]
_ON_CPU = ("onnxruntime", "openvino")  # they fuse alike

# Quantizing is a part of the kernels on both sides of it.
_PASSED_THROUGH = frozenset({"QuantizeLinear", "DequantizeLinear"})
_ACTIVATIONS = frozenset({"Clip", "HardSigmoid", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
_GATES = frozenset({"HardSigmoid", "Sigmoid", "Softplus", "Tanh"})
_FUSED_BY: Mapping[Runtime, frozenset[str]] = {
    # ONNX Runtime's graph_transformer_utils: conv_activation_fusion, conv_add_fusion,
    # conv_bn_fusion, matmul_add_fusion; FusedConv takes a sum too.
    "onnxruntime": _ACTIVATIONS | {"BatchNormalization", "Add"},
    # TensorRT fuses whatever is pointwise into a convolution or into one another (best practices,
    # "Layer Fusion").
    "tensorrt": _ACTIVATIONS
    | {"BatchNormalization", "Add", "Sub", "Mul", "Div", "Elu", "Erf", "Exp", "Gelu", "HardSwish",
       "Mish", "PRelu", "Selu", "Softplus", "Softsign", "Swish"},
}  # fmt: skip


@dataclass
class Kernel:
    """Nodes that run as one: the first is the one that the time is spent in.

    `read` and `written` are the activations that go through memory, each once whatever its views.
    """

    nodes: list[ir.Node] = field(default_factory=list)
    read: dict[ir.Value, None] = field(default_factory=dict)
    written: dict[ir.Value, None] = field(default_factory=dict)

    @property
    def head(self) -> ir.Node:
        """The node that the others are fused into."""
        return self.nodes[0]


def kernels(model: Model, runtime: Runtime) -> tuple[Kernel, ...]:
    """The kernels of a Model in the order of their heads.

    A pointwise node joins the kernel that makes its input where nobody else reads that input and
    the head multiplies (Conv, Gemm, ...), or is a BatchNormalization; with TensorRT, where the head
    is any pointwise node. x * sigmoid(x) and its like are one. A view is no kernel, nor is what
    follows from stored numbers alone; QuantizeLinear and DequantizeLinear cost nothing.
    """
    graph = model.graph
    fixed = fixed_values(graph)
    nodes = [n for n in live_nodes(graph) if not all(output in fixed for output in n.outputs)]
    origin: dict[ir.Value, ir.Value] = {}
    for node in nodes:
        if is_view(node) or (is_standard(node) and node.op_type in _PASSED_THROUGH):
            source = node.inputs[0]
            if source is not None:
                origin[node.outputs[0]] = origin.get(source, source)
    computing = [n for n in nodes if not n.outputs or n.outputs[0] not in origin]
    readers: dict[ir.Value, set[ir.Node]] = {}
    for node in computing:
        for value in _activations(node, fixed, origin):
            readers.setdefault(value, set()).add(node)
    leaving = {origin.get(value, value) for value in graph.outputs}

    fused = _FUSED_BY["onnxruntime" if runtime in _ON_CPU else "tensorrt"]
    of: dict[ir.Value, Kernel] = {}
    found: list[Kernel] = []
    for node in computing:
        sources = _activations(node, fixed, origin)
        kernel = None
        if is_standard(node) and node.op_type in (fused | {"Mul"}):
            kernel = _joined(node, sources, of, readers, leaving, runtime)
        if kernel is None:
            kernel = Kernel()
            found.append(kernel)
        kernel.nodes.append(node)
        for output in node.outputs:
            of[output] = kernel
    for kernel in found:
        _trace_memory(kernel, fixed, origin, readers, leaving)
    return tuple(found)


def _activations(
    node: ir.Node, fixed: set[ir.Value], origin: Mapping[ir.Value, ir.Value]
) -> list[ir.Value]:
    found = (origin.get(value, value) for value in reads(node) if value not in fixed)
    return list(dict.fromkeys(found))


def _joined(
    node: ir.Node, sources: list[ir.Value], of: Mapping[ir.Value, Kernel],
    readers: Mapping[ir.Value, set[ir.Node]], leaving: set[ir.Value], runtime: Runtime,
) -> Kernel | None:  # fmt: skip
    """The kernel that the node becomes a part of, the youngest where there are several."""
    takes_pointwise = runtime not in _ON_CPU
    for source in reversed(sources):
        kernel = of.get(source)
        if kernel is None or source in leaving or source not in kernel.nodes[-1].outputs:
            continue
        head = kernel.head
        if _is_gated(node, sources, kernel):
            return kernel
        if node.op_type == "Mul" and not takes_pointwise:
            continue
        is_open = multiplies(head) or (is_standard(head) and head.op_type == "BatchNormalization")
        if not is_open and not (
            takes_pointwise and head.op_type in _FUSED_BY["tensorrt"] and is_standard(head)
        ):
            continue
        others = readers[source] - {node}
        if not others or (takes_pointwise and _opens_gate(node, source, others, readers)):
            return kernel
    return None


def _is_gated(node: ir.Node, sources: list[ir.Value], kernel: Kernel) -> bool:
    """Whether the node is the product of x * gate(x), and the kernel ends with that gate."""
    last = kernel.nodes[-1]
    if node.op_type != "Mul" or last.op_type not in _GATES:
        return False
    return set(sources) == {last.inputs[0], last.outputs[0]}


def _opens_gate(
    node: ir.Node, source: ir.Value, others: set[ir.Node],
    readers: Mapping[ir.Value, set[ir.Node]],
) -> bool:  # fmt: skip
    """Whether the node is the gate of x * gate(x), and nobody but that product reads either."""
    if node.op_type not in _GATES or len(others) != 1:
        return False
    (product,) = others
    return product.op_type == "Mul" and readers.get(node.outputs[0], set()) == {product}


def _trace_memory(
    kernel: Kernel, fixed: set[ir.Value], origin: Mapping[ir.Value, ir.Value],
    readers: Mapping[ir.Value, set[ir.Node]], leaving: set[ir.Value],
) -> None:  # fmt: skip
    own = set(kernel.nodes)
    made = {output for node in kernel.nodes for output in node.outputs}
    for node in kernel.nodes:
        for value in _activations(node, fixed, origin):
            if value not in made:
                kernel.read[value] = None
        for output in node.outputs:
            if output in leaving or readers.get(output, set()) - own:
                kernel.written[output] = None
