"""The work of the closed-form repair: one weight after the other, in the order of the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from torch import Tensor

from edgekit.compress.channels.plan import Plan
from edgekit.compress.channels.reconstruct import LayerRepair, ReconstructOptions
from edgekit.compress.channels.repair.aims import Aim, find_aim
from edgekit.compress.channels.repair.least_squares import Fit, Rows, fit, no_rows
from edgekit.compress.channels.repair.products import Product, find_products
from edgekit.compress.channels.repair.stages import Stages, Values, memory_bytes
from edgekit.data.batches import Batches
from edgekit.errors import InputError
from edgekit.models.model import Model, after_step, constant_of, editable, set_parameter
from edgekit.models.schedule import captured_by
from edgekit.values import Array

# A channel that reaches the end of its way this much weaker than the strongest has no aim.
_LEAST_SCALE = 1e-6

OnFraction = Callable[[float], None]


def refit(
    cut: Model,
    original: Model,
    plan: Plan,
    batches: Batches,
    options: ReconstructOptions,
    on_fraction: OnFraction,
) -> tuple[Model, list[LayerRepair], Mapping[str, str]]:
    """The repaired Model, what each fit gained, and which weights were left and why.

    What the arguments are and which errors are raised, `reconstruct.reconstruct` says.
    """
    repair = _Repair(_inlined(cut), _inlined(original), plan, batches, options)
    products, left = _choose(repair.cut, original, plan, drifted=options.drifted)
    layers = list(repair.repaired(products, on_fraction))
    program = editable(cut)
    for name in repair.changed:
        array = constant_of(repair.cut.graph.initializers[name])
        assert array is not None
        set_parameter(program.graph, name, array)
    return after_step(cut, program, "reconstruct"), layers, left


def _inlined(model: Model) -> Model:
    program = editable(model)
    passes.InlinePass()(program)
    return Model(name=model.name, program=program)


def _choose(
    cut: Model, original: Model, plan: Plan, *, drifted: bool
) -> tuple[list[Product], dict[str, str]]:
    """The products whose weights are to be fitted, in the graph's order; why others are not."""
    products, left = find_products(cut.graph)
    by_node = {product.node: product for product in products}
    changed: set[ir.Value] = set()
    wanted: set[str] = set()
    touched: set[str] = set()
    for node in cut.graph:
        moved = any(v in changed for v in (*node.inputs, *captured_by(node)))
        product = by_node.get(node)
        lost = product is not None and (product.weight, product.read_axis) in plan.kept
        if moved or lost:
            changed.update(node.outputs)
            touched |= {v.name or "" for v in node.inputs if v is not None}
        if product is not None and (lost or (moved and drifted)):
            wanted.add(product.weight)
    made = {v.name for node in original.graph for v in node.outputs}
    chosen = []
    for name in sorted(wanted):
        reason = _unfit([p for p in products if p.weight == name], cut.graph, made)
        if reason:
            left[name] = reason
    chosen = [p for p in products if p.weight in wanted and p.weight not in left]
    return chosen, {name: why for name, why in left.items() if name in wanted | touched}


def _unfit(sharing: list[Product], graph: ir.Graph, made: set[str | None]) -> str:
    """Why the weight of these products cannot be fitted; nothing where it can."""
    first = sharing[0]
    readers = 0
    for node, _ in graph.initializers[first.weight].uses():
        behind = list(node.outputs[0].uses()) if node.op_type == "Transpose" else []
        readers += len(behind) or 1
    if readers != len(sharing):
        return "others than products read it too"
    if len(sharing) > 1 and first.groups > 1:
        return "several grouped convolutions share it"
    if any((p.node.op_type, p.turned, p.groups) != (first.node.op_type, first.turned, first.groups)
           for p in sharing):  # fmt: skip
        return "two nodes read it in different ways"
    if not all(p.output in made for p in sharing):
        return "the original has no layer of that name"
    return ""


@dataclass(frozen=True, kw_only=True)
class _Layer:
    """A product, its aim, and the channels of the original's output that it still makes."""

    product: Product
    aim: Aim
    kept: Tensor | None
    scale: Tensor
    shift: Tensor
    bias: Tensor
    has_aim: Tensor
    present: Tensor


class _Repair:
    """Both networks, as far as they have been run, and the weights that have changed."""

    def __init__(
        self,
        cut: Model,
        original: Model,
        plan: Plan,
        batches: Batches,
        options: ReconstructOptions,
    ) -> None:
        self.cut = cut
        self.changed: list[str] = []
        self._plan, self._batches, self._options = plan, batches, options
        self._cut_stages, self._full_stages = Stages(cut), Stages(original)
        self._generator = torch.Generator().manual_seed(options.seed)

    def repaired(self, products: list[Product], on_fraction: OnFraction) -> Iterator[LayerRepair]:
        """Fits the weights of these products in turn; one that several share, at the first."""
        pending = list(products)
        while pending:
            first = pending[0]
            sharing = [p for p in pending if p.weight == first.weight]
            nodes = [product.node for product in pending]
            layers = [self._layer(product, nodes) for product in sharing]
            done = len(products) - len(pending)

            def said(share: float, done: int = done, now: int = len(sharing)) -> None:
                on_fraction((done + now * share) / len(products))

            rows, found = self._fitted(layers, said)
            self._write(layers[0], found)
            pending = [p for p in pending if p.weight != first.weight]
            yield LayerRepair(
                weight=first.weight,
                rows=rows,
                before=found.before,
                after=found.after,
                ridge=found.ridge,
            )

    def _layer(self, product: Product, pending: list[ir.Node]) -> _Layer:
        aim = find_aim(product, lambda value: _is_ready(value, pending))
        kept = self._plan.kept.get((product.weight, product.made_axis))
        if product.node.op_type == "ConvTranspose" and product.groups > 1:
            kept = self._plan.kept.get((product.weight, 0))
        scale = _by_group(aim.scale, product.groups)
        has_aim = scale.abs() > _LEAST_SCALE * scale.abs().max()
        return _Layer(
            product=product,
            aim=aim,
            kept=None if kept is None else torch.from_numpy(kept),
            scale=torch.where(has_aim, scale, 1.0),
            shift=_by_group(aim.shift, product.groups),
            bias=_by_group(aim.bias, product.groups),
            has_aim=has_aim,
            present=self._matrix(product).float(),
        )

    def _matrix(self, product: Product) -> Tensor:
        array = constant_of(self.cut.graph.initializers[product.weight])
        assert array is not None
        return product.matrix(array)

    def _fitted(self, layers: list[_Layer], on_fraction: OnFraction) -> tuple[int, Fit]:
        """How many rows the layers of one weight have, and the fit to them.

        Of several layers the later ones read what the original has there: in the cut network what
        is before them is not repaired yet.
        """
        options = self._options
        first = layers[0]
        alone = len(layers) == 1
        present = self._matrix(first.product)
        movable = alone and bool(first.aim.offset)
        turns = 1 + (options.rectified if alone and first.aim.rectified else 0)
        places: list[Tensor] = []
        halves: tuple[Rows, Rows] | None = None
        found: Fit | None = None
        for turn in range(turns):
            for half in halves or ():
                half.forget_targets()
            steps = len(layers) * len(self._batches)
            rows = (r for one in layers for r in self._rows(one, places, forced=one is not first))
            for i, (layer, x, end, other) in enumerate(rows):
                y = _targets(layer, x, end, other, found)
                if halves is None:
                    few = x.shape[1] * steps <= x.shape[2]
                    halves = _nothing_yet(present, few=few), _nothing_yet(present, few=few)
                if turn:
                    halves[i % 2].add_targets(x, y)
                else:
                    halves[i % 2].add(x, y)
                on_fraction((turn + (i + 1) / steps) / turns)
            assert halves is not None
            shares = options.ridges if found is None else [found.ridge]
            again = fit(halves, present, movable=movable, shares=shares)
            _refuse_unknown(first.product, again)
            found = again if found is None else replace(again, before=found.before)
        assert halves is not None
        assert found is not None
        return halves[0].count + halves[1].count, found

    def _rows(
        self, layer: _Layer, places: list[Tensor], *, forced: bool
    ) -> Iterator[tuple[_Layer, Tensor, Tensor, Tensor | None]]:
        """Batch by batch: inputs, the original's values at the end, the other branch.

        They are taken at places that are drawn once and remembered, in turn, in `places`.
        """
        product, aim = layer.product, layer.aim
        wanted = self._options.rows * product.width / len(self._batches)
        for i, (here, there) in enumerate(self._run(layer, forced=forced)):
            source, end = here[product.source], there[aim.end]
            if layer.kept is not None:
                end = end.index_select(product.channel_axis, layer.kept)
            if i == len(places):
                apart = product.samples_apart(source.shape[0])
                places.append(product.places(end, max(1, round(wanted / apart)), self._generator))
            other = here[aim.other].expand_as(end) if aim.other else None
            yield (
                layer,
                product.rows(source, end, places[i]),
                product.columns(end, places[i]),
                None if other is None else product.columns(other, places[i]),
            )

    def _run(self, layer: _Layer, *, forced: bool) -> Iterator[tuple[Values, Values]]:
        """What the layer reads in the cut network, and its end in the original, by batches.

        `forced`: what it reads is the original's, as far as its channels are left.
        """
        product, aim = layer.product, layer.aim
        if forced:
            self._full_stages.aim([product.source, aim.end])
            for i, batch in enumerate(self._batches):
                there = self._full_stages.reach(i, batch.inputs)
                source = there[product.source]
                read = self._plan.kept.get((product.weight, product.read_axis))
                if read is not None:
                    source = source.index_select(product.channel_axis, torch.from_numpy(read))
                yield {product.source: source}, there
            return
        self._cut_stages.aim([layer.product.source, *([aim.other] if aim.other else [])])
        self._full_stages.aim([aim.end])
        keeps = False
        for i, batch in enumerate(self._batches):
            here = self._cut_stages.reach(i, batch.inputs)
            there = self._full_stages.reach(i, batch.inputs)
            if not i:
                most = self._options.memory_bytes / len(self._batches)
                keeps = memory_bytes(here) + memory_bytes(there) <= most
            if keeps:
                self._cut_stages.keep(i, here)
                self._full_stages.keep(i, there)
            yield here, there
        if keeps:
            self._cut_stages.arrive()
            self._full_stages.arrive()

    def _write(self, layer: _Layer, found: Fit) -> None:
        graph = self.cut.graph
        like = constant_of(graph.initializers[layer.product.weight])
        assert like is not None
        set_parameter(graph, layer.product.weight, layer.product.stored(found.weight, like))
        self.changed.append(layer.product.weight)
        offset = layer.aim.offset
        if offset and bool(found.intercept.any()):
            before = constant_of(graph.initializers[offset])
            assert before is not None
            change = layer.aim.per * found.intercept.numpy().reshape(before.shape)
            set_parameter(graph, offset, (before + change).astype(before.dtype))
            self.changed.append(offset)


def _nothing_yet(present: Tensor, *, few: bool) -> Rows:
    groups, width, made = present.shape
    return no_rows(groups, width, made, few=few)


def _refuse_unknown(product: Product, found: Fit) -> None:
    if np.isfinite([found.before, found.after]).all() and bool(found.weight.isfinite().all()):
        return
    raise InputError(
        f'what "{product.name}" reads or should make becomes NaN or infinite on these samples',
        where="compress.channels.reconstruct",
        hint="Look for an overflow in the model, or for a bad sample.",
    )


def _targets(
    layer: _Layer, x: Tensor, end: Tensor, other: Tensor | None, found: Fit | None
) -> Tensor:
    """What the product alone should make at each row (`aims` has the formula).

    `found` is the fit so far, for a layer in front of a Relu: where the original is negative, it
    asks for what that fit makes there, or for 0 where it makes more. So its squared error, with
    nothing counted where both are below 0, cannot grow from fit to fit (majorisation and
    minimisation; Hunter and Lange 2004).
    """
    scale = layer.scale.float()
    # What stands at the end where the product alone makes 0.
    rest = (layer.shift + layer.scale * layer.bias).float()
    rest = rest if other is None else rest + other
    if found is None:
        if bool(layer.has_aim.all()):
            return (end - rest) / scale
        return torch.where(layer.has_aim, (end - rest) / scale, x @ layer.present)
    now = x @ found.weight.float() + found.intercept.float()[:, None]
    end = torch.where(end > 0, end, torch.clamp(scale * now + rest, max=0.0))
    return torch.where(layer.has_aim, (end - rest) / scale, now)


def _by_group(numbers: Array, groups: int) -> Tensor:
    """One number a channel, (groups, 1, o)."""
    return torch.from_numpy(np.array(numbers, np.float64)).reshape(groups, 1, -1)


def _is_ready(value: ir.Value, pending: list[ir.Node]) -> bool:
    """Whether nothing before a value is still to be fitted."""
    waiting = set(pending)
    stack, seen = [value], {value}
    while stack:
        node = stack.pop().producer()
        if node is None:
            continue
        if node in waiting:
            return False
        for read in (*node.inputs, *captured_by(node)):
            if read is not None and read not in seen:
                seen.add(read)
                stack.append(read)
    return True
