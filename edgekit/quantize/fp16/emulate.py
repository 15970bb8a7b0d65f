"""What rounding to float16 does to a network's outputs, and which tensor's rounding does it.

A CPU runs a float16 graph in float32 and rounds only where something leaves it: ONNX Runtime's
casts between two nodes cancel out, and what overflows on a GPU does not there (seen with 1.32). So
the graph that is run here is the float32 one with every tensor rounded to float16 and back where
the plan says so, each behind a switch of its own. Sums inside a kernel are taken as exact to
float32, as tensor cores sum; `sums.py` bounds those that a kernel may well keep in float16.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from edgekit.errors import InputError
from edgekit.models.model import Model, after_step, editable
from edgekit.quantize.fp16.plan import TypePlan, plan_types
from edgekit.quantize.fp16.slots import FLOAT, HALF, fill_types
from edgekit.quantize.judging.parts import Part, output_parts
from edgekit.quantize.observe import OpenSession
from edgekit.values import Array, Batch, Feeds, Session, run

SWITCHES = "~switches"
_SELECTING = frozenset({
    "NonMaxSuppression", "NonZero", "TopK", "ArgMax", "ArgMin", "Unique", "Compress",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Harm:
    """A tensor whose rounding alone changes a part of the output by `error`, relative RMS."""

    tensor: str
    error: float
    part: str
    told_apart: bool


@dataclass(frozen=True, kw_only=True)
class Emulation:
    """The float32 graph with a switch in front of every rounding; `units` are the tensors."""

    model: Model
    units: tuple[str, ...]
    parts: tuple[Part, ...]


def emulation_of(model: Model, kept: Mapping[str, str], *, keep_io: bool) -> Emulation:
    """A Model whose extra input `SWITCHES` (units,) bool says which tensors are rounded.

    Its outputs are what is judged: each floating-point output, and where an output is chosen by
    comparing (a TopK, a NonMaxSuppression), what is compared.
    """
    program = editable(model)
    graph = program.graph
    opset = program.opset_imports.get("", 0)
    fill_types(graph, opset)
    judged = _judged(graph)
    if not judged:
        raise InputError(
            "no output of this network comes from a floating-point number", where=model.name,
            hint="There is nothing to convert: ask for fp32.",
        )  # fmt: skip
    graph.outputs.clear()
    graph.outputs.extend(judged)
    parts = output_parts(after_step(model, program, "judged"))
    plan = plan_types(graph, opset, kept, keep_io=keep_io)
    units = _add_switches(graph, plan)
    emulated = after_step(model, program, "emulate_fp16")
    return Emulation(model=emulated, units=units, parts=parts)


def _judged(graph: ir.Graph) -> list[ir.Value]:
    chosen: set[ir.Value] = set()  # what depends on which entries were selected
    for node in graph:
        selects = node.op_type in _SELECTING and not node.domain
        if selects or any(value in chosen for value in node.inputs if value is not None):
            chosen.update(node.outputs)
    found: dict[ir.Value, None] = {}
    seen: set[ir.Value] = set()
    queue = list(graph.outputs)
    while queue:
        value = queue.pop(0)
        producer = value.producer()
        if value in seen or producer is None:
            continue
        seen.add(value)
        if value.dtype == FLOAT and value not in chosen:
            found[value] = None
        else:
            queue += [one for one in producer.inputs if one is not None]
    return list(found)


def _add_switches(graph: ir.Graph, plan: TypePlan) -> tuple[str, ...]:
    first = next(iter(graph))
    switches = ir.val(SWITCHES, dtype=ir.DataType.BOOL, shape=ir.Shape(["units"]))
    units: list[str] = []
    stored = {v: FLOAT for v in graph.initializers.values() if v.dtype == FLOAT}
    made = [*graph.inputs, *(value for node in graph for value in node.outputs)]
    homes = {v: home for v in made if (home := plan.home(v)) is not None} | stored
    for value, home in homes.items():
        uses = [
            use
            for use in value.uses()
            if home == HALF or (use.node.graph is graph and plan.wanted(use.node, use.idx) == HALF)
        ]
        if not uses and not (home == HALF and value.is_graph_output()):
            continue
        nodes = _switch(graph, switches, value, len(units))
        rounded = nodes[-1].outputs[0]
        for use in uses:
            use.node.replace_input_with(use.idx, rounded)
        producer = value.producer()
        if producer is None:
            graph.insert_before(first, nodes)
        else:
            graph.insert_after(producer, nodes)
        if home == HALF and value.is_graph_output():
            name = value.name or ""
            value.name = f"{name}~exact"
            rounded.name = name
            graph.outputs[list(graph.outputs).index(value)] = rounded
            units.append(name)
        else:
            units.append(value.name or "")
    graph.inputs.append(switches)
    return tuple(units)


def _switch(graph: ir.Graph, switches: ir.Value, value: ir.Value, index: int) -> list[ir.Node]:
    """The nodes that give the value, rounded to float16 and back where its switch is on."""
    name = f"{value.name}~{index}"
    place = ir.val(f"{name}.index", const_value=ir.tensor(np.array(index), name=f"{name}.index"))
    graph.register_initializer(place)
    pick = ir.node("Gather", [switches, place], name=f"{name}.pick")
    down = ir.node("Cast", [value], attributes={"to": int(HALF)}, name=f"{name}.down")
    up = ir.node("Cast", [down.outputs[0]], attributes={"to": int(FLOAT)}, name=f"{name}.up")
    choose = ir.node("Where", [pick.outputs[0], up.outputs[0], value], name=f"{name}.choose")
    for node in (pick, down, up, choose):
        node.outputs[0].name = f"{node.name}.out"
    choose.outputs[0].type, choose.outputs[0].shape = ir.TensorType(FLOAT), value.shape
    return [pick, down, up, choose]


class Judge:
    """Runs an Emulation on the same samples with one set of switches after the other."""

    def __init__(self, emulation: Emulation, session: Session, feeds: Sequence[Feeds]) -> None:
        self.emulation = emulation
        self.session = session
        self.feeds = feeds
        self.runs = 0
        self.exact = self._outputs(())

    def errors(self, units: Iterable[int]) -> dict[str, float]:
        """The relative RMS error of each part where these tensors are rounded; inf for NaN."""
        found = self._outputs(units)
        errors: dict[str, float] = {}
        for part in self.emulation.parts:
            noise = signal = 0.0
            for exact, rounded in zip(self.exact, found, strict=True):
                wanted = part.of(exact[part.output]).astype(np.float64)
                given = part.of(rounded[part.output]).astype(np.float64)
                at = np.isfinite(wanted)
                noise += float(np.square(given[at] - wanted[at]).sum())
                signal += float(np.square(wanted[at]).sum())
            ratio = np.sqrt(noise / max(signal, np.finfo(np.float64).tiny))
            name = part.name if part.name not in errors else str(part)
            errors[name] = float(ratio) if np.isfinite(ratio) else float("inf")
        return errors

    def worst(self, units: Iterable[int]) -> tuple[float, str]:
        """The largest of the errors, and whose it is."""
        errors = self.errors(units)
        part = max(errors, key=lambda name: errors[name])
        return errors[part], part

    def _outputs(self, units: Iterable[int]) -> list[dict[str, Array]]:
        self.runs += 1
        switches = np.zeros(len(self.emulation.units), np.bool_)
        switches[list(units)] = True
        with np.errstate(all="ignore"):
            return [run(self.session, {**feeds, SWITCHES: switches}) for feeds in self.feeds]


def harms(judge: Judge, budget: float, most_runs: int) -> list[Harm]:
    """The tensors whose rounding makes up most of the error, the largest first.

    As many as have to stay in float32 for the squared error of the rest, taken as independent, to
    be at most `budget`. Found by halving the group that errs most, about 2 log2(n) runs for
    each; where `most_runs` are used up, the group that is left at the top is named as a whole.
    """
    groups: list[tuple[float, tuple[int, ...], str]] = []

    def push(units: tuple[int, ...]) -> None:
        error, part = judge.worst(units)
        heapq.heappush(groups, (-(error**2), units, part))

    found: list[Harm] = []
    names = judge.emulation.units
    begun = judge.runs
    push(tuple(range(len(names))))
    while sum(-noise for noise, _, _ in groups) > budget:
        noise, units, part = heapq.heappop(groups)
        spent = judge.runs - begun >= most_runs
        if len(units) == 1 or spent:
            error, alone = float(np.sqrt(-noise)), len(units) == 1
            found += [
                Harm(tensor=names[unit], error=error, part=part, told_apart=alone) for unit in units
            ]
            continue
        middle = len(units) // 2
        push(units[:middle])
        push(units[middle:])
    return found


def largest_magnitudes(
    model: Model, names: Sequence[str], batches: Iterable[Batch], open_session: OpenSession
) -> dict[str, float]:
    """The largest |x| of each named tensor over the batches, infinities left out.

    Reduced inside the graph: a number for each tensor and batch. Raises InputError where there is
    no sample, or where a tensor becomes NaN.
    """
    program = editable(model)
    graph = program.graph
    values = {v.name: v for v in (*graph.inputs, *(o for n in graph for o in n.outputs))}
    taps: dict[str, str] = {}
    graph.outputs.clear()
    for index, name in enumerate(names):
        value = values[name]
        magnitude = ir.node("Abs", [value], name=f"~abs{index}")
        most = ir.node(
            "ReduceMax", [magnitude.outputs[0]], attributes={"keepdims": 0}, name=f"~most{index}"
        )
        for node in (magnitude, most):
            node.outputs[0].name = node.name
        most.outputs[0].type, most.outputs[0].shape = ir.TensorType(FLOAT), ir.Shape([])
        graph.extend([magnitude, most])
        graph.outputs.append(most.outputs[0])
        taps[f"~most{index}"] = name
    found = dict.fromkeys(names, 0.0)
    samples = 0
    session: AbstractContextManager[Session] = open_session(after_step(model, program, "largest"))
    with session as opened:
        for batch in batches:
            samples += len(batch)
            for tap, most_seen in run(opened, batch.inputs).items():
                _add_magnitude(found, taps[tap], float(most_seen))
    if not samples:
        raise InputError(
            "there is no sample to run the network on", where=model.name,
            hint="Name unlabelled samples of what the device will see; a few dozen will do.",
        )  # fmt: skip
    return found


def _add_magnitude(found: dict[str, float], name: str, seen: float) -> None:
    if np.isnan(seen):
        raise InputError(
            f'the tensor "{name}" becomes NaN on the samples, in float32 already', where="fp16",
            hint="Look for a bad sample, or for an overflow in the model.",
        )  # fmt: skip
    if np.isfinite(seen):
        found[name] = max(found[name], seen)
