"""The trainable executor: a torch module over the graph, its parameters under the graph's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgekit.errors import InputError
from edgekit.models.model import Model, after_step, constant_of, editable, set_parameter
from edgekit.models.operators import SEVERAL_OUTPUTS, Builder, Function, Mode, Op, builders

# Which inputs of an operator training may change. Other floating-point constants stay as they are:
# a normalisation of the input, anchors, the bounds of a Clip, sizes of a Resize.
_TRAINED = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (0, 1, 2), "MatMul": (0, 1),
    "BatchNormalization": (1, 2), "InstanceNormalization": (1, 2), "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2), "PRelu": (1,),
}  # fmt: skip
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_STATISTICS = (3, 4)  # mean and variance among a BatchNormalization's inputs


class GraphModule(nn.Module):
    """Computes what the graph computes; inputs and outputs in the graph's order.

    The attributes of an operator are read once, here. A value is dropped when it was last read.
    torch allows no "." in a parameter's name: `parameters_by_name` gives them under the graph's.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        graph = model.graph
        self._mode = Mode()
        self._slots: dict[ir.Value, int] = {}
        self._names: dict[str, str] = {}
        self._stored: list[tuple[int, str]] = []
        self.output_names = tuple(value.name or "" for value in graph.outputs)
        for value in graph.inputs:
            self._slot(value)
        self._inputs = len(graph.inputs)
        self._statistics = _statistics(graph)
        trained = _trained(graph)
        for name, value in graph.initializers.items():
            if _is_read(value):
                self._store(name, value, trainable=name in trained)
        self._schedule = self._compile(model)
        self._outputs = tuple(self._slots[value] for value in graph.outputs)
        self.eval()

    def _slot(self, value: ir.Value) -> int:
        return self._slots.setdefault(value, len(self._slots))

    def _store(self, name: str, value: ir.Value, *, trainable: bool) -> None:
        array = constant_of(value)
        if array is None:
            raise InputError(f'the initializer "{name}" has no value', hint="Export it again.")
        tensor = torch.from_numpy(np.array(array))
        own = f"value{len(self._names)}"
        if trainable and tensor.is_floating_point():
            self.register_parameter(own, nn.Parameter(tensor))
        else:
            self.register_buffer(own, tensor)
        self._names[name] = own
        self._stored.append((self._slot(value), own))

    def _compile(self, model: Model) -> list[tuple[Function, list[int], list[int], list[int]]]:
        """For each node its function, where its inputs and outputs lie, and what dies there."""
        known = builders()
        _refuse_missing(model, known)
        nodes = list(model.graph)
        last = {value: i for i, node in enumerate(nodes) for value in node.inputs if value}
        stays = {*model.graph.outputs, *model.graph.initializers.values()}
        schedule = []
        for i, node in enumerate(nodes):
            constants = tuple(constant_of(value) for value in node.inputs)
            op = Op(node, constants, model.opset, self._mode)
            inputs = [-1 if value is None else self._slot(value) for value in node.inputs]
            while inputs and inputs[-1] == -1:
                inputs.pop()
            several = node.op_type in SEVERAL_OUTPUTS
            outputs = [self._slot(value) for value in node.outputs[: None if several else 1]]
            dies = [
                self._slots[value]
                for value in dict.fromkeys(node.inputs)
                if value and last[value] == i and value not in stays
            ]
            schedule.append((known[node.op_type](op), inputs, outputs, dies))
        return schedule

    def train(self, mode: bool = True) -> GraphModule:
        """BatchNormalization and Dropout as in training, or not."""
        self._mode.training = mode
        super().train(mode)
        return self

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The graph's outputs for its inputs, both in the graph's order."""
        if len(inputs) != self._inputs:
            raise TypeError(f"{self._inputs} inputs, not {len(inputs)}")
        values: list[Any] = [None] * (len(self._slots) + 1)  # the last stands for an absent input
        values[: self._inputs] = inputs
        for slot, own in self._stored:
            values[slot] = getattr(self, own)
        for function, reads, writes, dies in self._schedule:
            found = function(*[values[slot] for slot in reads])
            if isinstance(found, tuple):
                for slot, tensor in zip(writes, found, strict=True):
                    values[slot] = tensor
            else:
                values[writes[0]] = found
            for slot in dies:
                values[slot] = None
        return tuple(values[slot] for slot in self._outputs)

    @torch.no_grad()
    def observe_statistics(self, *inputs: Tensor) -> None:
        """Makes every running mean and variance that of this one batch, and nothing else."""
        was_training = self.training
        self._mode.training, self._mode.observing = True, True
        try:
            self(*inputs)
        finally:
            self._mode.training, self._mode.observing = was_training, False

    def statistics_by_name(self) -> dict[str, Tensor]:
        """The running means and variances under the graph's own names."""
        return {name: getattr(self, self._names[name]) for name in sorted(self._statistics)}

    def parameters_by_name(self) -> dict[str, Tensor]:
        """Every stored tensor under its name in the graph: parameters, statistics, constants."""
        return {name: getattr(self, own) for name, own in self._names.items()}


def torch_module(model: Model) -> GraphModule:
    """The Model as a trainable module, in eval mode. Raises InputError for a missing operator."""
    return GraphModule(model)


def write_back(module: GraphModule, model: Model, step: str) -> Model:
    """The Model with the module's floating-point values, each under its name, type and shape."""
    program = editable(model)
    for name, tensor in module.parameters_by_name().items():
        if not tensor.is_floating_point():
            continue
        before = constant_of(program.graph.initializers[name])
        after = tensor.detach().cpu().contiguous().numpy()
        if before is not None and not np.array_equal(before, after):
            set_parameter(program.graph, name, after.astype(before.dtype).reshape(before.shape))
    return after_step(model, program, step)


def _refuse_missing(model: Model, known: Mapping[str, Builder]) -> None:
    missing: dict[str, list[str]] = {}
    for node in model.graph:
        kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        name = node.name or node.outputs[0].name or "?"
        if kind not in known:
            missing.setdefault(kind, []).append(name)
        elif kind not in SEVERAL_OUTPUTS and any(_is_read(value) for value in node.outputs[1:]):
            missing.setdefault(f"{kind} with a second output", []).append(name)
    if missing:
        raise InputError(
            "this model cannot be trained: operators are missing in the executor",
            where=model.name,
            got="; ".join(f"{kind} ({', '.join(names)})" for kind, names in missing.items()),
            hint="Leave [compress.recover] out of the recipe, or train it where it came from "
            "with the plan that `edgekit channels` writes.",
        )  # fmt: skip


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _trained(graph: ir.Graph) -> set[str]:
    """The names of the initializers that training may change, as `_TRAINED` says.

    A weight that is only moved on its way (a transposed one) is one too, and so is a vector that
    is added to a product: the bias of a Linear on more than two axes.
    """
    found = set()
    for node in graph:
        if node.domain:
            continue
        places = _TRAINED.get(node.op_type, ())
        found |= {_moved_from(node.inputs[i]) for i in places if i < len(node.inputs)}
        if node.op_type == "Add" and any(_is_product(value) for value in node.inputs):
            found |= {value.name or "" for value in node.inputs if value and _is_vector(value)}
    return {name for name in found if name in graph.initializers}


def _is_product(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type in _PRODUCTS


def _is_vector(value: ir.Value) -> bool:
    array = constant_of(value)
    return array is not None and array.size == max(array.shape, default=1)


def _moved_from(value: ir.Value | None) -> str:
    """The name of what was transposed or reshaped, any number of times, into this value."""
    while value is not None:
        node = value.producer()
        if node is None or node.op_type not in ("Transpose", "Reshape", "Identity"):
            return value.name or ""
        value = node.inputs[0]
    return ""


def _statistics(graph: ir.Graph) -> set[str]:
    """The names of the running means and variances."""
    return {
        value.name or ""
        for node in graph
        if node.op_type == "BatchNormalization" and not node.domain
        for value in (node.inputs[i] for i in _STATISTICS)
        if value is not None and value.name in graph.initializers
    }
