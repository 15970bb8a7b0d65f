"""What each node costs: multiply-accumulates, parameters, weight and activation bytes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from edgekit.errors import InputError
from edgekit.models.cost.anatomy import (
    bodies,
    fixed_values,
    is_view,
    label,
    live_nodes,
    reads,
    stored_values,
)
from edgekit.models.cost.macs import is_opaque, macs_of
from edgekit.models.cost.parameters import Role, role_of, weights_of
from edgekit.models.cost.sizes import Forms, forms, sizes_of
from edgekit.models.model import Model
from edgekit.values import Unknown


@dataclass(frozen=True, kw_only=True)
class NodeCost:
    """One node's cost at one batch size.

    `parameters` and `weight_bytes` are those of all stored tensors that the node needs, through
    whatever is computed from them alone (a Transpose, a DequantizeLinear): that computing costs
    nothing, since a runtime does it once. `activation_bytes` are those of the outputs, as far as
    anything reads them. What no output of the graph depends on costs nothing.
    """

    node: str
    op: str
    macs: int
    parameters: int
    weight_bytes: int
    activation_bytes: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The sums over a Model; a stored tensor that two nodes read is counted once.

    `statistics` are the running means and variances of BatchNormalization: stored numbers, and no
    parameters. `weight_bytes` are those of everything that is stored.
    """

    macs: int
    parameters: int
    statistics: int
    weight_bytes: int
    activation_bytes: int


@dataclass(frozen=True, kw_only=True)
class NodeSurvey:
    """What is known of a node's cost. `moved_bytes`: its inputs, weights and outputs together.

    `weights` names the parameters that it needs, the largest first: people know these names.
    """

    node: str
    op: str
    weights: tuple[str, ...]
    macs: int | Unknown
    parameters: int
    weight_bytes: int
    activation_bytes: int | Unknown
    moved_bytes: int | Unknown


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What a file stores that the network needs, counted once each; bytes by type too."""

    parameters: int
    statistics: int
    weight_bytes: int
    weight_bytes_by_type: Mapping[str, int]


def node_costs(model: Model, *, batch: int = 1) -> tuple[NodeCost, ...]:
    """The cost of every node in the graph's order; a dynamic first dimension is `batch`.

    The formulas are those of `macs.macs_of`; an operator of another domain and what runs inside an
    If or a Loop count as 0 here (`survey` says that they are unknown). Raises InputError where a
    shape that is needed is not known.
    """
    known = forms(model, batch=batch)
    costs = []
    for node, found in zip(model.graph, survey(model, known), strict=True):
        macs, activation_bytes = found.macs, found.activation_bytes
        if isinstance(macs, Unknown):
            if not is_opaque(node):
                raise _unknown(node, known, macs)
            macs = 0
        if isinstance(activation_bytes, Unknown):
            activation_bytes = 0
        costs.append(
            NodeCost(
                node=found.node,
                op=found.op,
                macs=macs,
                parameters=found.parameters,
                weight_bytes=found.weight_bytes,
                activation_bytes=activation_bytes,
            )
        )
    return tuple(costs)


def total_cost(model: Model, *, batch: int = 1) -> Cost:
    """The sums over the graph. Raises as `node_costs` does."""
    costs = node_costs(model, batch=batch)
    stored = stored_numbers(model)
    return Cost(
        macs=sum(cost.macs for cost in costs),
        parameters=stored.parameters,
        statistics=stored.statistics,
        weight_bytes=stored.weight_bytes,
        activation_bytes=sum(cost.activation_bytes for cost in costs),
    )


def survey(model: Model, known: Forms) -> tuple[NodeSurvey, ...]:
    """What is known of every node's cost, in the graph's order; `known` as `sizes.forms` gives.

    A part that cannot be known is Unknown with its reason and spoils no other.
    """
    graph = model.graph
    live, fixed = set(_all_live(graph)), fixed_values(graph)
    is_parameter = {
        value: role_of(value, fixed, live) is Role.PARAMETER for value in stored_values(graph)
    }

    def look(node: ir.Node) -> NodeSurvey:
        idle = node not in live or all(output in fixed for output in node.outputs)
        weights = () if idle else weights_of(node, fixed)
        tensors = [(value, _tensor(value)) for value in weights]
        weight_bytes = sum(tensor.nbytes for _, tensor in tensors)
        written = [o for o in node.outputs if o.uses() or o.is_graph_output()]
        activation_bytes = 0 if idle else _sum_bytes(written, known)
        moved = 0 if idle or is_view(node) else _moved(node, fixed, known)
        parameters = [(v, t) for v, t in tensors if is_parameter.get(v, False)]
        return NodeSurvey(
            node=label(node),
            op=node.op_type,
            weights=_names(parameters),
            macs=0 if idle else macs_of(node, known),
            parameters=sum(tensor.size for _, tensor in parameters),
            weight_bytes=weight_bytes,
            activation_bytes=activation_bytes,
            moved_bytes=moved if isinstance(moved, Unknown) else moved + weight_bytes,
        )

    return tuple(look(node) for node in graph)


def stored_numbers(model: Model) -> Stored:
    """What the file stores, parameters and running statistics apart. Needs no shapes.

    The settings of operators (bounds, shapes, scales) are neither, but take bytes all the same.
    """
    graph = model.graph
    live, fixed = set(_all_live(graph)), fixed_values(graph)
    counts: Counter[Role] = Counter()
    sizes: Counter[str] = Counter()
    for value in stored_values(graph):
        tensor = _tensor(value)
        counts[role_of(value, fixed, live)] += tensor.size
        sizes[tensor.dtype.name.lower()] += tensor.nbytes
    return Stored(
        parameters=counts[Role.PARAMETER],
        statistics=counts[Role.STATISTIC],
        weight_bytes=sum(sizes.values()),
        weight_bytes_by_type=dict(sizes.most_common()),
    )


def elements(value: ir.Value | None, batch: int) -> int:
    """The number of elements of a value; a dynamic first dimension is `batch`.

    Raises InputError where its shape is not known.
    """
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return int(tensor.size)
    shape = () if value is None or value.shape is None else tuple(value.shape)
    sizes = [batch if axis == 0 and not isinstance(d, int) else d for axis, d in enumerate(shape)]
    whole = [size for size in sizes if isinstance(size, int)]
    if value is None or value.shape is None or len(whole) != len(sizes):
        raise InputError(
            f'the shape of "{value.name if value else ""}" is not known, so its cost is not either',
            got="no shape" if value is None or value.shape is None else str(value.shape),
        )
    return math.prod(whole)


def _unknown(node: ir.Node, known: Forms, found: Unknown) -> InputError:
    missing = next((v for v in reads(node) if isinstance(sizes_of(v, known), Unknown)), None)
    named = missing if missing is not None else node.outputs[0]
    form = known.get(named)
    return InputError(
        f'the shape of "{named.name}" is not known, so its cost is not either',
        where=f"{node.op_type} {node.name}",
        got=form.shown if form is not None else found.reason,
        hint="Export the model with fixed sizes but for the batch.",
    )


def _moved(node: ir.Node, fixed: set[ir.Value], known: Forms) -> int | Unknown:
    """The bytes of what the node reads of the activations, and of what it writes."""
    read = [value for value in dict.fromkeys(reads(node)) if value not in fixed]
    written = [output for output in node.outputs if output.name]
    return _sum_bytes([*read, *written], known)


def _sum_bytes(values: Iterable[ir.Value], known: Forms) -> int | Unknown:
    total = 0
    for value in values:
        form = known.get(value)
        found = Unknown("it is not of this graph") if form is None else form.nbytes
        if isinstance(found, Unknown):
            return Unknown(f'"{value.name}": {found.reason}')
        total += found
    return total


def _names(parameters: Iterable[tuple[ir.Value, ir.TensorProtocol]]) -> tuple[str, ...]:
    """The largest first; of equal ones the weight before the bias."""
    found = [(-tensor.size, value.name or "") for value, tensor in parameters]
    ordered = sorted(found, key=lambda item: (item[0], not item[1].endswith("weight"), item[1]))
    return tuple(name for _, name in ordered)


def _tensor(value: ir.Value) -> ir.TensorProtocol:
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise InputError(f'the file has no numbers for the initializer "{value.name}"')
    return tensor


def _all_live(graph: ir.Graph) -> Iterator[ir.Node]:
    for node in live_nodes(graph):
        yield node
        for body in bodies(node):
            yield from _all_live(body)
