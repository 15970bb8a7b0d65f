"""One node's quantization by itself: a Scheme of it alone, or all nodes at once, each by itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from edgekit.models.model import Model, after_step, editable
from edgekit.quantize.dialects import Dialect
from edgekit.quantize.placing.patterns import is_absorbed
from edgekit.quantize.scheme import Placement, Scheme
from edgekit.quantize.write import write_qdq

_SHADOW = "~alone"


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a node's work ends: a tensor in floating point, and the same of it on integers.

    Both are outputs of the graph of Shadows.
    """

    exact: str
    integer: str


@dataclass(frozen=True, kw_only=True)
class Shadows:
    """A graph that computes every node twice: as it is, and on integers from its exact inputs.

    `sites` has those of each node on integers, one for each of its outputs that is read.
    """

    model: Model
    sites: Mapping[str, tuple[Site, ...]]

    @property
    def exact(self) -> tuple[str, ...]:
        """The tensors in floating point of all sites, each once."""
        return tuple(dict.fromkeys(s.exact for sites in self.sites.values() for s in sites))


def ends_of(node: ir.Node, dialect: Dialect) -> list[tuple[ir.Value, ir.Node | None]]:
    """The values in which a node's work ends, with the Relu or Clip that its grid takes in."""
    found: list[tuple[ir.Value, ir.Node | None]] = []
    for output in node.outputs:
        if not output.name or not (output.uses() or output.is_graph_output()):
            continue
        uses = list(output.uses())
        behind = uses[0].node if len(uses) == 1 and not output.is_graph_output() else None
        if behind is None or not is_absorbed(behind, dialect):
            found.append((output, None))
        else:
            found.append((behind.outputs[0], behind))
    return found


def alone(model: Model, scheme: Scheme, node: str) -> Scheme:
    """The Scheme with all nodes but one in floating point: its inputs, its weight, its output."""
    placement = scheme.placement
    reads: dict[str, frozenset[tuple[str, int]] | None] = {**_reads(model, placement)[node]}
    (found,) = (one for one in model.graph if one.name == node)
    for value, _ in ends_of(found, placement.dialect):
        if is_end(value.name or "", placement):
            reads[value.name or ""] = None
    only = replace(
        placement, reads=reads, integer={node: placement.integer[node]},
        weights={n: at for n, at in placement.weights.items() if n == node},
        left={
            **placement.left,
            **{other: "another one alone" for other in placement.integer if other != node},
        },
    )  # fmt: skip
    return Scheme(
        placement=only,
        activations={name: scheme.activations[name] for name in reads},
        weights={n: stored for n, stored in scheme.weights.items() if n == node},
    )


def is_end(name: str, placement: Placement) -> bool:
    """Whether a tensor is quantized for all who read it: as the end of the node that makes it."""
    return name in placement.reads and placement.reads[name] is None


def shadowed(model: Model, scheme: Scheme) -> Shadows:
    """The Shadows of a Model: one run of it says what each node's quantization does by itself."""
    placement = scheme.placement
    program = editable(model)
    graph = program.graph
    nodes = {node.name or "": node for node in graph}
    reads: dict[str, set[tuple[str, int]]] = {}
    ends: dict[str, None] = {}
    grids = dict(scheme.activations)
    sites: dict[str, tuple[Site, ...]] = {}
    exact: dict[str, ir.Value] = {}
    integer: list[ir.Value] = []
    for name, uses in _reads(model, placement).items():
        node = nodes[name]
        found: list[Site] = []
        work = ends_of(node, placement.dialect)
        copy = _copy(node, [*node.inputs], f"{name}{_SHADOW}")
        graph.insert_after(node, copy)
        for value, behind in work:
            result = next(
                mine for mine, own in zip(copy.outputs, node.outputs, strict=True)
                if own is (behind.inputs[0] if behind is not None else value)
            )  # fmt: skip
            last = copy
            if behind is not None:
                last = _copy(behind, [result, *behind.inputs[1:]], f"{name}{_SHADOW}.{behind.name}")
                graph.insert_after(behind, last)
                result = last.outputs[0]
            own = value.name or ""
            final = _passed_on(result, value, f"{name}{_SHADOW}.{own}")
            graph.insert_after(last, final.producer())  # type: ignore[arg-type]
            if is_end(own, placement):
                ends[result.name or ""] = None
                grids[result.name or ""] = scheme.activations[own]
            if value.type is None:
                value.type = ir.TensorType(ir.DataType.FLOAT)
            exact[own] = value
            integer.append(final)
            found.append(Site(exact=own, integer=final.name or ""))
        sites[name] = tuple(found)
        for read, positions in uses.items():
            reads.setdefault(read, set()).update((f"{name}{_SHADOW}", i) for _, i in positions)
    graph.outputs.clear()
    graph.outputs.extend([*exact.values(), *integer])
    shadows = replace(
        placement, left={},
        reads={**{name: frozenset(some) for name, some in reads.items()}, **ends},
        integer={f"{name}{_SHADOW}": op for name, op in placement.integer.items()},
        weights={
            f"{name}{_SHADOW}": replace(at, node=f"{name}{_SHADOW}", added="")
            for name, at in placement.weights.items()
        },
    )  # fmt: skip
    whole = Scheme(
        placement=shadows, activations=grids,
        weights={f"{name}{_SHADOW}": stored for name, stored in scheme.weights.items()},
    )  # fmt: skip
    written, _ = write_qdq(after_step(model, program, "shadows"), whole)
    return Shadows(model=written, sites=sites)


def with_outputs(model: Model, names: Iterable[str]) -> Model:
    """The Model with the named inner values as further outputs."""
    program = editable(model)
    present = {output.name for output in program.graph.outputs}
    values = {value.name or "": value for node in program.graph for value in node.outputs}
    for name in dict.fromkeys(names):
        if name in present:
            continue
        if values[name].type is None:
            values[name].type = ir.TensorType(ir.DataType.FLOAT)
        program.graph.outputs.append(values[name])
    return after_step(model, program, "tap")


def _reads(model: Model, placement: Placement) -> dict[str, dict[str, frozenset[tuple[str, int]]]]:
    """For each node on integers the tensors that it reads through Q/DQ, at which positions."""
    found: dict[str, dict[str, frozenset[tuple[str, int]]]] = {}
    for node in model.graph:
        name = node.name or ""
        if name not in placement.integer:
            continue
        mine: dict[str, set[tuple[str, int]]] = {}
        for index, value in enumerate(node.inputs):
            read = (value.name or "") if value is not None else ""
            if read not in placement.reads:
                continue
            uses = placement.reads[read]
            if uses is None or (name, index) in uses:
                mine.setdefault(read, set()).add((name, index))
        found[name] = {read: frozenset(uses) for read, uses in mine.items()}
    return found


def _copy(node: ir.Node, inputs: list[ir.Value | None], name: str) -> ir.Node:
    copy = ir.Node(
        node.domain, node.op_type, inputs, attributes=list(node.attributes.values()),
        num_outputs=len(node.outputs), name=name,
    )  # fmt: skip
    for index, (made, original) in enumerate(zip(copy.outputs, node.outputs, strict=True)):
        made.name = f"{name}.{index}" if original.name else ""
        made.type, made.shape = original.type, original.shape
    return copy


def _passed_on(value: ir.Value, like: ir.Value, name: str) -> ir.Value:
    """A reader of the value that keeps a Q/DQ behind it alive."""
    final = ir.node("Identity", [value], name=name).outputs[0]
    final.name = name
    final.type, final.shape = like.type or ir.TensorType(ir.DataType.FLOAT), like.shape
    return final
