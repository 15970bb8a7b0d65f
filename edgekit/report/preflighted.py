"""A model's preflight for a target, of the graph that a build would bring there."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from edgekit.engines.base import EngineRequest
from edgekit.engines.preflight.preflight import Answer, Line, PreflightReport, preflight
from edgekit.errors import EdgekitError, InputError
from edgekit.models.cost.sizes import Forms
from edgekit.models.model import Model, save
from edgekit.models.opset import lowered
from edgekit.targets import Precision, Target
from edgekit.values import Unknown


def preflight_as_built(
    path: Path, model: Model, known: Forms, target: Target, precision: Precision
) -> PreflightReport | Unknown:
    """The preflight at these sizes; Unknown where a size is missing, or the file is unreadable.

    A graph of a newer opset than the target reads is lowered first, as `edgekit build` does; where
    that cannot be done, the graph is judged as it stands, and the opset's line says why.
    """
    shapes = {}
    for value, spec in zip(model.graph.inputs, model.inputs, strict=True):
        sizes = known[value].sizes
        if sizes is not None and any(isinstance(size, str) for size in spec.shape):
            shapes[spec.name] = (sizes, sizes, sizes)
    try:
        with _brought(path, model, target) as (place, said):
            report = preflight(
                EngineRequest(
                    model_path=place, name=model.name, target=target, precision=precision,
                    shapes=shapes,
                )
            )  # fmt: skip
    except EdgekitError as error:
        return Unknown("; ".join(filter(None, (error.what, error.got, error.hint))))
    return _with_opset_said(report, said) if said else report


@contextmanager
def _brought(path: Path, model: Model, target: Target) -> Iterator[tuple[Path, str]]:
    """The file that the target's build would be given, and what was done to its opset."""
    wanted = target.runtime.opset
    if model.opset <= wanted:
        yield path, ""
        return
    with tempfile.TemporaryDirectory(prefix="edgekit-") as folder:
        try:
            lower = lowered(model, wanted)
        except InputError as error:
            yield path, f"it cannot be lowered to {wanted}: {error.got or error.what}"
            return
        place = Path(folder) / "model.onnx"
        save(lower, place)
        yield place, f"lowered from {model.opset} for this check, as edgekit build does"


def _with_opset_said(report: PreflightReport, said: str) -> PreflightReport:
    lines = (
        Line(check=line.check, answer=line.answer, said=f"{line.said}; {said}")
        if line.check == "opset" or (line.check == "load" and line.answer is not Answer.PASSED)
        else line
        for line in report.lines
    )
    return replace(report, lines=tuple(lines))
