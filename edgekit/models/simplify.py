"""What a graph can lose without computing anything else.

`clean` keeps every parameter under its name and leaves BatchNormalization alone: it may run at any
time. `fold_batchnorm` and `simplify` rename and merge: they run once, before quantization.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes

from edgekit.errors import InternalError
from edgekit.models.model import Model, after_step, attribute, constant_of, editable, to_bytes
from edgekit.values import Array

logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # relative error allowed between a graph and its simplified self
_SMALL = 1e-3
_CHILD_MEMORY_BYTES = 8 << 30

Outputs = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class SimplifyReport:
    """What `simplify` did: nodes before and after, and why the graph was left alone, if it was."""

    nodes_before: int
    nodes_after: int
    batchnorms_folded: int
    left_alone: str = ""


def clean(model: Model) -> Model:
    """The Model without dead nodes, Identity and Constant nodes; every parameter keeps its name."""
    program = editable(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(program)
    passes.RemoveInitializersFromInputsPass()(program)
    program.ir_version = max(program.ir_version, 4)  # 3 wants initializers among the inputs
    passes.IdentityEliminationPass()(program)
    _drop_dropout(program)
    passes.RemoveUnusedNodesPass()(program)
    passes.NameFixPass()(program)
    lost = _lost_parameters(model, program)
    if lost:
        raise InternalError("the clean-up lost parameters", got=", ".join(lost[:5]))
    return Model(
        name=model.name, program=program, preprocessing=model.preprocessing, history=model.history
    )


def _lost_parameters(model: Model, program: ir.Model) -> list[str]:
    """Initializers that are gone though a node that reads them is not."""
    made = {output.name for node in program.graph for output in node.outputs}
    return [
        name
        for name, value in model.graph.initializers.items()
        if name not in program.graph.initializers
        and any(output.name in made for user, _ in value.uses() for output in user.outputs)
    ]


def _drop_dropout(program: ir.Model) -> None:
    """Dropout is the identity outside training; one whose mask is read stays."""
    for node in list(program.graph):
        if node.op_type != "Dropout" or node.domain or any(o.uses() for o in node.outputs[1:]):
            continue
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            continue
        output, source = node.outputs[0], node.inputs[0]
        if source is None or output.is_graph_output():
            continue
        output.replace_all_uses_with(source)
        program.graph.remove(node, safe=True)


def fold_batchnorm(model: Model) -> tuple[Model, int]:
    """The Model with each BatchNormalization behind a Conv folded into it, and how many were.

    With W the kernel, b its bias, and gamma, beta, mean, var, eps of the BatchNormalization
    (ONNX BatchNormalization, inference):

        s = gamma / sqrt(var + eps);  W' = s W;  b' = beta + s (b - mean)

    in float64. One whose convolution feeds something else too, or whose constants are computed,
    stays.
    """
    program = editable(model)
    graph = program.graph
    folded = 0
    for node in list(graph):
        if node.op_type != "BatchNormalization" or node.domain:
            continue
        source = node.inputs[0]
        conv = source.producer() if source is not None else None
        if source is None or conv is None or conv.op_type not in ("Conv", "ConvTranspose"):
            continue
        if len(source.uses()) != 1 or source.is_graph_output() or len(node.outputs) > 1:
            continue
        kernel = constant_of(conv.inputs[1])
        norms = [constant_of(value) for value in node.inputs[1:5]]
        bias_value = conv.inputs[2] if len(conv.inputs) > 2 else None
        bias = constant_of(bias_value)
        if kernel is None or any(n is None for n in norms) or (bias_value and bias is None):
            continue
        groups = attribute(conv, "group", 1)
        if conv.op_type == "ConvTranspose" and groups != 1:
            continue
        gamma, beta, mean, var = (np.asarray(n, np.float64) for n in norms)
        scale = gamma / np.sqrt(var + float(attribute(node, "epsilon", 1e-5)))
        axis = 0 if conv.op_type == "Conv" else 1
        shape = [1] * kernel.ndim
        shape[axis] = -1
        bias64 = np.zeros_like(mean) if bias is None else np.asarray(bias, np.float64)
        prefix = conv.inputs[1].name if conv.inputs[1] is not None else conv.name
        weight = _own_initializer(
            graph, f"{prefix}.folded", (kernel * scale.reshape(shape)).astype(kernel.dtype)
        )
        offset = _own_initializer(
            graph, f"{prefix}.folded_bias", (beta + scale * (bias64 - mean)).astype(kernel.dtype)
        )
        conv.replace_input_with(1, weight)
        if len(conv.inputs) > 2:
            conv.replace_input_with(2, offset)
        else:
            conv.resize_inputs(3)
            conv.replace_input_with(2, offset)
        output, replaced = node.outputs[0], conv.outputs[0]
        name = output.name
        output.replace_all_uses_with(replaced, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        replaced.name = name
        folded += 1
    passes.RemoveUnusedNodesPass()(program)
    return after_step(model, program, "fold_batchnorm"), folded


def name_global_pooling(model: Model) -> Model:
    """The Model with each mean over all space, kept as 1x1, written as GlobalAveragePool.

    Runtimes have an integer kernel for that operator, and none for ReduceMean.
    """
    program = editable(model)
    for node in list(program.graph):
        source = node.inputs[0] if node.op_type == "ReduceMean" and not node.domain else None
        if source is None or source.shape is None or not attribute(node, "keepdims", 1):
            continue
        rank = len(source.shape)
        listed = constant_of(node.inputs[1]) if len(node.inputs) > 1 else None
        axes = np.atleast_1d(attribute(node, "axes", ()) if listed is None else listed)
        spatial = set(range(2, rank))
        if rank < 3 or {int(axis) % rank for axis in axes} != spatial:
            continue
        pooled = ir.node("GlobalAveragePool", [source], name=node.name)
        output = node.outputs[0]
        pooled.outputs[0].type, pooled.outputs[0].shape = output.type, output.shape
        program.graph.insert_before(node, pooled)
        output.replace_all_uses_with(pooled.outputs[0], replace_graph_outputs=True)
        name = output.name
        program.graph.remove(node, safe=True)
        pooled.outputs[0].name = name
    passes.RemoveUnusedNodesPass()(program)
    return after_step(model, program, "name_global_pooling")


def _own_initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    free = name
    while free in graph.initializers:
        free += "_"
    value = ir.val(free, const_value=ir.tensor(np.asarray(array, order="C"), name=free))
    graph.register_initializer(value)
    return value


def simplify(
    model: Model, *, run: Callable[[Model], Outputs], timeout_s: float = 300.0
) -> tuple[Model, SimplifyReport]:
    """The Model with BatchNormalization folded and onnxsim's simplifications, if they hold.

    onnxsim runs in a child with limits of time and memory: it is C++ and may die. `run` gives a
    Model's outputs on a few real samples. Where onnxsim is missing, fails, or changes an output by
    more than `TOLERANCE` relative, the folded graph goes on and the report says why.
    """
    folded, count = fold_batchnorm(model)
    folded = name_global_pooling(folded)
    expected = run(model)
    error = _relative_error(expected, run(folded))
    if error > TOLERANCE:
        raise InternalError(
            "folding BatchNormalization changed the outputs", got=f"relative error {error:.1e}"
        )
    nodes = model.graph.num_nodes()
    simpler, reason = _run_onnxsim(folded, timeout_s)
    if simpler is not None:
        error = _relative_error(expected, run(simpler))
        if error > TOLERANCE:
            simpler, reason = None, f"onnxsim changed the outputs by {error:.1e}"
    result = folded if simpler is None else simpler
    if reason:
        logger.warning("the graph was not simplified: %s", reason)
    return result, SimplifyReport(
        nodes_before=nodes,
        nodes_after=result.graph.num_nodes(),
        batchnorms_folded=count,
        left_alone=reason,
    )


def _relative_error(expected: Outputs, found: Outputs) -> float:
    """The largest max|a - b| / max|b| over the outputs; `_SMALL` stands for a max|b| under it.

    A Sigmoid's outputs may be 1e-9 throughout, where the last bit of its input is no error.
    """
    errors = []
    for name, reference in expected.items():
        top = max(float(np.abs(reference).max(initial=0.0)), _SMALL)
        difference = np.abs(found[name].astype(np.float64) - reference)
        errors.append(float(difference.max(initial=0.0)) / top)
    return max(errors, default=0.0)


def _run_onnxsim(model: Model, timeout_s: float) -> tuple[Model | None, str]:
    """The simplified Model, or None and the reason."""
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        source, target = Path(folder, "in.onnx"), Path(folder, "out.onnx")
        source.write_bytes(to_bytes(model))
        command = [sys.executable, "-m", "edgekit.models.simplify", str(source), str(target)]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            return None, f"onnxsim did not end within {timeout_s:.0f} s"
        if done.returncode == _NOT_INSTALLED:
            return None, "onnxsim is not installed (pip install 'edgekit[compress]')"
        if done.returncode < 0:
            return None, f"onnxsim was killed by signal {-done.returncode}"
        if done.returncode or not target.exists():
            last = done.stderr.strip().splitlines()
            return None, f"onnxsim failed: {last[-1][:200] if last else 'without a word'}"
        proto = onnx.load_model_from_string(target.read_bytes())
    proto = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    return after_step(model, ir.from_proto(proto), "onnxsim"), ""


_NOT_INSTALLED = 5


def _child(source: str, target: str) -> int:
    """Simplifies one file into another, in this process: what `_run_onnxsim` starts."""
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (_CHILD_MEMORY_BYTES, _CHILD_MEMORY_BYTES))
    try:
        import onnxsim
    except ImportError:
        return _NOT_INSTALLED
    simpler, _ = onnxsim.simplify(onnx.load(source), check_n=0)
    Path(target).write_bytes(simpler.SerializeToString())
    return 0


if __name__ == "__main__":
    sys.exit(_child(sys.argv[1], sys.argv[2]))
