"""A graph cut across: what is alive between two of its nodes, the part from there to others.

What follows from constants alone (a transposed weight) belongs to no place in the order: each part
has what it needs of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace

import onnx_ir as ir
import onnx_ir.passes.common as passes

from edgekit.compress.channels.replay.shelf import Shelf
from edgekit.models.model import Model, editable
from edgekit.models.schedule import captured_by
from edgekit.values import Array, Batch, Feeds, Session, run

OpenModel = Callable[[Model], AbstractContextManager[Session]]


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The nodes of a graph that depend on its inputs, by their place in the order of the graph.

    Position p lies before the p-th of them. `born` and `last` hold, by value, the first and the
    last position at which it is alive: made, and read at or after it, or an output of the graph.
    `first_read` has the position before the first reader of each constant.
    """

    model: Model
    places: tuple[int, ...]
    born: dict[str, int]
    last: dict[str, int]
    first_read: dict[str, int]
    untyped: frozenset[str]

    def __len__(self) -> int:
        return len(self.places)

    def alive(self, position: int) -> tuple[str, ...]:
        """The values that what comes after the position may read, and outputs made before it."""
        return tuple(
            name for name, born in self.born.items() if born <= position <= self.last[name]
        )

    def position_before(self, weights: Collection[str]) -> int:
        """The last position before all nodes that read one of these initializers, in any way.

        Where a value without a known type is alive there, the last one before it.
        """
        found = min((self.first_read[name] for name in weights), default=len(self))
        while found and not self.untyped.isdisjoint(self.alive(found)):
            found -= 1
        return found

    def part(self, begin: int, end: int, *, fed: Collection[str] = ()) -> Model | None:
        """The graph between two positions; None where it makes nothing that is alive at the end.

        Its inputs are the values alive at `begin` that it reads and the initializers in `fed`; its
        outputs are those alive at `end` that were not alive before.
        """
        wanted = [name for name in self.alive(end) if self.born[name] > begin]
        if not wanted:
            return None
        program = editable(self.model)
        graph = program.graph
        inner = {id(node) for node in list(self._nodes(graph))[begin:end]}
        outer = {id(node) for node in self._nodes(graph)} - inner
        values = {v.name: v for v in (*graph.inputs, *(o for n in graph for o in n.outputs))}
        graph.outputs.clear()
        graph.inputs.clear()
        for name in self.alive(begin):
            graph.inputs.append(_cut_off(values[name]))
        for name in fed:
            weight = graph.initializers.pop(name)
            weight.const_value = None
            graph.inputs.append(weight)
        graph.outputs.extend(values[name] for name in wanted)
        graph.remove([node for node in graph if id(node) in outer], safe=True)
        passes.RemoveUnusedNodesPass()(program)
        for value in [v for v in graph.inputs if not v.uses()]:
            graph.inputs.remove(value)
        return replace(self.model, program=program)

    def _nodes(self, graph: ir.Graph) -> Iterator[ir.Node]:
        wanted = set(self.places)
        return (node for place, node in enumerate(graph) if place in wanted)


def timeline_of(model: Model) -> Timeline:
    """The Timeline of a Model's graph."""
    graph = model.graph
    born = {v.name or "": 0 for v in graph.inputs if v.name not in graph.initializers}
    values = {v.name: v for v in graph.inputs}
    last: dict[str, int] = dict.fromkeys(born, -1)
    places: list[int] = []
    for place, node in enumerate(graph):
        read = [v.name for v in _read_by(node) if v.name in born]
        if not read:
            continue
        for name in read:
            last[name] = len(places)
        places.append(place)
        for value in node.outputs:
            if value.name:
                born[value.name], last[value.name] = len(places), -1
                values[value.name] = value
    last.update({v.name: len(places) for v in graph.outputs if v.name in born})
    untyped = {name for name in born if not isinstance(values[name].type, ir.TensorType)}
    return Timeline(
        model=model, places=tuple(places), born=born, last=last, untyped=frozenset(untyped),
        first_read=_first_read(graph, places),
    )  # fmt: skip


def _first_read(graph: ir.Graph, places: Sequence[int]) -> dict[str, int]:
    """For each value that follows from constants alone the position before its first reader."""
    position_of = {place: position for position, place in enumerate(places)}
    found = dict.fromkeys(graph.initializers, len(places))
    for place, node in reversed(list(enumerate(graph))):
        made = [found.get(value.name or "", len(places)) for value in node.outputs]
        position = position_of[place] if place in position_of else min(made, default=len(places))
        for value in _read_by(node):
            name = value.name or ""
            found[name] = min(found.get(name, len(places)), position)
    return found


def _read_by(node: ir.Node) -> Iterable[ir.Value]:
    return (*(value for value in node.inputs if value is not None), *captured_by(node))


def _cut_off(value: ir.Value) -> ir.Value:
    """The value as an input: nobody makes it any more, all who read it read this."""
    if value.producer() is None:
        return value
    name = value.name
    found = ir.Value(name=name, shape=value.shape, type=value.type)
    value.replace_all_uses_with(found)
    value.name = f"{name}/before"
    return found


class Walk:
    """All samples on their way through the network: what is alive at one position, kept."""

    def __init__(self, line: Timeline, batches: Sequence[Batch], open_model: OpenModel) -> None:
        self.line = line
        self._open = open_model
        self._position = 0
        self._shelf = Shelf()
        alive = set(line.alive(0))
        with ExitStack() as stack:
            stack.enter_context(self._shelf)
            for batch in batches:
                self._shelf.put({n: a for n, a in batch.inputs.items() if n in alive})
            stack.pop_all()

    def __enter__(self) -> Walk:
        return self

    def __exit__(self, *raised: object) -> None:
        self._shelf.close()

    def advance(self, position: int) -> None:
        """Runs what lies between here and a later position."""
        part = self.line.part(self._position, position)
        alive = set(self.line.alive(position))
        self._position = position
        if part is None:
            return
        with ExitStack() as stack:
            after = stack.enter_context(Shelf())
            with self._open(part) as session:
                for values in self._shelf:
                    both = {**values, **_run(session, values)}
                    after.put({name: array for name, array in both.items() if name in alive})
            stack.pop_all()
        self._shelf.close()
        self._shelf = after

    @contextmanager
    def rest(self, weights: Collection[str]) -> Iterator[Callable[[Feeds], Iterator[Feeds]]]:
        """Lends what runs the network from here on with other values of these weights."""
        part = self.line.part(self._position, len(self.line), fed=weights)
        outputs = [spec.name for spec in self.line.model.outputs]
        with ExitStack() as stack:
            session = stack.enter_context(self._open(part)) if part is not None else None

            def run_with(changed: Feeds) -> Iterator[Feeds]:
                for values in self._shelf:
                    made = _run(session, {**values, **changed}) if session is not None else {}
                    yield {name: made[name] if name in made else values[name] for name in outputs}

            yield run_with


def _run(session: Session, values: Feeds) -> dict[str, Array]:
    return run(session, {spec.name: values[spec.name] for spec in session.inputs})
