"""A feature map that two networks share, as one more thing to learn from (FitNets, 2015)."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir
import onnx_ir.passes.common as passes

from edgekit.errors import InputError
from edgekit.models.model import Model, editable, spec_of


def with_hint(student: Model, teacher: Model) -> tuple[tuple[Model, Model], str]:
    """Both Models with the last feature map that they share as one more output; and its name.

    It is the last tensor in the student's order that both have under one name, of one type in
    floating point, with the same sizes apart from the samples, at least two of them above 1: what
    is pooled to a vector is no map. Romero et al., "FitNets: Hints for Thin Deep Nets" (2015),
    section 2.2, let a narrower student learn such a map through a regressor; a cut network has it
    at the same width where the layer that makes it was not cut.

    Raises InputError where there is none.
    """
    programs = []
    for model in (student, teacher):
        program = editable(model)
        passes.ShapeInferencePass()(program)
        programs.append(program)
    ours, theirs = ({v.name: v for v in _made(p)} for p in programs)
    shared = [
        name for name, value in ours.items()
        if name in theirs and _is_map(value) and _form(value) == _form(theirs[name])
    ]  # fmt: skip
    if not shared:
        raise InputError(
            "the two networks share no feature map to take a hint from", where="hint",
            got=f"{len(ours.keys() & theirs.keys())} tensors of the same name, none a map "
            "of the same sizes",
            wanted="one that the cut left as wide as it was",
            hint="Leave hint out, or freeze the last layer before the pooling.",
        )  # fmt: skip
    name = shared[-1]
    assert name is not None  # _made
    for program, values in zip(programs, (ours, theirs), strict=True):
        program.graph.outputs.append(values[name])
    hinted = [
        replace(model, program=program)
        for model, program in zip((student, teacher), programs, strict=True)
    ]
    return (hinted[0], hinted[1]), name


def _made(program: ir.Model) -> list[ir.Value]:
    """What the nodes make, in their order, the outputs apart."""
    outputs = set(program.graph.outputs)
    return [v for node in program.graph for v in node.outputs if v.name and v not in outputs]


def _is_map(value: ir.Value) -> bool:
    floating = value.dtype is not None and value.dtype.is_floating_point()
    extended = [size for size in (value.shape or ())[1:] if size != 1]
    return floating and len(extended) > 1


def _form(value: ir.Value) -> tuple[object, ...]:
    """Type and sizes, the samples apart; a dynamic size is like any other."""
    spec = spec_of(value)
    return spec.dtype, *(size if isinstance(size, int) else None for size in spec.shape[1:])
