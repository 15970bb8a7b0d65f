"""The same network at another version of ONNX's default operators, higher or lower."""

from __future__ import annotations

import onnx

from edgekit.errors import InputError
from edgekit.models.model import Model, after_step, editable
from edgekit.models.opset.crossing import Obstacle, cross
from edgekit.models.opset.schemas import LATEST, OLDEST

__all__ = ["NEWEST", "converted", "lowered", "raised"]

NEWEST = min(24, onnx.defs.onnx_opset_version())
"""The opset that networks are raised to for the executor.

ONNX Runtime 1.32 has no CPU kernel for RoiAlign, MaxRoiPool, GlobalLpPool and the Random operators
from opset 22 on: what is to run there with one of them is raised to 21 at most.
"""


def converted(model: Model, opset: int) -> Model:
    """The same network at `opset`: raised or lowered, or the Model itself where it is there.

    Raises as `raised` and `lowered` do.
    """
    if model.opset == opset:
        return model
    return raised(model, opset) if model.opset < opset else lowered(model, opset)


def raised(model: Model, opset: int = NEWEST) -> Model:
    """The same network at a higher opset; the Model itself where it is there already.

    Names of parameters, nodes, inputs and outputs are kept. Custom domains are left as they are;
    the bodies of the model's own functions are raised too.

    Raises InputError for an opset that is lower, or not known, and for nodes that cannot be raised,
    all of them named.
    """
    _check_target(model, opset)
    if model.opset > opset:
        raise InputError(
            "a network is raised to a higher opset", where=model.name,
            got=f"opset {model.opset}", wanted=f"opset {opset} or less",
            hint="Lower it instead (`lowered`).",
        )  # fmt: skip
    return model if model.opset == opset else _crossed(model, opset, "raised")


def lowered(model: Model, opset: int) -> Model:
    """The same network at a lower opset; the Model itself where it is there already.

    Operators that the lower opset lacks are written by those that it has, in the node's own element
    type. The file's IR version becomes at most the one that came with that opset, so that runtimes
    of its time read it. What is kept, and what is raised, is as for `raised`.
    """
    _check_target(model, opset)
    if model.opset < opset:
        raise InputError(
            "a network is lowered to a lower opset", where=model.name,
            got=f"opset {model.opset}", wanted=f"opset {opset} or more",
            hint="Raise it instead (`raised`).",
        )  # fmt: skip
    return model if model.opset == opset else _crossed(model, opset, "lowered")


def _check_target(model: Model, opset: int) -> None:
    latest = min(LATEST, onnx.defs.onnx_opset_version())
    for what, version in (("the network has", model.opset), ("this asks for", opset)):
        if not OLDEST <= version <= latest:
            raise InputError(
                f"{what} an opset whose operators edgekit does not know", where=model.name,
                got=f"opset {version}", wanted=f"opset {OLDEST} to {latest}",
                hint="Export the model again with opset_version=17.",
            )  # fmt: skip


def _crossed(model: Model, opset: int, done: str) -> Model:
    program = editable(model)
    obstacles = cross(program, opset)
    if obstacles:
        raise _refused(model, opset, done, obstacles)
    return after_step(model, program, f"opset {opset}")


def _refused(model: Model, opset: int, done: str, obstacles: list[Obstacle]) -> InputError:
    count = len(obstacles)
    lines = "".join(f"\n  {obstacle}" for obstacle in obstacles)
    return InputError(
        f"{count} node{'s' if count > 1 else ''} cannot be {done} to opset {opset}",
        where=model.name, got=f"opset {model.opset}, with{lines}",
        hint="Replace these operators in the network, or choose another opset or target.",
    )  # fmt: skip
