"""From what torch knows to a Model: a module, a `torch.export` file, TorchScript, weights by name.

Every way ends the same: the graph keeps the module's own parameter names and its
BatchNormalization, the nodes are named by the module that they come from, the batch is dynamic
where the network allows it, and the graph's outputs are compared with the source's.
"""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from edgekit.errors import InputError
from edgekit.models.model import Model, constant_of
from edgekit.models.simplify import clean
from edgekit.models.torch_files import first_line, quiet, tensors_only
from edgekit.models.torch_module import torch_module

OPSET = 18
TOLERANCE = 1e-4  # relative error allowed between a source and its graph

_EVAL_HINT = "Call model.eval() before it is exported."
_SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A Model made by torch, and how far its outputs are from the source's (absolute, largest).

    `notes` says what a user should know: a batch that could not be made dynamic, keys renamed.
    """

    model: Model
    difference: float
    notes: tuple[str, ...] = ()


def export_module(module: nn.Module, inputs: Mapping[str, Sequence[int]], *, name: str) -> Exported:
    """The Model of a module in evaluation mode; `inputs` has a shape for each argument, in order.

    The first axis of every input becomes the dynamic `batch`, if the network allows it.
    Raises InputError for shapes that the module does not take, and where it cannot be exported or
    the graph does not compute what the module does.
    """
    module = module.eval()
    examples = _examples(inputs)
    expected = _called(module, examples, inputs)
    outputs = _output_names(expected)
    notes: list[str] = []
    dynamic = tuple({0: torch.export.Dim("batch")} for _ in examples)
    program = None
    wide = tuple(_repeated(example, 2) for example in examples)
    if all(example.ndim for example in examples):
        try:
            _called(module, wide, inputs)
            program = _export(module, wide, inputs, outputs, dynamic)
        except InputError as error:
            notes.append(f"the batch is fixed at {examples[0].shape[0]}: {error.got or error.what}")
    if program is None:
        program = _export(module, examples, inputs, outputs, None)
    model = _finished(program, name, set(module.state_dict()))
    tests = [examples] if notes else [examples, tuple(_repeated(e, 3) for e in examples)]
    difference = max(_compared(model, lambda x: _called(module, x, inputs), t) for t in tests)
    return Exported(model=model, difference=difference, notes=tuple(notes))


def export_pt2(path: Path, *, name: str) -> Exported:
    """The Model of a `torch.export` file; dynamic sizes are those that it was exported with.

    Raises InputError for a file that cannot be read or holds anything but tensors, and for a
    program that was exported in training mode.
    """
    try:
        with tensors_only(), quiet():
            exported = torch.export.load(path)
            module = exported.module()
    except Exception as error:  # whatever a damaged archive makes torch's reader raise
        raise InputError(
            "this torch.export file cannot be read", where=str(path), got=first_line(error),
            hint=f"Export it again with torch {torch.__version__}, or to .onnx where it was made.",
        ) from error  # fmt: skip
    signature = exported.graph_signature
    if signature.buffers_to_mutate or any(map(_trains, exported.graph.nodes)):
        raise InputError(
            "this program was exported in training mode", where=str(path), hint=_EVAL_HINT
        )
    placeholders = {n.name: n.meta["val"] for n in exported.graph.nodes if n.op == "placeholder"}
    inputs = {
        n: tuple(_concrete(size) for size in placeholders[n].shape) for n in signature.user_inputs
    }
    dtypes = [placeholders[n].dtype for n in signature.user_inputs]
    examples = tuple(
        e if d == e.dtype else e.abs().mul(4).to(d)
        for e, d in zip(_examples(inputs), dtypes, strict=True)
    )
    expected = _called(module, examples, inputs)
    program = _export(exported, None, inputs, _output_names(expected), None)
    model = _finished(program, name, set(exported.state_dict))
    difference = _compared(model, lambda x: _called(module, x, inputs), examples)
    return Exported(model=model, difference=difference)


def _trains(node: Any) -> bool:
    """Whether a node of a torch.export graph has an argument `training` (or `train`) that is on."""
    schema = getattr(node.target, "_schema", None)
    for place, argument in enumerate(schema.arguments if schema is not None else ()):
        if argument.name in ("training", "train"):
            given = node.kwargs.get(argument.name, argument.default_value)
            return bool(node.args[place] if place < len(node.args) else given)
    return False


def export_torchscript(path: Path, inputs: Mapping[str, Sequence[int]], *, name: str) -> Exported:
    """The Model of a TorchScript file. Raises InputError as `export_module` does."""
    try:
        with quiet():
            script = torch.jit.load(  # type: ignore[no-untyped-call]
                str(path), map_location="cpu"
            ).eval()
    except Exception as error:  # whatever a damaged archive makes torch's reader raise
        raise InputError(
            "this TorchScript file cannot be read", where=str(path), got=first_line(error)
        ) from error
    examples = _examples(inputs)
    expected = _called(script, examples, inputs)
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        place = Path(folder, "model.onnx")
        try:
            with quiet():
                torch.onnx.export(
                    script, examples, str(place), dynamo=False, do_constant_folding=False,
                    training=torch.onnx.TrainingMode.PRESERVE, opset_version=OPSET,
                    input_names=list(inputs), output_names=_output_names(expected),
                    dynamic_axes={
                        n: {0: "batch"} for n in (*inputs, *_output_names(expected))
                    },
                )  # fmt: skip
        except Exception as error:  # whatever a user's network makes torch's exporter raise
            raise InputError(
                "torch could not export this TorchScript module", where=str(path),
                got=first_line(error), hint="Export it to .onnx where it was trained.",
            ) from error  # fmt: skip
        program = ir.load(place)
        ir.external_data.load_to_model(program)
    names = set(script.state_dict())
    _restore_shared(program.graph, names)
    model = _finished(program, name, names)
    notes: list[str] = []
    difference = _compared(model, lambda x: _called(script, x, inputs), examples)
    try:
        wide = tuple(_repeated(example, 3) for example in examples)
        difference = max(difference, _compared(model, lambda x: _called(script, x, inputs), wide))
    except (InputError, RuntimeError) as error:
        notes.append(f"another batch than {examples[0].shape[0]} fails: {first_line(error)}")
    return Exported(model=model, difference=difference, notes=tuple(notes))


def _examples(inputs: Mapping[str, Sequence[int]]) -> tuple[Tensor, ...]:
    if not inputs:
        raise InputError(
            "torch's models do not say what they are given", wanted="a shape for each input",
            hint="In the recipe: [model.inputs] images = [1, 3, 224, 224]; on the command line: "
            "--input images=1,3,224,224.",
        )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(tuple(shape), generator=generator) for shape in inputs.values())


def _repeated(example: Tensor, times: int) -> Tensor:
    generator = torch.Generator().manual_seed(times)
    shape = (example.shape[0] * times, *example.shape[1:])
    if not example.is_floating_point():
        return example.repeat(times, *(1,) * (example.ndim - 1))
    return torch.randn(shape, generator=generator)


def _concrete(size: Any) -> int:
    if isinstance(size, int):
        return size
    hint = getattr(size.node, "hint", None)
    return int(hint) if hint is not None else 2


def _called(
    module: Callable[..., Any], examples: Sequence[Tensor], inputs: Mapping[str, Sequence[int]]
) -> Any:
    try:
        with torch.no_grad(), quiet():
            return module(*examples)
    except Exception as error:  # the user's own code, which may raise anything
        shapes = ", ".join(
            f"{name} {tuple(e.shape)}" for name, e in zip(inputs, examples, strict=True)
        )
        raise InputError(
            "the module does not take these inputs", where=shapes,
            got=f"{type(error).__name__}: {first_line(error)}",
            wanted="one shape for each argument of forward, in its order",
        ) from error  # fmt: skip


def _output_names(found: Any) -> list[str]:
    """The keys of a dictionary; `output` for one tensor; else `output_0` and so on."""
    if isinstance(found, Mapping) and all(isinstance(v, Tensor) for v in found.values()):
        return [str(key) for key in found]
    leaves = pytree.tree_leaves(found)
    return ["output"] if len(leaves) == 1 else [f"output_{i}" for i in range(len(leaves))]


def _export(
    module: Any, examples: tuple[Tensor, ...] | None, inputs: Mapping[str, Sequence[int]],
    outputs: list[str], dynamic: Any,
) -> ir.Model:  # fmt: skip
    try:
        with quiet():
            program = torch.onnx.export(
                module, examples or (), dynamo=True, optimize=False, verbose=False,
                input_names=list(inputs), output_names=outputs, dynamic_shapes=dynamic,
                opset_version=OPSET,
            )  # fmt: skip
    except Exception as error:  # whatever a user's network makes torch's exporter raise
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise InputError(
            "torch could not export this module", got=f"{type(cause).__name__}: "
            f"{first_line(cause)}", hint="torch.export's own documentation lists what a module "
            "must not do: branch on values, change its own attributes, call other libraries.",
        ) from error  # fmt: skip
    assert program is not None
    found: ir.Model = program.model
    return found


def _finished(program: ir.Model, name: str, parameters: set[str]) -> Model:
    """The program without what only torch needed, its constants folded, its parameters not."""
    from onnxscript import optimizer

    passes.InlinePass()(program)
    program.functions.clear()
    _name_nodes(program.graph)

    def may_fold(node: ir.Node) -> bool | None:
        fixed = (v is not None and v.name in parameters and v.is_initializer() for v in node.inputs)
        return False if any(fixed) else None

    with quiet():
        optimizer.fold_constants(program, should_fold=may_fold)
    _drop_zero_biases(program.graph, parameters)
    _name_sizes(program.graph)
    passes.ClearMetadataAndDocStringPass()(program)
    program.producer_name, program.producer_version = "torch", str(torch.__version__)
    for value in program.graph.inputs:
        value.metadata_props.clear()
    proto = onnx.shape_inference.infer_shapes(ir.to_proto(program), data_prop=True)
    history = (f"torch {torch.__version__}",)
    return clean(Model(name=name, program=ir.from_proto(proto), history=history))


def _name_nodes(graph: ir.Graph) -> None:
    """Names each node by the module that it comes from and its operator: `layer1.0.conv1/Conv`."""
    taken: Counter[str] = Counter()
    for node in graph:
        scopes = node.metadata_props.get(_SCOPES, "")
        parts = [part.strip(" '\"") for part in scopes.strip("[]").split(",")]
        inside = [part for part in parts[:-1] if part and not part.startswith("_empty_nn_module")]
        base = f"{inside[-1]}/{node.op_type}" if inside else node.op_type
        taken[base] += 1
        node.name = base if taken[base] == 1 else f"{base}_{taken[base]}"


def _name_sizes(graph: ir.Graph) -> None:
    """Gives a size that torch called `s14` the name of what it is: batch, height, width."""
    names: dict[str, str] = {}
    for value in graph.inputs:
        for axis, size in enumerate(value.shape or ()):
            symbol = getattr(size, "value", None)
            if not isinstance(symbol, str) or not re.fullmatch(r"s\d+", symbol):
                continue
            spatial = {2: "height", 3: "width"} if len(value.shape or ()) == 4 else {}
            name = "batch" if axis == 0 else spatial.get(axis, f"{value.name}_{axis}")
            names.setdefault(symbol, f"{value.name}_{name}" if name in names.values() else name)
    values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
    for value in values:
        if value.shape is None:
            continue
        value.shape = ir.Shape(
            re.sub(r"\bs\d+\b", lambda m: names.get(m[0], m[0]), str(size.value))
            if isinstance(size, ir.SymbolicDim) and size.value is not None
            else size
            for size in value.shape
        )


def _drop_zero_biases(graph: ir.Graph, parameters: set[str]) -> None:
    """A convolution without a bias has none: the exporter writes zeros (torch 2.13)."""
    for node in graph:
        bias = node.inputs[2] if node.op_type == "Conv" and len(node.inputs) > 2 else None
        array = constant_of(bias)
        if bias is None or array is None or bias.name in parameters or array.any():
            continue
        node.resize_inputs(2)


def _restore_shared(graph: ir.Graph, parameters: set[str]) -> None:
    """Gives every parameter its own initializer again: the exporter merges equal ones."""
    for node in list(graph):
        source = node.inputs[0] if node.op_type == "Identity" else None
        output = node.outputs[0]
        name = output.name
        if source is None or not source.is_initializer() or name not in parameters:
            continue
        own = ir.val(name, const_value=source.const_value)
        output.name = f"{name}/shared"
        graph.register_initializer(own)
        output.replace_all_uses_with(own)
        graph.remove(node, safe=True)


def _compared(
    model: Model, source: Callable[[Sequence[Tensor]], Any], examples: Sequence[Tensor]
) -> float:
    """The largest absolute difference of any output. Raises InputError above the tolerance."""
    expected = pytree.tree_leaves(source(examples))
    with torch.no_grad():
        found = torch_module(model)(*examples)
    worst = 0.0
    for one, other in zip(found, expected, strict=True):
        if one.shape != other.shape:
            raise InputError(
                "the exported graph gives another shape than its source", where=model.name,
                got=str(tuple(one.shape)), wanted=str(tuple(other.shape)),
            )  # fmt: skip
        difference = float((one.double() - other.double()).abs().max()) if one.numel() else 0.0
        top = float(other.double().abs().max()) if other.numel() else 0.0
        if not difference <= TOLERANCE * max(top, 1e-6):
            raise InputError(
                "the exported graph does not compute what its source does", where=model.name,
                got=f"a difference of {difference:.2g}",
                wanted=f"at most {TOLERANCE:g} of {top:.3g}",
                hint="A module that draws random numbers or keeps a state cannot be exported.",
            )  # fmt: skip
        worst = max(worst, difference)
    return worst
