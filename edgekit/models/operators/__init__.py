"""The operators of the trainable executor: ONNX's semantics in torch, one function for each.

A builder takes the `Op` once, reads its attributes, and returns the function that is called at each
forward pass with the node's inputs (None for an absent one; trailing absent ones are left out). It
returns a tensor, or a tuple with one for each output of the node. An input that decides a shape
(`HOST_INPUTS`) arrives as a Python number or list: constants and what follows from the shapes of
the graph's inputs are not computed again. A new operator is one builder in one of the modules here,
named in its `BUILDERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from edgekit.errors import InputError
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
    """A node as a builder sees it: attributes, the constants among its inputs, the opset.

    `overwrites`: the first input is read by nobody else, and no gradient needs it any more.
    `subgraph` compiles the graph of that attribute, as If wants it.
    """

    node: ir.Node
    constants: tuple[Array | None, ...]
    opset: int
    mode: Mode
    overwrites: bool = False
    subgraph: Callable[[ir.Graph], Function] | None = None

    def get(self, name: str, default: object = None) -> Any:
        """The attribute, or the default."""
        return attribute(self.node, name, default)

    def constant(self, index: int) -> Array | None:
        """The constant at that input, None where it is absent or computed."""
        return self.constants[index] if index < len(self.constants) else None

    def refuse(self, why: str, hint: str = "") -> InputError:
        """The error of a node that the executor cannot run."""
        name = self.node.name or self.node.outputs[0].name
        return InputError(
            f"the executor cannot run this {self.node.op_type}: {why}", where=name or "",
            hint=hint or "Train the model where it came from, with the plan that "
            "`edgekit channels` writes.",
        )  # fmt: skip


Function = Callable[..., Any]
Builder = Callable[[Op], Function]

# Inputs that decide shapes, by position: they are handed over as Python numbers or lists.
HOST_INPUTS: Mapping[str, tuple[int, ...]] = {
    "AffineGrid": (1,), "CenterCropPad": (1,), "Col2Im": (1, 2), "ConstantOfShape": (0,),
    "CumProd": (1,), "CumSum": (1,), "Dropout": (1, 2), "Expand": (1,), "If": (0,),
    "NonMaxSuppression": (2, 3, 4), "OneHot": (1,), "Pad": (1, 3), "Range": (0, 1, 2),
    "Reshape": (1,), "Resize": (1, 2, 3), "Slice": (1, 2, 3, 4), "Split": (1,), "Squeeze": (1,),
    "Tile": (1,), "TopK": (1,), "Trilu": (1,), "Unsqueeze": (1,), "Upsample": (1,),
    "MaxUnpool": (2,),
    **dict.fromkeys(
        (
            "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
            "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
        ),
        (1,),
    ),
}  # fmt: skip

# What these give depends on the data, not only on its shape: they and all that follows from their
# sizes are computed at each pass.
DATA_SIZED = ("Compress", "NonMaxSuppression", "NonZero", "Unique")
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
          "Multinomial", "Dropout")  # fmt: skip


def whole(value: Any) -> list[int]:
    """The integers of a host input: a number, a list, or a tensor where it is data."""
    if value is None:
        return []
    listed = value if isinstance(value, (int, float, bool, list, tuple)) else value.tolist()
    return [int(v) for v in listed] if isinstance(listed, (list, tuple)) else [int(listed)]


def reals(value: Any) -> list[float]:
    """The floating-point numbers of a host input."""
    if value is None:
        return []
    listed = value if isinstance(value, (int, float, bool, list, tuple)) else value.tolist()
    return [float(v) for v in listed] if isinstance(listed, (list, tuple)) else [float(listed)]


def builders() -> Mapping[str, Builder]:
    """Every operator's builder by name. Imports torch."""
    from edgekit.models.operators import (
        arithmetic,
        control,
        convolution,
        detection,
        indexing,
        normalization,
        pooling,
        products,
        quantization,
        recurrent,
        reductions,
        resizing,
        shapes,
        types,
    )

    rooms = (
        arithmetic, control, convolution, detection, indexing, normalization, pooling, products,
        quantization, recurrent, reductions, resizing, shapes, types,
    )  # fmt: skip
    return {name: builder for room in rooms for name, builder in room.BUILDERS.items()}
