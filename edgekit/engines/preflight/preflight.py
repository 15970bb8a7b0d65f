"""Whether a target would take a model, as far as that can be known without the device."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import onnx_ir as ir

from edgekit.engines import onnxruntime, openvino, tensorrt_rtx
from edgekit.engines.base import EngineRequest, input_extents, read_model
from edgekit.engines.preflight import nodes as preflight_nodes
from edgekit.engines.preflight import operators
from edgekit.engines.preflight.answers import Answer, Line, NodeFinding, PreflightReport, line_of
from edgekit.engines.trtexec.flags import generation_of, version_of
from edgekit.errors import EdgekitError, InputError, MissingPackageError
from edgekit.models.model import Model

__all__ = ["Answer", "Line", "NodeFinding", "PreflightReport", "preflight"]

# A target that TensorRT-RTX does not compile for (every Jetson) is compiled for this one instead:
# the nearest relation of Orin's 8.7 that it knows.
_STAND_IN = "8.6"
# TensorRT-RTX has taken every opset so far and its operators are those of TensorRT 11.
_RTX_OPERATORS = (11, 0)
# What it was seen to refuse on a CPU although TensorRT takes it.
_RTX_GAPS = {
    "NonMaxSuppression": "TensorRT-RTX does not compile it without a GPU; TensorRT has it from 8.5",
    "MatMul": "TensorRT-RTX has no FP32 MatMul for 7.5",
    "Gemm": "TensorRT-RTX has no FP32 MatMul for 7.5",
}


class _Compiled(NamedTuple):
    line: Line
    nodes: tuple[NodeFinding, ...]


def preflight(request: EngineRequest, *, compile_here: bool = True) -> PreflightReport:
    """What is known of the request: precision, DLA, opset, operators, types, shapes, Q/DQ, a build.

    The build is TensorRT-RTX's for a TensorRT target, and proves that the graph is accepted,
    nothing about speed. Where it fails, and none of our own rules does, the answer is unknown:
    TensorRT-RTX refuses things that TensorRT takes. Raises InputError where the request itself or
    its file cannot be read.
    """
    model = read_model(request.model_path)
    input_extents(model.inputs, request)  # a request without shapes is the user's fault
    lines = [_precision(request)]
    nodes: tuple[NodeFinding, ...] = ()
    if request.dla_core is not None:
        line, nodes = _dla(request, model, request.dla_core)
        lines.append(line)
    if request.target.runtime.name == "onnxruntime":
        lines.append(_opens(request))
    elif request.target.runtime.name == "openvino":
        lines.append(_openvino_opens(request))
    else:
        more, found = _graph_lines(request, model)
        lines += more
        nodes += found
        if compile_here:
            compiled = _compile(request, model, nodes)
            lines.append(compiled.line)
            nodes += compiled.nodes
    return PreflightReport(target=request.target.name, lines=tuple(lines), nodes=nodes)


def _precision(request: EngineRequest) -> Line:
    target = request.target
    kinds = tuple(target.precisions)
    if request.precision in kinds:
        said = f"{request.precision} is there"
        return Line(check="precision", answer=Answer.PASSED, said=said)
    best = "fp16" if "fp16" in kinds else kinds[-1]
    said = f"{target.name} has no {request.precision.upper()} hardware; use {best}"
    return Line(check="precision", answer=Answer.REFUSED, said=said)


def _dla(request: EngineRequest, model: Model, core: int) -> tuple[Line, tuple[NodeFinding, ...]]:
    target = request.target
    cores = target.dla.cores
    nodes: tuple[NodeFinding, ...] = ()
    moving = [
        name
        for name, (least, _, most) in input_extents(model.inputs, request).items()
        if least != most
    ]
    if cores == 0:
        said = f"{target.name} has no DLA; take engine.dla out"
    elif not 0 <= core < cores:
        said = f"{target.name} has {cores} DLA cores, counted from 0; core {core} is none of them"
    elif not generation_of(target.runtime.version).has_dla:
        said = f"TensorRT {target.runtime.version} does not drive the DLA; take engine.dla out"
    elif moving:
        said = f"the DLA takes no dynamic shapes: {', '.join(moving)}; give one size"
    else:
        nodes = preflight_nodes.of_dla(request, model)
        limit = request.builder.max_dla_fallbacks
        named = line_of("DLA", nodes, "").said
        if limit is None or len(nodes) <= limit:
            seen = f"; at least {len(nodes)} of its nodes do not: {named}" if nodes else ""
            said = f"core {core} is there; what of the graph runs on it, only the device says{seen}"
            return Line(check="DLA", answer=Answer.UNKNOWN, said=said), nodes
        said = f"{len(nodes)} nodes fall back to the GPU, and {limit} may: {named}"
    return Line(check="DLA", answer=Answer.REFUSED, said=said), nodes


def _graph_lines(
    request: EngineRequest, model: Model
) -> tuple[list[Line], tuple[NodeFinding, ...]]:
    """The checks of the graph by our own rules, and the nodes that they speak against."""
    runtime = request.target.runtime
    is_rtx = runtime.name == "tensorrt_rtx"
    version = _RTX_OPERATORS if is_rtx else version_of(runtime.version)
    limit = runtime.opset
    opset = Line(
        check="opset",
        answer=Answer.PASSED if model.opset <= limit else Answer.REFUSED,
        said=f"the model has opset {model.opset}, {runtime.name} {runtime.version} reads {limit}",
    )
    kinds = len({node.op_type for node in model.graph.all_nodes()})
    checks = (
        ("operators", preflight_nodes.of_operators(model, version),
         f"{kinds} kinds, no rule speaks against one"),
        ("types", preflight_nodes.of_types(request, model, version),
         preflight_nodes.conversions(model, version) or "all are the runtime's own"),
        ("shapes", preflight_nodes.of_shapes(request, model), "known at every size asked for"),
    )  # fmt: skip
    lines = [opset, *(line_of(check, found, said) for check, found, said in checks)]
    line, broken = preflight_nodes.of_pairs(request, model, version)
    nodes = [node for _, found, _ in checks for node in found]
    return [*lines, line], (*nodes, *broken)


def _opens(request: EngineRequest) -> Line:
    try:
        with onnxruntime.open_bytes(request.model_path.read_bytes(), threads=1):
            return Line(check="load", answer=Answer.PASSED, said="ONNX Runtime opens it here")
    except InputError as error:
        return Line(check="load", answer=Answer.REFUSED, said=f"{error.what}: {error.got}")


def _openvino_opens(request: EngineRequest) -> Line:
    try:
        openvino.read(request.model_path)
    except MissingPackageError:
        said = "not checked: openvino is not installed (pip install 'edgekit[openvino]')"
        return Line(check="load", answer=Answer.SKIPPED, said=said)
    except InputError as error:
        return Line(check="load", answer=Answer.REFUSED, said=f"{error.what}: {error.got}")
    return Line(check="load", answer=Answer.PASSED, said="OpenVINO reads it here")


def _compile(request: EngineRequest, model: Model, known: Sequence[NodeFinding]) -> _Compiled:
    """What TensorRT-RTX says. `known`: what our own rules speak against already."""
    check = "compile"
    own = request.target.runtime.name == "tensorrt_rtx"
    capability = str(request.target.compute_capability)
    if not own and capability not in tensorrt_rtx.CAPABILITIES:
        capability = _STAND_IN
    if not tensorrt_rtx.is_installed():
        said = "not checked: tensorrt-rtx is not installed (pip install 'edgekit[rtx]')"
        return _Compiled(Line(check=check, answer=Answer.SKIPPED, said=said), ())
    judge = f"TensorRT-RTX {tensorrt_rtx.installed_version()} for {capability}"
    on_gpu = replace(request, dla_core=None)  # it knows no DLA; of one only the device speaks
    try:
        with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
            tensorrt_rtx.compile_model(
                on_gpu, Path(folder) / "model.engine", compute_capability=capability
            )
    except EdgekitError as error:
        refused = {finding.node for finding in known if finding.answer is Answer.REFUSED}
        named = _named_nodes(model, error.got)
        if own and "FP32" in error.got and _becomes_half(request, model):
            nodes = tuple(_half_finding(node, error.got) for node in named)
            said = f"{judge}, as the file is written, in float32: {error.what}: {error.got}"
            return _Compiled(Line(check=check, answer=Answer.UNKNOWN, said=said), nodes)
        if own and isinstance(error, InputError):
            nodes = tuple(_compiler_finding(node, Answer.REFUSED, error.got) for node in named)
            said = f"{judge}: {error.what}: {error.got}"
            return _Compiled(Line(check=check, answer=Answer.REFUSED, said=said), nodes)
        if refused:
            said = f"{judge} refuses it too: {error.what}: {error.got}"
            return _Compiled(Line(check=check, answer=Answer.REFUSED, said=said), ())
        nodes = tuple(_compiler_finding(node, Answer.UNKNOWN, error.got) for node in named)
        which = ", ".join(f'"{operators.name_of(node)}"' for node in named)
        said = f"TensorRT-RTX could not compile {which or 'the graph'}: {error.what}: {error.got}"
        return _Compiled(Line(check=check, answer=Answer.UNKNOWN, said=said), nodes)
    said = f"{judge} accepts the graph"
    return _Compiled(Line(check=check, answer=Answer.PASSED, said=said), ())


def _compiler_finding(node: operators.Node, answer: Answer, said: str) -> NodeFinding:
    gap = _RTX_GAPS.get(node.op_type, "")
    if answer is Answer.UNKNOWN:
        remedy = f"The device decides{gap and f'; {gap}'}."
    elif gap and "FP32" in said:
        remedy = "Ask for FP16: --precision fp16."
    else:
        remedy = operators.remedy(node)
    return NodeFinding(
        node=operators.name_of(node),
        operator=node.op_type,
        check="compile",
        answer=answer,
        reason=f"TensorRT-RTX could not compile it: {said.splitlines()[0]}",
        remedy=remedy,
    )


def _becomes_half(request: EngineRequest, model: Model) -> bool:
    """Whether FP16 is wanted of a graph that no step has written in float16 so far."""
    stored = (value.dtype for value in model.graph.initializers.values())
    return request.precision == "fp16" and ir.DataType.FLOAT16 not in stored


def _half_finding(node: operators.Node, said: str) -> NodeFinding:
    return NodeFinding(
        node=operators.name_of(node),
        operator=node.op_type,
        check="compile",
        answer=Answer.UNKNOWN,
        reason=f"TensorRT-RTX could not compile it in float32: {said.splitlines()[0]}",
        remedy="edgekit build writes it in float16 for this target, unless its values overflow.",
    )


def _named_nodes(model: Model, said: str) -> list[operators.Node]:
    """The nodes that a compiler's message names, in graph order: the longest name at each place.

    A layer may bear the name of its node with a number behind it.
    """
    nodes = {node.name: node for node in model.graph.all_nodes() if node.name}
    found: set[str] = set()
    for name in sorted(nodes, key=len, reverse=True):
        place = said.find(name)
        while place >= 0:
            before = said[place - 1 : place]
            after = said[place + len(name) : place + len(name) + 1]
            if not _is_of_a_name(before) and (after == "_" or not _is_of_a_name(after)):
                found.add(name)
                said = said[:place] + "\0" * len(name) + said[place + len(name) :]
            place = said.find(name, place + 1)
    return [node for name, node in nodes.items() if name in found]


def _is_of_a_name(letter: str) -> bool:
    return letter.isalnum() or letter in {"_", "/", "."}
