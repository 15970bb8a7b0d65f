"""From one opset to another, boundary by boundary, over every graph of a model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from edgekit.models.opset.definition import WRITTEN_OUT, write_out
from edgekit.models.opset.lowering import LOWER
from edgekit.models.opset.place import Names, Place, RefusalError
from edgekit.models.opset.raising import RAISE
from edgekit.models.opset.schemas import SAME, begins_at, misfits, schema_at

_REPLACED = ("Scatter", "Upsample")  # gone since opsets 11 and 10
_FIRST_WITHOUT_INPUTS = 4  # the IR version from which on initializers need not be inputs
_FIRST_WITH_FUNCTIONS = 8  # the IR version from which on a model may hold functions


@dataclass(frozen=True, kw_only=True)
class Obstacle:
    """A node that cannot cross a boundary, and why. `version` is the operator's before it."""

    node: str
    op_type: str
    version: int
    reason: str

    def __str__(self) -> str:
        return f'{self.op_type} "{self.node}" (version {self.version}): {self.reason}'


def cross(program: ir.Model, target: int) -> list[Obstacle]:
    """Brings every graph of an editable model to `target`; what stands in the way, if anything.

    With obstacles the model is left half converted: throw it away.
    """
    lowers = program.opset_imports.get("", target) > target
    names = Names(used=set(_names(program)))
    obstacles: list[Obstacle] = []
    scopes: list[ir.Graph | ir.Function] = [program.graph, *program.functions.values()]
    for scope in scopes:
        if "" in scope.opset_imports:
            obstacles += _cross_scope(scope, scope.opset_imports, target, names)
    _set_ir_version(program, target, lowers)
    return obstacles


def _names(program: ir.Model) -> Iterator[str]:
    scopes: list[ir.Graph | ir.Function] = [program.graph, *program.functions.values()]
    for scope in scopes:
        graphs = [scope.graph if isinstance(scope, ir.Function) else scope, *scope.subgraphs()]
        for graph in graphs:
            yield from graph.initializers
            yield from (value.name for value in graph.inputs if value.name)
        for node in scope.all_nodes():
            yield node.name or ""
            yield from (value.name for value in node.outputs if value.name)


def _cross_scope(
    scope: ir.Graph | ir.Function, imports: MutableMapping[str, int], target: int, names: Names
) -> list[Obstacle]:
    start = imports[""]
    lowers = start > target
    nodes = [node for node in scope.all_nodes() if not node.domain]
    origins = {  # of each node, the one that it was made of: position, name, operator
        node: (position, node.name or node.outputs[0].name or "?", node.op_type)
        for position, node in enumerate(nodes)
    }
    obstacles: dict[int, Obstacle] = {}
    freed: list[ir.Value] = []

    def refuse(node: ir.Node, reason: str) -> None:
        position, name, op_type = origins[node]
        if position in obstacles:
            return
        schema = schema_at(op_type, start)
        version = int(schema.since_version) if schema is not None else 0
        if node.op_type != op_type:
            reason = f"it is written by {node.op_type}, and {reason}"
        obstacles[position] = Obstacle(node=name, op_type=op_type, version=version, reason=reason)

    for node in nodes:
        if unknown := _unknown(node, start):
            refuse(node, unknown)
    boundaries = range(start, target, -1) if lowers else range(start + 1, target + 1)
    for boundary in boundaries:
        opset = boundary - 1 if lowers else boundary
        crossed: list[ir.Node] = []
        waiting = deque(nodes)
        while waiting:
            node = waiting.popleft()
            if not begins_at(node.op_type, boundary):
                crossed.append(node)
                continue
            by_definition = lowers and (node.op_type, boundary) in WRITTEN_OUT
            place = Place(
                node=node, opset=boundary if by_definition else opset, names=names,
                base=origins[node][1],
            )  # fmt: skip
            try:
                if by_definition:
                    write_out(place)
                else:
                    _change(place, boundary, lowers)
            except RefusalError as refusal:
                refuse(node, str(refusal))
                continue
            origins.update(dict.fromkeys((*place.added, *place.following), origins[node]))
            freed += place.freed
            node.prepend(place.added)
            if by_definition:
                _take_name(node, place.added[-1])
                waiting.extendleft(reversed(place.added))
                continue
            node.append(place.following)
            made = [*place.added, node, *place.following]
            wrong = [(one, reason) for one in made for reason in misfits(one, opset)]
            if wrong:
                refuse(*wrong[0])
            else:
                crossed += made
        _sweep(freed)
        nodes = [node for node in crossed if node.graph is not None]
    imports[""] = target
    return [obstacles[position] for position in sorted(obstacles)]


def _unknown(node: ir.Node, opset: int) -> str:
    """Why a node of the default domain has no meaning at the opset that it comes with, or ""."""
    schema = schema_at(node.op_type, opset)
    if schema is None or (schema.deprecated and node.op_type in _REPLACED):
        return f"ONNX has no such operator at opset {opset}"
    return ""


def _change(place: Place, boundary: int, lowers: bool) -> None:
    op_type = place.node.op_type
    step = (LOWER if lowers else RAISE).get((op_type, boundary))
    if step is not None:
        step(place)
    elif lowers and schema_at(op_type, boundary - 1) is None:
        raise RefusalError(f"ONNX has it from opset {boundary} on")
    elif op_type not in SAME.get(boundary, ()):
        raise RefusalError(f"edgekit does not know how to take it across opset {boundary}")


def _take_name(node: ir.Node, heir: ir.Node) -> None:
    """Removes a node that nothing reads any more; another has its name from then on."""
    name, graph = node.name, node.graph
    assert graph is not None
    graph.remove(node, safe=True)
    heir.name = name


def _sweep(freed: list[ir.Value]) -> None:
    """Removes constants that nothing reads any more because an input became an attribute."""
    while freed:
        value = freed.pop()
        graph, producer = value.graph, value.producer()
        if graph is None or value.uses() or value.is_graph_output() or value.is_graph_input():
            continue
        if producer is not None and producer.op_type == "Constant" and not producer.domain:
            graph.remove(producer, safe=True)
        elif value.is_initializer() and value.name:
            del graph.initializers[value.name]


def _set_ir_version(program: ir.Model, opset: int, lowers: bool) -> None:
    """The IR version that came with the opset: at most that one when lowering, at least it else."""
    imports = [onnx.helper.make_opsetid("", opset)]
    own = int(onnx.helper.find_min_ir_version_for(imports))
    if not lowers:
        program.ir_version = max(program.ir_version, own)
        return
    least = _FIRST_WITH_FUNCTIONS if program.functions else _FIRST_WITHOUT_INPUTS
    program.ir_version = min(program.ir_version, max(own, least))
