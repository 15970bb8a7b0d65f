"""How large every tensor of a graph is once the sizes of the graph's inputs are given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper, shape_inference

from edgekit.errors import InputError
from edgekit.models.cost.anatomy import live_nodes
from edgekit.models.model import Model, constant_of, editable, spec_of
from edgekit.values import Array, TensorSpec, Unknown

Sizes = tuple[int, ...]

_SMALL_BYTES = 1024  # a stored tensor up to this size may say what a shape is
_SMALL_ELEMENTS = 128
_ROUNDS = 64  # of inferring, computing shapes, inferring again
# What exporters compute shapes with. None of these makes more than its inputs hold, or than the
# size that shape inference has found for its output.
_ARITHMETIC = frozenset({
    "Abs", "Add", "Cast", "Ceil", "Concat", "ConstantOfShape", "Div", "Equal", "Expand", "Floor",
    "Gather", "Greater", "Identity", "Less", "Max", "Min", "Mod", "Mul", "Neg", "Not",
    "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Shape", "Size", "Slice",
    "Split", "Squeeze", "Sub", "Unsqueeze", "Where",
})  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Form:
    """A tensor's type and sizes; `sizes` is None where they are not known, `shown` says how far."""

    dtype: ir.DataType | None
    sizes: Sizes | None
    shown: str

    @property
    def elements(self) -> int | Unknown:
        """The number of elements."""
        if self.sizes is None:
            return Unknown(f"its shape is {self.shown}")
        return math.prod(self.sizes)

    @property
    def nbytes(self) -> int | Unknown:
        """The bytes that it takes; types narrower than a byte are packed."""
        count = self.elements
        if isinstance(count, Unknown):
            return count
        if self.dtype is None or self.dtype == ir.DataType.STRING:
            return Unknown("its type has no fixed size" if self.dtype else "its type is not known")
        return -(-count * self.dtype.bitwidth // 8)


Forms = Mapping[ir.Value, Form]
"""The form of every value of the main graph."""


def forms(
    model: Model, *, batch: int | None = None, shapes: Mapping[str, Sizes] | None = None
) -> Forms:
    """The type and sizes of every value of the main graph, as far as they can be known.

    A dynamic first dimension of an input is `batch`, 1 where None is given; `shapes` says the whole
    shape of an input. Where the shapes in the graph do not answer yet, they are inferred again at
    these sizes, weights left out, and what computes shapes is computed.

    Raises InputError for sizes that the model does not take.
    """
    given = _input_sizes(model, batch, shapes or {})
    bound = _bindings(model, given)
    alive = {value for node in live_nodes(model.graph) for value in (*node.inputs, *node.outputs)}
    found = {value: _form(value, bound) for value in _values(model.graph)}
    missing = [v for v in alive if v is not None and v in found and found[v].sizes is None]
    if not missing:
        return found
    asked = bool(shapes) or (batch or 1) > 1
    inferred = _inferred(model, given, asked=asked)
    return {
        value: _better(form, inferred.get(value.name or "")) for value, form in found.items()
    }  # fmt: skip


def missing_sizes(model: Model, known: Forms) -> str:
    """Which sizes of which inputs nobody gave, and how to give them; empty where all are there."""
    for value in model.graph.inputs:
        form = known.get(value)
        if value.is_initializer() or form is None or form.sizes is not None:
            continue
        spec = spec_of(value)
        names = [size for size in spec.shape[1:] if isinstance(size, str)]
        if names:
            listed = ",".join(map(str, (1, *spec.shape[1:])))
            return (
                f'the input "{spec.name}" leaves {", ".join(names)} open; give them: '
                f"--shape {spec.name}={listed}"
            )
    return ""


def _inputs(model: Model) -> tuple[TensorSpec, ...]:
    """The specs of the inputs that a caller has to give."""
    return tuple(spec_of(v) for v in model.graph.inputs if not v.is_initializer())


def _input_sizes(
    model: Model, batch: int | None, shapes: Mapping[str, Sizes]
) -> dict[str, tuple[int | str, ...]]:
    """The shape of each input with the given sizes in it; what nobody gave stays a name."""
    specs = {spec.name: spec for spec in _inputs(model)}
    for name in shapes:
        if name not in specs:
            raise InputError(
                f'the model has no input "{name}"', wanted=", ".join(specs),
                hint="--shape takes the name of an input: --shape input=1,3,224,224",
            )  # fmt: skip
    if batch is not None and batch < 1:
        raise InputError("a batch holds at least one sample", got=str(batch))
    found: dict[str, tuple[int | str, ...]] = {}
    for name, spec in specs.items():
        wanted = shapes.get(name)
        if wanted is None:
            found[name] = _with_batch(spec, batch)
            continue
        fits = len(wanted) == len(spec.shape) and all(
            size >= 1 and (not isinstance(fixed, int) or size == fixed)
            for size, fixed in zip(wanted, spec.shape, strict=True)
        )
        if not fits:
            raise InputError(
                f'the input "{name}" does not take this shape',
                got=", ".join(map(str, wanted)), wanted=", ".join(map(str, spec.shape)),
                hint="Only a dynamic size can be chosen; a fixed one is the exporter's.",
            )  # fmt: skip
        if batch is not None and wanted[0] != batch:
            raise InputError(
                "--batch and --shape contradict each other",
                got=f"--batch {batch}, --shape {name}={','.join(map(str, wanted))}",
            )
        found[name] = wanted
    return found


def _with_batch(spec: TensorSpec, batch: int | None) -> tuple[int | str, ...]:
    if not spec.shape:
        return spec.shape
    first = spec.shape[0]
    if isinstance(first, int):
        if batch is not None and batch > 1 and first != batch:
            raise InputError(
                f'the batch of the input "{spec.name}" is fixed',
                got=str(batch), wanted=str(first),
                hint="Export the model with a dynamic batch, or leave --batch out.",
            )  # fmt: skip
        return spec.shape
    return (batch or 1, *spec.shape[1:])


def _bindings(model: Model, given: Mapping[str, tuple[int | str, ...]]) -> dict[str, int]:
    """What each named dimension is. Raises InputError where it is given two sizes."""
    bound: dict[str, int] = {}
    for spec in _inputs(model):
        for name, size in zip(spec.shape, given[spec.name], strict=True):
            if not isinstance(name, str) or name == "?" or not isinstance(size, int):
                continue
            if bound.setdefault(name, size) != size:
                raise InputError(
                    f'the dimension "{name}" has one size wherever it stands',
                    got=f"{bound[name]} and {size}",
                )
    return bound


def _values(graph: ir.Graph) -> list[ir.Value]:
    found = dict.fromkeys([*graph.inputs, *graph.initializers.values()])
    for node in graph:
        found.update(dict.fromkeys(value for value in node.inputs if value is not None))
        found.update(dict.fromkeys(node.outputs))
    found.update(dict.fromkeys(graph.outputs))
    return list(found)


def _form(value: ir.Value, bound: Mapping[str, int]) -> Form:
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        stored = tuple(int(str(size)) for size in tensor.shape)
        return Form(dtype=tensor.dtype, sizes=stored, shown=str(stored))
    if value.shape is None:
        return Form(dtype=value.dtype, sizes=None, shown="not known")
    sizes: list[int | str] = []
    for size in value.shape:
        name = size if isinstance(size, int) else (size.value or "?")
        known = bound.get(name, _shown(name)) if isinstance(name, str) else name
        least = 1 if value.is_graph_input() else 0  # some exporters write a dynamic size as -1 or 0
        sizes.append(known if isinstance(known, str) or known >= least else "?")
    return _form_of(value.dtype, sizes)


def _shown(name: str) -> str:
    """The dimension's name; those that shape inference makes up say nothing."""
    return "?" if name.startswith("unk__") else name


def _form_of(dtype: ir.DataType | None, sizes: list[int | str]) -> Form:
    whole = tuple(size for size in sizes if isinstance(size, int))
    return Form(
        dtype=dtype,
        sizes=whole if len(whole) == len(sizes) else None,
        shown=f"({', '.join(map(str, sizes))})",
    )


def _better(form: Form, inferred: Form | None) -> Form:
    if form.sizes is not None and form.dtype is not None:
        return form
    if inferred is None or inferred.sizes is None:
        return form
    return Form(
        dtype=form.dtype if form.dtype is not None else inferred.dtype,
        sizes=inferred.sizes,
        shown=inferred.shown,
    )


def _inferred(
    model: Model, given: Mapping[str, tuple[int | str, ...]], *, asked: bool
) -> dict[str, Form]:
    """The form of every named value after inference. `asked`: the user chose the sizes."""
    try:
        proto = _without_weights(model, given)
        found: dict[str, Form] = {}
        for _ in range(_ROUNDS):
            proto = _infer(proto, asked=asked)
            found = _proto_forms(proto)
            if not _compute_shapes(proto, found):
                break
    except (TypeError, KeyError) as error:  # a graph that onnx's own format does not hold
        raise InputError("the shapes of this graph cannot be inferred", got=str(error)) from error
    return found


def _infer(proto: onnx.ModelProto, *, asked: bool) -> onnx.ModelProto:
    try:
        return shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
    except (shape_inference.InferenceError, ValueError) as error:
        if asked:
            raise InputError(
                "the model does not work at these sizes", got=" ".join(str(error).split())[:300],
                hint="See which sizes are dynamic with `edgekit inspect` and choose others.",
            ) from error  # fmt: skip
    return shape_inference.infer_shapes(proto, data_prop=True)


def _without_weights(
    model: Model, given: Mapping[str, tuple[int | str, ...]]
) -> onnx.ModelProto:  # fmt: skip
    """The graph with its inputs' sizes; a large stored tensor becomes an input of its shape."""
    program = editable(model)
    graph = program.graph
    for value in graph.inputs:
        sizes = given.get(value.name or "")
        if sizes is not None:
            value.shape = ir.Shape([None if size == "?" else size for size in sizes])
    for node in graph:
        for value in node.outputs:
            value.shape = None
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.nbytes <= _SMALL_BYTES:
            continue
        value.shape, value.type = _shape_of(tensor), ir.TensorType(tensor.dtype)
        value.const_value = None
        del graph.initializers[name]
        if not value.is_graph_input():
            graph.inputs.append(value)
    for node in list(graph):
        if node.op_type != "Constant" or node.domain:
            continue
        value = node.outputs[0]
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None or tensor.nbytes <= _SMALL_BYTES or value.is_graph_output():
            continue
        stands_in = ir.Value(
            name=value.name, type=ir.TensorType(tensor.dtype), shape=_shape_of(tensor)
        )
        value.replace_all_uses_with(stands_in)
        graph.remove(node, safe=True)
        graph.inputs.append(stands_in)
    proto: onnx.ModelProto = ir.to_proto(program)
    del proto.graph.value_info[:]
    return proto


def _shape_of(tensor: ir.TensorProtocol) -> ir.Shape:
    return ir.Shape([int(str(size)) for size in tensor.shape])


def _proto_forms(proto: onnx.ModelProto) -> dict[str, Form]:
    graph = proto.graph
    found = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type"):
            continue
        dtype = ir.DataType(kind.elem_type) if kind.elem_type else None
        if not kind.HasField("shape"):
            found[value.name] = Form(dtype=dtype, sizes=None, shown="not known")
            continue
        sizes: list[int | str] = [
            size.dim_value if size.HasField("dim_value") else _shown(size.dim_param or "?")
            for size in kind.shape.dim
        ]
        found[value.name] = _form_of(dtype, sizes)
    for tensor in graph.initializer:
        sizes = list(tensor.dims)
        found[tensor.name] = _form_of(ir.DataType(tensor.data_type), sizes)
    return found


def _compute_shapes(proto: onnx.ModelProto, known: Mapping[str, Form]) -> bool:
    """Puts what follows from the known shapes into the graph as stored numbers; whether any did.

    Only what is small is computed, and only with `_ARITHMETIC`.
    """
    if all(form.sizes is not None for form in known.values()):
        return False
    graph = proto.graph
    arrays = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if math.prod(tensor.dims) <= _SMALL_ELEMENTS and tensor.data_type != onnx.TensorProto.STRING
    }
    computed: dict[str, Array] = {}
    kept = []
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        results = _result(node, arrays, known, proto) if outputs.isdisjoint(node.output) else None
        if results is None:
            kept.append(node)
            continue
        arrays.update(results)
        if node.op_type != "Constant":
            computed.update(results)
        else:
            kept.append(node)
    if not computed:
        return False
    left = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(left)
    graph.initializer.extend(numpy_helper.from_array(a, name) for name, a in computed.items())
    return True


def _result(
    node: onnx.NodeProto, arrays: Mapping[str, Array], known: Mapping[str, Form],
    proto: onnx.ModelProto,
) -> dict[str, Array] | None:  # fmt: skip
    """The outputs of a node that only computes a shape; None where it does not, or not yet."""
    if node.domain not in ("", "ai.onnx"):
        return None
    form = known.get(node.input[0]) if node.input else None
    sizes = form.sizes if form is not None else None
    if node.op_type == "Shape" and sizes is not None:
        ends = {entry.name: entry.i for entry in node.attribute}
        found = np.array(sizes[slice(ends.get("start"), ends.get("end"))], np.int64)
        return {node.output[0]: found}
    if node.op_type == "Size" and sizes is not None:
        return {node.output[0]: np.array(math.prod(sizes), np.int64)}
    if node.op_type == "Constant":
        stored = node.attribute[0]
        if stored.name == "value" and math.prod(stored.t.dims) <= _SMALL_ELEMENTS:
            return {node.output[0]: numpy_helper.to_array(stored.t)}
        if stored.name in ("value_int", "value_ints"):
            listed = stored.i if stored.name == "value_int" else list(stored.ints)
            return {node.output[0]: np.array(listed, np.int64)}
        return None
    if node.op_type not in _ARITHMETIC or not all(n in arrays for n in node.input if n):
        return None
    for name in node.output:
        made = known.get(name)
        if made is None or made.sizes is None or math.prod(made.sizes) > _SMALL_ELEMENTS:
            return None
    return _evaluated(node, arrays, proto)


def _evaluated(
    node: onnx.NodeProto, arrays: Mapping[str, Array], proto: onnx.ModelProto
) -> dict[str, Array] | None:  # fmt: skip
    from onnx.reference import ReferenceEvaluator  # slow to import, rarely needed

    feeds = {name: arrays[name] for name in node.input if name}
    graph = helper.make_graph(
        [node],
        "one",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in feeds.items()
        ],
        [helper.make_empty_tensor_value_info(n) for n in node.output if n],
    )
    one = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    try:
        results = ReferenceEvaluator(one).run(None, feeds)
    except (ArithmeticError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return None  # a broken shape computation: what it would have said stays unknown
    return dict(zip([n for n in node.output if n], map(np.asarray, results), strict=True))


def sizes_of(value: ir.Value | None, known: Forms) -> Sizes | Unknown:
    """The sizes of a value, or which one is not known."""
    if value is None:
        return Unknown("an input is absent")
    form = known.get(value)
    if form is None:
        array = constant_of(value)
        return Unknown(f'"{value.name}" is not known') if array is None else array.shape
    if form.sizes is None:
        return Unknown(f'the shape of "{value.name}" is {form.shown}')
    return form.sizes
