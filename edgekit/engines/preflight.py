"""Whether a target would take a model, as far as that can be known without the device."""

from __future__ import annotations

import enum
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgekit.engines import onnxruntime, operators, tensorrt_rtx
from edgekit.engines.base import EngineRequest, input_extents, read_model
from edgekit.engines.trtexec import generation_of, version_of
from edgekit.errors import EdgekitError, InputError
from edgekit.models.model import Model
from edgekit.quantize import lint

_SHOWN = 5
# A target that TensorRT-RTX does not compile for (every Jetson) is compiled for this one instead:
# the nearest relation of Orin's 8.7 that it knows.
_STAND_IN = "8.6"
# TensorRT-RTX has taken every opset so far and its operators are those of TensorRT 11.
_RTX_OPERATORS = (11, 0)
_TYPED_BY_GRAPH = (11, 0)


class Answer(enum.Enum):
    """What a check found. `skipped`: it was not made, and speaks neither way."""

    PASSED = "passed"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    SKIPPED = "skipped"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One check of a preflight."""

    check: str
    answer: Answer
    said: str


@dataclass(frozen=True, kw_only=True)
class PreflightReport:
    """Every check of a model for a target, the refusals' lines included."""

    target: str
    lines: tuple[Line, ...]

    @property
    def verdict(self) -> Answer:
        """Refused if a check refuses, unknown if one does not know, else passed."""
        found = {line.answer for line in self.lines}
        worst = (Answer.REFUSED, Answer.UNKNOWN)
        return next((answer for answer in worst if answer in found), Answer.PASSED)

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "target": self.target,
            "verdict": self.verdict.value,
            "lines": [
                {"check": line.check, "answer": line.answer.value, "said": line.said}
                for line in self.lines
            ],
        }


def preflight(request: EngineRequest, *, compile_here: bool = True) -> PreflightReport:
    """What is known of the request: precision, DLA, opset, operators, Q/DQ, a compile here.

    The compile is TensorRT-RTX's for a TensorRT target, and proves that the graph is accepted,
    nothing about speed. Where it fails, and none of our own rules does, the answer is unknown:
    TensorRT-RTX refuses things that TensorRT takes. Raises InputError where the request itself or
    its file cannot be read.
    """
    model = read_model(request.model_path)
    input_extents(model.inputs, request)  # a request without shapes is the user's fault
    lines = [*_hardware(request)]
    if request.target.runtime.name == "onnxruntime":
        lines.append(_opens(request))
    else:
        lines += _graph_lines(request, model)
        if compile_here:
            refused = any(line.answer is Answer.REFUSED for line in lines)
            lines.append(_compile(request, agreed=refused))
    return PreflightReport(target=request.target.name, lines=tuple(lines))


def _hardware(request: EngineRequest) -> Iterator[Line]:
    target = request.target
    kinds = tuple(target.precisions)
    if request.precision in kinds:
        yield Line(check="precision", answer=Answer.PASSED, said=f"{request.precision} is there")
    else:
        best = "fp16" if "fp16" in kinds else kinds[-1]
        yield Line(
            check="precision",
            answer=Answer.REFUSED,
            said=f"{target.name} has no {request.precision.upper()} hardware; use {best}",
        )
    if request.dla_core is not None:
        yield _dla(request, request.dla_core)


def _dla(request: EngineRequest, core: int) -> Line:
    target = request.target
    cores = target.dla.cores
    if cores == 0:
        said = f"{target.name} has no DLA; take engine.dla out"
    elif not 0 <= core < cores:
        said = f"{target.name} has {cores} DLA cores, counted from 0; core {core} is none of them"
    elif not generation_of(target.runtime.version).has_dla:
        said = f"TensorRT {target.runtime.version} does not drive the DLA; take engine.dla out"
    else:
        said = f"core {core} is there; what of the graph runs on it, only the device says"
        return Line(check="DLA", answer=Answer.UNKNOWN, said=said)
    return Line(check="DLA", answer=Answer.REFUSED, said=said)


def _graph_lines(request: EngineRequest, model: Model) -> Iterator[Line]:
    runtime = request.target.runtime
    is_rtx = runtime.name == "tensorrt_rtx"
    version = _RTX_OPERATORS if is_rtx else version_of(runtime.version)
    limit = runtime.opset
    yield Line(
        check="opset",
        answer=Answer.PASSED if model.opset <= limit else Answer.REFUSED,
        said=f"the model has opset {model.opset}, {runtime.name} {runtime.version} reads {limit}",
    )
    yield _operators(model, version)
    yield _qdq(request, model, version)


def _qdq(request: EngineRequest, model: Model, version: operators.Version) -> Line:
    broken = [str(finding) for finding in _refused_pairs(model, version)]
    count = sum(node.op_type in lint.QDQ for node in model.graph)
    if request.precision == "int8" and not count:
        broken.append("INT8 was asked for, and the graph has no Q/DQ: it would not be INT8")
    if request.precision != "int8" and count and version < _TYPED_BY_GRAPH:
        broken.append(f"the graph has Q/DQ, which TensorRT builds as int8, not {request.precision}")
    return Line(
        check="Q/DQ",
        answer=Answer.REFUSED if broken else Answer.PASSED,
        said=_listed(broken) or f"{count} nodes, no rule broken",
    )


def _refused_pairs(model: Model, version: operators.Version) -> list[lint.Finding]:
    """What the parser would not read; the rest of the lint is advice."""
    found = lint.lint(model, lint.Reader(runtime="tensorrt", version=version))
    return [finding for finding in found if finding.severity == "error"]


def _operators(model: Model, version: operators.Version) -> Line:
    refused: list[str] = []
    doubted: list[str] = []
    for node in model.graph.all_nodes():
        named = f'{node.op_type} "{node.name}"'
        if refusal := operators.refusal(node, version):
            refused.append(f"{named}: {refusal}")
        elif doubt := operators.doubt(node):
            doubted.append(f"{named}: {doubt}")
    kinds = Counter(node.op_type for node in model.graph.all_nodes())
    answer = Answer.REFUSED if refused else Answer.UNKNOWN if doubted else Answer.PASSED
    said = _listed(refused or doubted) or f"{len(kinds)} kinds, no rule speaks against one"
    return Line(check="operators", answer=answer, said=said)


def _opens(request: EngineRequest) -> Line:
    try:
        with onnxruntime.open_bytes(request.model_path.read_bytes(), threads=1):
            return Line(check="load", answer=Answer.PASSED, said="ONNX Runtime opens it here")
    except InputError as error:
        return Line(check="load", answer=Answer.REFUSED, said=f"{error.what}: {error.got}")


def _compile(request: EngineRequest, *, agreed: bool) -> Line:
    """`agreed`: one of our own rules refuses the model already."""
    check = "compile"
    own = request.target.runtime.name == "tensorrt_rtx"
    capability = str(request.target.compute_capability) if own else _STAND_IN
    if not tensorrt_rtx.is_installed():
        said = "not checked: tensorrt-rtx is not installed (pip install 'edgekit[rtx]')"
        return Line(check=check, answer=Answer.SKIPPED, said=said)
    judge = f"TensorRT-RTX {tensorrt_rtx.installed_version()} for {capability}"
    try:
        with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
            tensorrt_rtx.compile_model(
                request, Path(folder) / "model.engine", compute_capability=capability
            )
    except EdgekitError as error:
        refuses = (own and isinstance(error, InputError)) or agreed
        answer = Answer.REFUSED if refuses else Answer.UNKNOWN
        return Line(check=check, answer=answer, said=f"{judge}: {error.what}: {error.got}")
    return Line(check=check, answer=Answer.PASSED, said=f"{judge} accepts the graph")


def _listed(said: list[str]) -> str:
    more = [f"and {len(said) - _SHOWN} more"] if len(said) > _SHOWN else []
    return "; ".join([*said[:_SHOWN], *more])
