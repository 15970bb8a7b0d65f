"""Which line of a user's forward pass has a width written into it: what ran, line by line.

A number is suspected where a call gives the same one before and after the cut, although the tensor
that it is about has become narrower.
"""

from __future__ import annotations

import linecache
import math
import sys
import sysconfig
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

_NOT_THEIRS = (
    str(Path(torch.__file__).parent),
    str(Path(__file__).resolve().parents[2]),
    "<frozen ",
)
_LIBRARY = sysconfig.get_path("stdlib")

_SHAPERS = ("view", "reshape", "unflatten", "expand", "repeat", "broadcast_to", "view_as")
_CUTTERS = ("split", "split_with_sizes", "unsafe_split", "narrow", "tensor_split", "__getitem__",
            "pad", "_pad")  # fmt: skip
_MAKERS = ("zeros", "ones", "empty", "full", "arange", "randn", "rand", "new_zeros", "new_ones",
           "new_empty", "new_full")  # fmt: skip
_UNTOUCHED = ("__get__", "size", "dim", "numel", "stride", "is_floating_point")


@dataclass(frozen=True)
class Line:
    """A line of a user's code, and the module whose method it is in, if it is in one."""

    file: str
    number: int
    owner: nn.Module | None = field(default=None, compare=False)

    @property
    def text(self) -> str:
        """What stands there, without the white space around it."""
        return linecache.getline(self.file, self.number).strip()

    def __str__(self) -> str:
        return f"{self.file}:{self.number}"


@dataclass
class Call:
    """A call of torch's: the shapes that went in, every whole number given, what came out."""

    name: str
    line: Line | None
    shapes: tuple[tuple[int, ...], ...]
    numbers: tuple[int, ...]
    found: tuple[tuple[int, ...], ...] = ()


class Recorder(TorchFunctionMode):
    """Within it, each call of torch's is noted in `calls`, the one that fails last."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:  # fmt: skip
        """What the call gives, noted."""
        del types
        name = getattr(func, "__name__", "")
        if name in _UNTOUCHED:
            return func(*args, **(kwargs or {}))
        given = list(_leaves((args, kwargs or {})))
        call = Call(
            name=name,
            line=line_of(sys._getframe(1)),
            shapes=tuple(tuple(one.shape) for one in given if isinstance(one, Tensor)),
            numbers=tuple(one for one in given if type(one) is int),
        )
        self.calls.append(call)
        found = func(*args, **(kwargs or {}))
        call.found = tuple(tuple(one.shape) for one in _leaves(found) if isinstance(one, Tensor))
        return found


@dataclass(frozen=True)
class Suspect:
    """Numbers written in a line, although an axis of `width` entries there has `left` now."""

    line: Line
    numbers: tuple[int, ...]
    width: int
    left: int


def suspects(before: Sequence[Call], after: Sequence[Call]) -> list[Suspect]:
    """The suspected numbers in the order in which they ran, as far as both runs went alike."""
    found: list[Suspect] = []
    widths: dict[int, int] = {}
    for whole, cut in zip(before, after, strict=False):
        if (whole.name, whole.line) != (cut.name, cut.line):
            break
        narrower = dict(_narrower(whole, cut))
        widths.update(narrower)
        if cut.line is not None:
            for numbers, width in _suspected(whole, cut, narrower, widths):
                found.append(Suspect(cut.line, numbers, width, widths[width]))
    return found


def _narrower(whole: Call, cut: Call) -> Iterator[tuple[int, int]]:
    """(before, after) of each axis of the call's inputs that the cut has made shorter."""
    for one, other in zip(whole.shapes, cut.shapes, strict=False):
        if len(one) == len(other):
            yield from ((a, b) for a, b in zip(one, other, strict=True) if b < a)


def _suspected(
    whole: Call, cut: Call, narrower: dict[int, int], widths: dict[int, int]
) -> Iterator[tuple[tuple[int, ...], int]]:
    """The (numbers, width) of a call that stayed as they were although the tensor did not."""
    if len(whole.numbers) != len(cut.numbers):
        return
    written = [a for a, b in zip(whole.numbers, cut.numbers, strict=True) if a == b and a > 1]
    if whole.name in _MAKERS:
        yield from (((number,), number) for number in written if number in widths)
        return
    for width in narrower:
        if whole.name in _CUTTERS:
            numbers = tuple(number for number in written if number <= width)
            if numbers:
                yield numbers, width
        elif whole.name in _SHAPERS:
            # Sizes of axes that the cut leaves alone are no widths: batch, height and width.
            stay = Counter(
                a for one, other in zip(whole.shapes, cut.shapes, strict=False)
                for a, b in zip(one, other, strict=False) if a == b
            )  # fmt: skip
            numbers = tuple((Counter(written) - stay).elements())
            if numbers and math.prod(numbers) % width == 0:
                yield numbers, width


def line_of(frame: FrameType | None) -> Line | None:
    """The innermost line of the user's code from a frame outwards; None where there is none."""
    while frame is not None:
        if _is_theirs(frame):
            return _line(frame, frame.f_lineno)
        frame = frame.f_back
    return None


def failing_line(trace: TracebackType | None) -> Line | None:
    """The innermost line of the user's code in a traceback."""
    found = None
    while trace is not None:
        if _is_theirs(trace.tb_frame):
            found = _line(trace.tb_frame, trace.tb_lineno)
        trace = trace.tb_next
    return found


def _line(frame: FrameType, number: int) -> Line:
    code = frame.f_code
    owner = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None  # its self
    return Line(code.co_filename, number, owner if isinstance(owner, nn.Module) else None)


def _is_theirs(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    if file.startswith(_NOT_THEIRS):
        return False
    return not file.startswith(_LIBRARY) or "site-packages" in file


def _leaves(given: Any) -> Iterator[Any]:
    """Tensors and numbers in arguments, a slice's ends among them."""
    for leaf in pytree.tree_leaves(given):
        if isinstance(leaf, slice):
            yield from (leaf.start, leaf.stop, leaf.step)
        else:
            yield leaf
