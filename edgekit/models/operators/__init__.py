"""The operators of the trainable executor: ONNX's semantics in torch, one function for each.

A builder takes the `Op` once, reads its attributes and constants, and returns the function that is
called at each forward pass with the node's inputs (None for an absent one). A new operator is one
builder in one of the modules here, named in its `BUILDERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from edgekit.models.model import attribute
from edgekit.values import Array


@dataclass
class Mode:
    """How a module runs: one object that all functions of a module share.

    `observing`: BatchNormalization's running statistics become those of the one batch.
    """

    training: bool = False
    observing: bool = False


@dataclass(frozen=True)
class Op:
    """A node as a builder sees it: attributes, the constants among its inputs, the opset."""

    node: ir.Node
    constants: tuple[Array | None, ...]
    opset: int
    mode: Mode

    def get(self, name: str, default: object = None) -> Any:
        """The attribute, or the default."""
        return attribute(self.node, name, default)

    def constant(self, index: int) -> Array | None:
        """The constant at that input, None where it is absent or computed."""
        return self.constants[index] if index < len(self.constants) else None

    def computed(self, index: int) -> bool:
        """Whether that input is there and its value is known only when the module runs."""
        given = index < len(self.node.inputs) and self.node.inputs[index] is not None
        return given and self.constant(index) is None

    def axes(self, index: int = 1) -> list[int] | None:
        """The axes from the attribute (older opsets) or from the constant input."""
        given = self.get("axes")
        if given is None:
            constant = self.constant(index)
            given = None if constant is None else constant.reshape(-1).tolist()
        return None if given is None else [int(axis) for axis in given]


Function = Callable[..., Any]
Builder = Callable[[Op], Function]

# Operators whose function returns a tuple, one tensor for each output of the node.
SEVERAL_OUTPUTS = ("Split",)


def builders() -> Mapping[str, Builder]:
    """Every operator's builder by name. Imports torch."""
    from edgekit.models.operators import arithmetic, neural, shapes

    return {**arithmetic.BUILDERS, **neural.BUILDERS, **shapes.BUILDERS}
