"""A float network and its quantized self, walked side by side, one weighted node after the other.

In the quantized network every activation is quantized as its Scheme says and every weight stands
as the real numbers of its stored integers; when a node's turn comes, all before it is final. What
a node reads there and what it should put out, which the float network says, is all that a method
needs (AdaQuant and OBC call this asymmetric calibration).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from edgekit.compress.channels.repair.products import Product, find_products
from edgekit.compress.channels.repair.stages import Stages, Values, memory_bytes
from edgekit.data.batches import Batches
from edgekit.errors import InputError
from edgekit.models.batch import fixed_batch
from edgekit.models.model import (
    Model,
    add_parameter,
    attribute,
    constant_of,
    editable,
    set_parameter,
)
from edgekit.models.schedule import captured_by
from edgekit.models.torch_module import GraphModule, torch_module
from edgekit.quantize.refine.graph import free_name, only_reader
from edgekit.quantize.scheme import Scheme, StoredWeight, WeightPlace
from edgekit.quantize.write import write_qdq
from edgekit.values import Array

_AT_ONCE = 32
_ALIVE = 6  # so many of the largest activation are kept between two nodes, in both networks


@dataclass(frozen=True, kw_only=True)
class Aim:
    """Where the output of a node ends up: its own output, or the sum of a residual Add behind it.

    `end` is a value of the float network; `other` is what the quantized one adds, "" where nothing
    is added. Whoever reads the end cannot tell values under `low`, or over `high`, from one
    another.
    """

    end: str
    other: str = ""
    low: float = -math.inf
    high: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A node whose turn it is: the product in the quantized network, its place, and its aim."""

    product: Product
    place: WeightPlace
    aim: Aim

    @property
    def name(self) -> str:
        """The node's name."""
        return self.place.node


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What a weight multiplies, x (groups, rows, d); the float network's values at the end of its
    aim, (groups, rows, o); and what the quantized network adds there, 0 where nothing is added.
    """

    x: Tensor
    end: Tensor
    other: Tensor | float


def some_samples(model: Model, batches: Batches, most: int, memory: int) -> Batches:
    """At most that many samples, evenly spaced, as far as `memory` bytes let a walk keep them.

    Raises InputError where there is none, or less than the Model takes at once.
    """
    fixed = fixed_batch(model)
    fitting = int(memory / max(_ALIVE * _largest_activation(model), 1))
    some = batches.take(min(most, max(fitting, 2 * fixed, 16))) if batches.count else batches
    size = fixed or max(1, min(_AT_ONCE, some.count // 4))
    if not some.count or size > some.count:
        raise InputError(
            "refining looks at samples, and there are too few", where="quantize.refine",
            got=str(some.count), wanted=f"{max(size, 1)} or more",
            hint="Give unlabelled samples of what the device will see; a few hundred will do.",
        )  # fmt: skip
    if fixed:
        some = some.take(some.count // size * size)
    return some.with_batch_size(size)


def _largest_activation(model: Model) -> int:
    """The bytes of one sample's largest activation whose shape is known."""
    largest = 0
    for node in model.graph:
        for value in node.outputs:
            sizes = [d for d in list(value.shape or ())[1:] if isinstance(d, int)]
            largest = max(largest, 4 * math.prod(sizes))
    return largest


class Walk:
    """Both networks, as far as they have been run; `layers` visits the nodes in their order.

    `reference` is the float network: the Model as it was before any refinement of its biases.
    """

    def __init__(
        self, model: Model, scheme: Scheme, reference: Model, batches: Batches, memory: int
    ) -> None:
        self.scheme = scheme
        self.left: dict[str, str] = {}
        self._batches, self._memory = batches, memory
        self._quantized = _working(model, scheme)
        self._nodes = {node.name or "": node for node in self._quantized.graph}
        self._full_nodes = {node.name or "": node for node in reference.graph}
        self._stages, self._full_stages = Stages(self._quantized), Stages(reference)
        self._pending: set[ir.Node] = set()
        self._products = self._find()

    def __len__(self) -> int:
        return len(self._products)

    def _find(self) -> list[Product]:
        products, _ = find_products(self._quantized.graph)
        found = [p for p in products if p.node.name in self.scheme.placement.weights]
        for name in self.scheme.placement.weights.keys() - {p.node.name for p in found}:
            self.left[name] = "it is no plain product of rows and a matrix"
        return found

    def layers(self) -> Iterator[Layer]:
        """The weighted nodes that can be looked at as products, those before each one final."""
        self._pending = {product.node for product in self._products}
        for product in self._products:
            aim = self._aim(product)
            yield Layer(
                product=product, place=self.scheme.placement.weights[product.node.name or ""],
                aim=aim,
            )  # fmt: skip
            self._pending.discard(product.node)

    def weight(self, layer: Layer) -> Tensor:
        """The float network's weight, (groups, d, o) in double precision."""
        array = constant_of(self._full_nodes[layer.name].inputs[1])
        assert array is not None
        return layer.product.matrix(array)

    def bias(self, layer: Layer) -> Array:
        """What the node adds to each channel by now, float64; zeros where it adds nothing."""
        if not layer.place.bias:
            return np.zeros(layer.product.channels)
        array = constant_of(self._quantized.graph.initializers[layer.place.bias])
        assert array is not None
        return np.broadcast_to(array.astype(np.float64).reshape(-1), (layer.product.channels,))

    def put(self, layer: Layer, weight: StoredWeight | None, bias: Array | None) -> None:
        """Gives the node of the quantized network another weight, or bias."""
        if weight is not None:
            set_parameter(self._quantized.graph, layer.product.weight, weight.values)
        if bias is not None:
            before = constant_of(self._quantized.graph.initializers[layer.place.bias])
            assert before is not None
            array = bias.astype(np.float32).reshape(before.shape)
            set_parameter(self._quantized.graph, layer.place.bias, array)

    def rows(
        self, layer: Layer, places: list[Tensor], most: int, generator: torch.Generator
    ) -> Iterator[Rows]:
        """Batch by batch the rows of a layer, about `most` in all.

        They are taken at places that are drawn once and remembered, in turn, in `places`.
        """
        product, aim = layer.product, layer.aim
        wanted = most / len(self._batches)
        names = [product.source, *([aim.other] if aim.other else [])]
        for i, (here, there) in enumerate(self._reach(names, [aim.end])):
            source, end = here[product.source], there[aim.end]
            if i == len(places):
                apart = product.samples_apart(source.shape[0])
                places.append(product.places(end, max(1, round(wanted / apart)), generator))
            other: Tensor | float = 0.0
            if aim.other:
                other = product.columns(here[aim.other].expand_as(end), places[i])
            yield Rows(
                x=product.rows(source, end, places[i]), end=product.columns(end, places[i]),
                other=other,
            )  # fmt: skip

    def outputs(self, layer: Layer) -> Iterator[tuple[Tensor, Tensor]]:
        """Batch by batch what the node puts out and what it should, (positions, channels) each."""
        product, aim = layer.product, layer.aim
        axis = product.channel_axis
        alone = self._alone(product)
        names = [product.source, *([aim.other] if aim.other else [])]
        for here, there in self._reach(names, [aim.end]):
            with torch.no_grad():
                (found,) = alone(here[product.source])
            wanted = there[aim.end]
            if aim.other:
                wanted = wanted - here[aim.other]
            yield found.movedim(axis, -1).flatten(0, -2), wanted.movedim(axis, -1).flatten(0, -2)

    def _alone(self, product: Product) -> GraphModule:
        """The node of the quantized network by itself: what it puts out must not be kept."""
        graph = self._quantized.graph
        inputs, outputs = [product.source], [product.output]
        part = ir.convenience.extract(graph, inputs, outputs)
        version = self._quantized.program.ir_version
        return torch_module(Model(name=product.name, program=ir.Model(part, ir_version=version)))

    def _reach(self, here: list[str], there: list[str]) -> Iterator[tuple[Values, Values]]:
        self._stages.aim(here)
        self._full_stages.aim(there)
        keeps = False
        for i, batch in enumerate(self._batches):
            found = self._stages.reach(i, batch.inputs)
            wanted = self._full_stages.reach(i, batch.inputs)
            if not i:
                most = self._memory / len(self._batches)
                keeps = memory_bytes(found) + memory_bytes(wanted) <= most
            if keeps:
                self._stages.keep(i, found)
                self._full_stages.keep(i, wanted)
            yield found, wanted
        if keeps:
            self._stages.arrive()
            self._full_stages.arrive()

    def _aim(self, product: Product) -> Aim:
        """The end of the float node's output: behind a residual Add whose other branch is final."""
        node = self._full_nodes[product.node.name or ""]
        value, other = node.outputs[0], ""
        reader = only_reader(value)
        if reader is not None and reader.op_type == "Add" and not reader.domain:
            position = 1 - [v is value for v in reader.inputs].index(True)
            added = self._nodes[reader.name or ""].inputs[position]
            same = value.shape is not None and value.shape == reader.outputs[0].shape
            if added is not None and not added.is_initializer() and same and self._is_final(added):
                value, other = reader.outputs[0], added.name or ""
        low, high = _flat_sides(only_reader(value))
        return Aim(end=value.name or "", other=other, low=low, high=high)

    def _is_final(self, value: ir.Value) -> bool:
        stack, seen = [value], {value}
        while stack:
            node = stack.pop().producer()
            if node is None:
                continue
            if node in self._pending:
                return False
            for read in (*node.inputs, *captured_by(node)):
                if read is not None and read not in seen:
                    seen.add(read)
                    stack.append(read)
        return True


def _working(model: Model, scheme: Scheme) -> Model:
    """The network with its activations quantized and each placed weight as stored, in floats."""
    program = editable(model)
    graph = program.graph
    for node in graph:
        stored = scheme.weights.get(node.name or "")
        if stored is not None and (node.name or "") in scheme.placement.weights:
            name = free_name(graph, f"{node.name}.on_grid")
            node.replace_input_with(1, add_parameter(graph, name, stored.values))
    bare = replace(scheme.placement, weights={})
    model = replace(model, program=program)
    return write_qdq(model, replace(scheme, placement=bare, weights={}))[0]


def _flat_sides(node: ir.Node | None) -> tuple[float, float]:
    """Under and over which input an activation's output no longer changes."""
    if node is None or node.domain:
        return -math.inf, math.inf
    if node.op_type == "Relu":
        return 0.0, math.inf
    if node.op_type == "HardSwish":
        return -3.0, math.inf
    if node.op_type == "HardSigmoid":
        alpha, beta = (float(attribute(node, n, d)) for n, d in (("alpha", 0.2), ("beta", 0.5)))
        return -beta / alpha, (1 - beta) / alpha
    if node.op_type == "Clip":
        bounds = [constant_of(v) for v in node.inputs[1:3]]
        given = [bounds[i] if i < len(bounds) else None for i in range(2)]
        if any(b is None and v is not None for b, v in zip(given, node.inputs[1:3], strict=False)):
            return -math.inf, math.inf
        low = -math.inf if given[0] is None else float(given[0])
        return low, math.inf if given[1] is None else float(given[1])
    return -math.inf, math.inf
