"""The trainable executor: a torch module over the graph, its parameters under the graph's names."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from torch import Tensor, nn

from edgekit.errors import InputError
from edgekit.models.model import Model, after_step, constant_of, editable, set_parameter
from edgekit.models.operators import Builder, Function, Mode, Op, builders
from edgekit.models.operators.quantization import dequantize, latent_dequantize, quantize_as
from edgekit.models.operators.types import tensor_of
from edgekit.models.schedule import MEASURES, Schedule, Step, captured_by, schedule

# Which inputs of an operator training may change. Other floating-point constants stay as they are:
# a normalisation of the input, anchors, the bounds of a Clip, sizes of a Resize.
_TRAINED = {
    "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (0, 1, 2), "MatMul": (0, 1),
    "BatchNormalization": (1, 2), "InstanceNormalization": (1, 2), "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2), "RMSNormalization": (1,), "PRelu": (1,), "LSTM": (1, 2, 3, 7),
    "GRU": (1, 2, 3), "RNN": (1, 2, 3), "DeformConv": (1, 3), "Einsum": (0, 1),
}  # fmt: skip
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")
_MOVES = ("Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "QuantizeLinear",
          "DequantizeLinear")  # fmt: skip
_STATISTICS = (3, 4)  # mean and variance among a BatchNormalization's inputs
_SHAPES_KEPT = 8  # for so many sets of input shapes what follows from them is remembered

_Running = list[tuple[Function, tuple[int, ...], tuple[int, ...], tuple[tuple[int, int], ...],
                      tuple[int, ...]]]  # fmt: skip


class GraphModule(nn.Module):
    """Computes what the graph computes; inputs and outputs in the graph's order.

    The attributes of an operator are read once, here. What follows from the inputs' shapes alone
    is computed at the first pass with these shapes. A value is dropped when it was last read.
    torch allows no "." in a parameter's name: `parameters_by_name` gives them under the graph's.

    A stored integer weight (behind a DequantizeLinear) is a parameter too, in real numbers; the
    forward pass quantizes it as its node says, and `write_back` stores integers again.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        program = editable(model)
        passes.InlinePass()(program)
        graph = program.graph
        self._graph = graph
        self._mode = Mode()
        self._names: dict[str, str] = {}
        self._latent = _latent(graph)
        self.output_names = tuple(value.name or "" for value in graph.outputs)
        self._statistics = _statistics(graph)
        trained = _trained(graph) | set(self._latent)
        self._known = builders()
        _refuse_missing(program, model.name, self._known)
        self._opset = program.opset_imports.get("", 1)
        varying = frozenset(trained | self._statistics)
        plan = schedule(graph, varying=varying)
        self._stored = [
            (slot, self._store(value, trainable=(value.name or "") in trained))
            for value, slot in plan.constants.items()
        ]
        self._lists = [(slot, _as_list(value)) for value, slot in plan.listed_constants.items()]
        self._plan = plan
        pairs = [(step, self._function(step)) for step in plan.steps]
        self._first_pass = _running(plan, pairs)
        self._next_passes = _running(plan, [pair for pair in pairs if not pair[0].shaped])
        self._kept_slots = plan.recorded()
        self._recorded: OrderedDict[Any, list[Any]] = OrderedDict()
        self.eval()

    def _store(self, value: ir.Value, *, trainable: bool) -> str:
        array = constant_of(value)
        name = value.name or ""
        if array is None:
            raise InputError(f'the initializer "{name}" has no value', hint="Export it again.")
        own = f"value{len(list(self.buffers())) + len(list(self.parameters()))}"
        tensor = tensor_of(array)
        if name in self._latent:
            tensor = self._real(name, tensor)
        if trainable and tensor.is_floating_point():
            self.register_parameter(own, nn.Parameter(tensor))
        else:
            self.register_buffer(own, tensor)
        if value.graph is self._graph:
            self._names[name] = own
        return own

    def _real(self, name: str, stored: Tensor) -> Tensor:
        """The numbers that a stored integer weight stands for."""
        found: Tensor = dequantize(self._op(self._latent[name]))(stored, *self._scales(name))
        return found

    def _scales(self, name: str) -> list[Tensor]:
        arrays = [constant_of(value) for value in self._latent[name].inputs[1:]]
        return [tensor_of(array) for array in arrays if array is not None]

    def _op(self, node: ir.Node, *, overwrites: bool = False) -> Op:
        constants = tuple(constant_of(value) for value in node.inputs)
        return Op(node, constants, self._opset, self._mode, overwrites, self._subgraph_of(node))

    def _function(self, step: Step) -> Function:
        node = step.node
        op = self._op(node, overwrites=step.overwrites)
        source = node.inputs[0] if node.inputs else None
        if node.op_type == "DequantizeLinear" and source is not None and source.is_initializer():
            return latent_dequantize(op) if source.name in self._latent else dequantize(op)
        return self._known[node.op_type](op)

    def _subgraph_of(self, node: ir.Node) -> Any:
        """What compiles a graph inside the node: a function of its inputs and what it captures."""

        def compiled(graph: ir.Graph) -> Function:
            captured = list(captured_by(node))
            plan = schedule(graph, captured)
            stored = [(slot, self._store(v, trainable=False)) for v, slot in plan.constants.items()]
            lists = [(slot, _as_list(v)) for v, slot in plan.listed_constants.items()]
            pairs = [(step, self._function(step)) for step in plan.steps]
            steps = _running(plan, pairs)

            def run(*inputs: Tensor) -> tuple[Tensor, ...]:
                values: list[Any] = [None] * (plan.slots + 1)
                for slot, tensor in zip(plan.inputs, inputs, strict=True):
                    values[slot] = tensor
                for slot, own in stored:
                    values[slot] = getattr(self, own)
                for slot, numbers in lists:
                    values[slot] = numbers
                for slot, listed in plan.listed_inputs:
                    values[listed] = values[slot].tolist()
                _run(steps, values)
                return tuple(values[slot] for slot in plan.outputs)

            return run

        return compiled

    def train(self, mode: bool = True) -> GraphModule:
        """BatchNormalization and Dropout as in training, or not."""
        self._mode.training = mode
        super().train(mode)
        return self

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The graph's outputs for its inputs, both in the graph's order."""
        plan = self._plan
        if len(inputs) != len(plan.inputs):
            raise TypeError(f"{len(plan.inputs)} inputs, not {len(inputs)}")
        values: list[Any] = [None] * (plan.slots + 1)  # the last stands for an absent input
        for slot, tensor in zip(plan.inputs, inputs, strict=True):
            values[slot] = tensor
        for slot, own in self._stored:
            values[slot] = getattr(self, own)
        for slot, numbers in self._lists:
            values[slot] = numbers
        for slot, listed in plan.listed_inputs:
            values[listed] = values[slot].tolist()
        shapes = tuple((tensor.shape, tensor.device) for tensor in inputs)
        recorded = self._recorded.get(shapes) if self._kept_slots else []
        if recorded is not None:
            for slot, value in zip(self._kept_slots, recorded, strict=True):
                values[slot] = value
            _run(self._next_passes, values)
        else:
            self._run_first(values, shapes)
        return tuple(values[slot] for slot in plan.outputs)

    def _run_first(self, values: list[Any], shapes: Any) -> None:
        """A pass with new shapes: what follows from them is kept for the next one."""
        if torch.compiler.is_compiling():
            _run(self._first_pass, values)
            return
        device = shapes[0][1] if shapes else torch.device("cpu")
        for step, running in zip(self._plan.steps, self._first_pass, strict=True):
            if not step.shaped:
                _run([running], values)
                continue
            function, places = running[0], running[1:]
            if step.node.op_type not in MEASURES:
                function = _on_cpu(function)
            # Fit for a later pass with gradients, whatever this one is.
            with torch.inference_mode(False), torch.no_grad():
                _run([(function, *places)], values)
            for slot in step.writes:
                if slot in self._kept_slots:
                    values[slot] = values[slot].to(device)
        self._recorded[shapes] = [values[slot] for slot in self._kept_slots]
        while len(self._recorded) > _SHAPES_KEPT:
            self._recorded.popitem(last=False)

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

    def stored_by_name(self) -> dict[str, Tensor]:
        """As `parameters_by_name`, a weight that the graph stores in integers as those."""
        found = self.parameters_by_name()
        for name, node in self._latent.items():
            if name in found:
                levels = quantize_as(self._op(node))(found[name].detach(), *self._scales(name))
                found[name] = levels
        return found


def torch_module(model: Model) -> GraphModule:
    """The Model as a trainable module, in eval mode. Raises InputError for a missing operator."""
    return GraphModule(model)


def write_back(module: GraphModule, model: Model, step: str) -> Model:
    """The Model with the module's floating-point values, each under its name, type and shape."""
    program = editable(model)
    for name, tensor in module.stored_by_name().items():
        if not tensor.is_floating_point():
            continue
        before = constant_of(program.graph.initializers[name])
        after = tensor.detach().cpu().contiguous().to(torch.float32).numpy()
        if before is not None:
            stored = after.astype(before.dtype).reshape(before.shape)
            if not np.array_equal(before, stored):
                set_parameter(program.graph, name, stored)
    return after_step(model, program, step)


def _running(plan: Schedule, pairs: Sequence[tuple[Step, Function]]) -> _Running:
    steps = [step for step, _ in pairs]
    return [
        (function, step.reads, step.writes, step.lists, dies)
        for (step, function), dies in zip(pairs, plan.dying(steps), strict=True)
    ]


def _run(running: _Running, values: list[Any]) -> None:
    for function, reads, writes, lists, dies in running:
        found = function(*[values[slot] for slot in reads])
        if isinstance(found, tuple):
            for slot, tensor in zip(writes, found, strict=True):
                values[slot] = tensor
            values[-1] = None
        else:
            values[writes[0]] = found
        for slot, listed in lists:
            values[listed] = values[slot].tolist()
        for slot in dies:
            values[slot] = None


def _on_cpu(function: Function) -> Function:
    return lambda *inputs: function(*[v.cpu() if torch.is_tensor(v) else v for v in inputs])


def _as_list(value: ir.Value) -> Any:
    array = constant_of(value)
    return None if array is None else array.tolist()


def untrainable(model: Model) -> dict[str, list[str]]:
    """The operators that the executor does not have, each with the names of its nodes."""
    program = editable(model)
    passes.InlinePass()(program)
    return _missing(program, builders())


def _missing(program: ir.Model, known: Mapping[str, Builder]) -> dict[str, list[str]]:
    missing: dict[str, list[str]] = {}
    for node in ir.traversal.RecursiveGraphIterator(program.graph):
        kind = f"{node.domain}::{node.op_type}" if node.domain else node.op_type
        if kind not in known:
            missing.setdefault(kind, []).append(node.name or node.outputs[0].name or "?")
    return missing


def _refuse_missing(program: ir.Model, name: str, known: Mapping[str, Builder]) -> None:
    missing = _missing(program, known)
    if missing:
        raise InputError(
            "this model cannot be trained: operators are missing in the executor",
            where=name,
            got="; ".join(f"{kind} ({', '.join(names)})" for kind, names in missing.items()),
            hint="Leave [compress.recover] out of the recipe, or train it where it came from "
            "with the plan that `edgekit channels` writes.",
        )  # fmt: skip


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
    return {
        name for name in found if name in graph.initializers and _is_real(graph.initializers[name])
    }


def _is_real(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()


def _is_product(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    return producer is not None and producer.op_type in _PRODUCTS


def _is_vector(value: ir.Value) -> bool:
    array = constant_of(value)
    return array is not None and array.size == max(array.shape, default=1)


def _moved_from(value: ir.Value | None) -> str:
    """The name of what was transposed, reshaped or quantized, any number of times, into this."""
    while value is not None:
        node = value.producer()
        if node is None or node.op_type not in _MOVES:
            return value.name or ""
        value = node.inputs[0]
    return ""


def _latent(graph: ir.Graph) -> dict[str, ir.Node]:
    """The stored integer weights that training may change, each with its DequantizeLinear."""
    found = {}
    for node in graph:
        if node.domain:
            continue
        for i in _TRAINED.get(node.op_type, ()):
            name = _moved_from(node.inputs[i]) if i < len(node.inputs) else ""
            weight = graph.initializers.get(name)
            if weight is None or _is_real(weight):
                continue
            readers = [reader for reader, place in weight.uses()]
            scales = {tuple(reader.inputs[1:]) for reader in readers}
            constant = all(constant_of(v) is not None for s in scales for v in s if v is not None)
            if len(scales) == 1 and constant and readers[0].op_type == "DequantizeLinear":
                found[name] = readers[0]
    return found


def _statistics(graph: ir.Graph) -> set[str]:
    """The names of the running means and variances."""
    return {
        value.name or ""
        for node in graph
        if node.op_type == "BatchNormalization" and not node.domain
        for value in (node.inputs[i] for i in _STATISTICS)
        if value is not None and value.name in graph.initializers
    }
