"""A batch that was fixed by the export, freed: many samples at a time, and each as if alone.

Calibration, evaluation and training run batches. An export with the batch fixed writes it into
reshapes, expansions and sizes; these are rewritten, and the whole is believed only if two samples
together give what each gave alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir

from edgekit.errors import InputError
from edgekit.models.model import Model, add_parameter, after_step, attribute, constant_of, editable
from edgekit.values import Array, TensorSpec

BATCH = "batch"
TOLERANCE = 1e-4  # relative error allowed between two samples together and each alone

Run = Callable[[Model, Mapping[str, Array]], Mapping[str, Array]]


def fixed_batch(model: Model) -> int:
    """The batch that every input is fixed at; 0 where one is dynamic, or they differ."""
    sizes = {spec.shape[0] if spec.shape else 0 for spec in model.inputs}
    (size,) = sizes if len(sizes) == 1 else (0,)
    return size if isinstance(size, int) else 0


def free_batch(model: Model, *, run: Run) -> Model:
    """The Model with a dynamic batch, where it was fixed; the same Model where it was not.

    `run` gives a Model's outputs. Raises InputError where samples influence each other, or where
    the batch is written into the graph in a way that is not known here.
    """
    size = fixed_batch(model)
    if not size:
        return model
    program = editable(model)
    _rewrite(program.graph, size)
    for value in (*program.graph.inputs, *program.graph.outputs):
        if value.shape is not None and len(value.shape):
            value.shape = ir.Shape([BATCH, *list(value.shape)[1:]])
    for node in program.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None
    freed = after_step(model, program, "free_batch")
    reason = _first_difference(model, freed, size, run)
    if reason:
        raise InputError(
            f"the batch of this model is fixed at {size}", where=model.name, got=reason,
            wanted="a dynamic first axis, for calibration and evaluation",
            hint='Export it with a dynamic batch: dynamic_shapes=({0: "batch"},) in '
            "torch.onnx.export, dynamic=True in ultralytics.",
        )  # fmt: skip
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(program), data_prop=True)
    return replace(freed, program=ir.from_proto(proto))


def _rewrite(graph: ir.Graph, size: int) -> None:
    depends: set[ir.Value] = set(graph.inputs)
    for node in list(graph):
        on_batch = [value for value in node.inputs if value in depends]
        if on_batch and not node.domain:
            rule = _RULES.get(node.op_type)
            if rule is not None:
                rule(graph, node, size, depends)
        if on_batch and node.op_type not in ("Shape", "Size"):
            depends.update(node.outputs)


def _reshape(graph: ir.Graph, node: ir.Node, size: int, depends: set[ir.Value]) -> None:
    """The first entry becomes what is left: the batch, with what was merged into it."""
    del depends
    shape, source, output = constant_of(node.inputs[1]), node.inputs[0], node.outputs[0]
    if shape is None or source is None or not len(shape):
        return
    sizes = [int(s) for s in shape]
    if sizes[0] == -1 or (sizes[0] == 0 and not attribute(node, "allowzero", 0)):
        return
    if -1 in sizes:
        left = sizes.index(-1)
        known = output.shape[left] if output.shape is not None else None
        if not isinstance(known, int):
            if sizes[0] == size:
                sizes[0] = 0
                _replace_constant(graph, node, 1, np.array(sizes, np.int64))
            return
        sizes[left] = known
    sizes[0] = -1
    _replace_constant(graph, node, 1, np.array(sizes, np.int64))


def _concat(graph: ir.Graph, node: ir.Node, size: int, depends: set[ir.Value]) -> None:
    """A constant that is joined to each sample (a class token) is repeated for each."""
    rank = next((len(v.shape) for v in node.inputs if v is not None and v.shape is not None), 0)
    if not rank or int(attribute(node, "axis", 0)) % rank == 0:
        return
    for place, value in enumerate(node.inputs):
        if value is None or value in depends or value.shape is None or value.shape[0] != size:
            continue
        rest = [int(str(s)) for s in list(value.shape)[1:]]
        repeated = _expanded(graph, node, value, rest)
        depends.add(repeated)
        node.replace_input_with(place, repeated)


def _expanded(graph: ir.Graph, node: ir.Node, value: ir.Value, rest: list[int]) -> ir.Value:
    """The value, whose first axis is 1, as often as there are samples."""
    stem = f"{node.name or node.outputs[0].name}.{value.name}"
    count = ir.node("Shape", [graph.inputs[0]], {"start": 0, "end": 1}, name=f"{stem}.count")
    if (graph.opset_imports.get("", 0) or 0) < 15:
        zero = _constant(graph, f"{stem}.zero", np.array([0], np.int64))
        whole = ir.node("Shape", [graph.inputs[0]], name=f"{stem}.shape")
        graph.insert_before(node, whole)
        count = ir.node("Gather", [whole.outputs[0], zero], {"axis": 0}, name=f"{stem}.count")
    tail = _constant(graph, f"{stem}.rest", np.array(rest, np.int64))
    shape = ir.node("Concat", [count.outputs[0], tail], {"axis": 0}, name=f"{stem}.to")
    expand = ir.node("Expand", [value, shape.outputs[0]], name=f"{stem}.expand")
    graph.insert_before(node, [count, shape, expand])
    for made in (count, shape, expand):
        made.outputs[0].name = f"{made.name}.out"
    return expand.outputs[0]


def _resize(graph: ir.Graph, node: ir.Node, size: int, depends: set[ir.Value]) -> None:
    """Sizes with the batch among them become sizes of the spatial axes, or scales."""
    del depends
    sizes = constant_of(node.inputs[3]) if len(node.inputs) > 3 else None
    source = node.inputs[0]
    if sizes is None or source is None or source.shape is None or int(sizes[0]) != size:
        return
    if attribute(node, "axes") is not None:
        return
    if (graph.opset_imports.get("", 0) or 0) >= 18:
        node.attributes.add(ir.AttrInt64s("axes", list(range(2, len(sizes)))))
        _replace_constant(graph, node, 3, np.asarray(sizes[2:], np.int64))
        return
    have = [int(str(s)) for s in source.shape]
    scales = np.array([w / h for w, h in zip(sizes, have, strict=True)], np.float32)
    _replace_constant(graph, node, 2, scales)
    node.resize_inputs(3)


_RULES: Mapping[str, Callable[[ir.Graph, ir.Node, int, set[ir.Value]], None]] = {
    "Concat": _concat,
    "Reshape": _reshape,
    "Resize": _resize,
}


def _replace_constant(graph: ir.Graph, node: ir.Node, place: int, array: Array) -> None:
    stem = f"{node.name or node.outputs[0].name}.freed"
    node.replace_input_with(place, _constant(graph, stem, array))


def _constant(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    while name in graph.initializers:
        name += "_"
    return add_parameter(graph, name, array)


def _first_difference(model: Model, freed: Model, size: int, run: Run) -> str:
    """What is wrong with the freed Model, or nothing: two batches of the old size, and one of two.

    Samples are seeded noise; they differ, so that one which leaks into the other is seen.
    """
    first, second = (_noise(model.inputs, seed) for seed in (1, 2))
    together = {name: np.concatenate([first[name], second[name]]) for name in first}
    alone = [run(model, feeds) for feeds in (first, second)]
    try:
        found = run(freed, together)
    except InputError as error:
        return f"two at a time fail: {error.got or error.what}"
    for name, array in found.items():
        expected = np.concatenate([outputs[name] for outputs in alone])
        if array.shape != expected.shape:
            return f'"{name}" of {2 * size} samples is {array.shape}, not {expected.shape}'
        top = float(np.abs(expected.astype(np.float64)).max(initial=0.0)) or 1.0
        worst = float(np.abs(array.astype(np.float64) - expected).max(initial=0.0)) / top
        if not worst <= TOLERANCE:
            return f'"{name}" of a sample depends on the other ones (error {worst:.1e})'
    return ""


def _noise(inputs: tuple[TensorSpec, ...], seed: int) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    feeds = {}
    for spec in inputs:
        shape = [s if isinstance(s, int) else 64 for s in spec.shape]
        feeds[spec.name] = rng.normal(size=shape).astype(spec.dtype)
    return feeds
