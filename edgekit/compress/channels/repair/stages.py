"""A network run a stage at a time over all samples, with what is still to be read kept in between.

Repair looks at one layer after the other, each time with the weights before it already changed.
Running the network from its inputs for each layer would cost the square of its depth; so the values
that later nodes read are kept for all samples where they fit into memory, and the next stage starts
there. Where they do not fit, it starts where they last did.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import torch
from torch import Tensor

from edgekit.models.model import Model
from edgekit.models.schedule import captured_by
from edgekit.models.torch_module import GraphModule, torch_module
from edgekit.values import Feeds

Values = dict[str, Tensor]


class Stages:
    """One network between what is known of every sample and what is aimed at.

    The weights of nodes behind what was kept may change between two stages, and no others.
    """

    def __init__(self, model: Model) -> None:
        self._model = model
        self._values = {v.name or "": v for v in model.graph.inputs if not v.is_initializer()}
        self._inputs = tuple(self._values)
        for node in model.graph:
            self._values.update({v.name: v for v in node.outputs if v.name})
        self._constant = _constants(model.graph)
        self._known = self._inputs
        self._kept: dict[int, Values] = {}
        self._done: set[ir.Node] = set()
        self._next = self._known
        self._kept_next: dict[int, Values] = {}
        self._module: GraphModule | None = None

    def restart(self) -> None:
        """Forgets what was kept: weights before it have changed."""
        self._known, self._kept, self._done = self._inputs, {}, set()

    def aim(self, names: Sequence[str]) -> None:
        """Sets out for these values, and for those that nodes after them will read."""
        fresh, lost = self._between(names)
        if lost:
            self.restart()
            fresh, _ = self._between(names)
        done = self._done | fresh
        reached = {self._values[name] for name in self._known}
        reached |= {v for node in fresh for v in node.outputs if v.name} - self._constant
        live = {v for v in reached if any(node not in done for node, _ in v.uses())}
        self._next = tuple(sorted({v.name or "" for v in live} | set(names)))
        self._done_next = done
        self._kept_next = {}
        made = [name for name in self._next if name not in self._known]
        self._module = self._computing(made) if made else None

    def reach(self, index: int, feeds: Feeds) -> Values:
        """All values that were aimed at, for one batch; `feeds` are the network's inputs."""
        known = self._kept[index] if self._kept else _tensors(feeds)
        if self._module is None:
            return {name: known[name] for name in self._next}
        with torch.no_grad():
            made = self._module(*(known[name] for name in self._known))
        found = dict(zip(self._module.output_names, made, strict=True))
        return {name: found[name] if name in found else known[name] for name in self._next}

    def keep(self, index: int, values: Values) -> None:
        """Puts by what `reach` gave for a batch. All of them, or none, before `arrive`."""
        self._kept.pop(index, None)
        self._kept_next[index] = values

    def arrive(self) -> None:
        """Starts from here from now on: all batches were kept. `aim` comes next."""
        self._known, self._kept, self._done = self._next, self._kept_next, self._done_next
        self._kept_next, self._module = {}, None

    def _between(self, names: Sequence[str]) -> tuple[set[ir.Node], bool]:
        """The nodes to compute; and whether one of them reads what was not kept."""
        known = {self._values[name] for name in self._known}
        stack = [self._values[name] for name in names]
        seen: set[ir.Value] = set()
        fresh: set[ir.Node] = set()
        while stack:
            value = stack.pop()
            if value in seen or value in known or value.is_initializer():
                continue
            seen.add(value)
            node = value.producer()
            if node is None:
                return set(), True
            fresh.add(node)
            stack += [v for v in (*node.inputs, *captured_by(node)) if v is not None]
        return fresh, False

    def _computing(self, names: Sequence[str]) -> GraphModule:
        inputs = [self._values[name] for name in self._known]
        outputs = [self._values[name] for name in names]
        graph = ir.convenience.extract(self._model.graph, inputs, outputs)
        program = ir.Model(graph, ir_version=self._model.program.ir_version)
        return torch_module(Model(name=self._model.name, program=program))


def memory_bytes(values: Values) -> int:
    """What keeping these values takes."""
    return sum(tensor.nbytes for tensor in values.values())


def _constants(graph: ir.Graph) -> set[ir.Value]:
    """Values that follow from constants alone: they are computed again, never kept."""
    found: set[ir.Value] = set()
    for node in graph:
        given = [v for v in (*node.inputs, *captured_by(node)) if v is not None]
        if all(v in found or v.is_initializer() for v in given):
            found.update(node.outputs)
    return found


def _tensors(feeds: Feeds) -> Values:
    found = {}
    for name, array in feeds.items():
        tensor = torch.from_numpy(array)
        four = tensor.ndim == 4
        found[name] = tensor.contiguous(memory_format=torch.channels_last) if four else tensor
    return found
