"""What a user is told of code that has a width written into it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import nn

from edgekit.compress.channels.own.code import Line, Suspect
from edgekit.errors import InputError

_HINT = (
    "Take the width from the tensor or from a layer there (x.shape[1], self.fc.in_features): the "
    "plan then holds for your code too."
)


def written_width(
    cut: nn.Module, error: Exception, line: Line | None, found: Sequence[Suspect]
) -> InputError:
    """The error for a pass that raised at a line: the last line that is suspected, else that one.

    What was suspected last is the likeliest to have made what the failing line could not take.
    """
    raised = f"{type(error).__name__}: {first_line(error)}"
    if found and line is not None:
        suspect = found[-1]
        later = "" if suspect.line == line else f" at {line}, `{line.text}`"
        return InputError(
            "a width is written into the forward pass",
            where=f"{suspect.line} in {_owner(cut, suspect.line)}",
            got=f"`{suspect.line.text}` gives {_numbers(suspect)} for {suspect.width} channels, of "
            f"which {suspect.left} are left; the pass fails{later}: {raised}",
            wanted="a width that follows the tensor", hint=_HINT,
        )  # fmt: skip
    return InputError(
        "the forward pass fails once the channels are gone",
        where="" if line is None else f"{line} in {_owner(cut, line)}",
        got=f"`{line.text}` raises {raised}" if line is not None else raised,
        wanted="code that reads every width from a tensor or a layer", hint=_HINT,
    )  # fmt: skip


def other_numbers(found: Sequence[Suspect], said: str, place: str) -> InputError:
    """The error for a pass that runs and gives other numbers than the graph."""
    lines = dict.fromkeys(
        f"{one.line} `{one.line.text}` ({_numbers(one)} for {one.width} channels, {one.left} left)"
        for one in found
    )
    return InputError(
        "the cut module does not compute what the cut graph computes",
        where="; ".join(list(lines)[:4]) or place, got=said,
        wanted="the same numbers",
        hint=_HINT if found else "A number that the forward pass holds (heads, the size of a "
        "group, a constant) may have had to follow; or the graph is of other code than the module.",
    )  # fmt: skip


def bare_numbers(module: nn.Module, widths: Collection[int]) -> list[str]:
    """Whole numbers that modules of the user's own keep and that were a width before the cut."""
    found = [
        f"{path or type(layer).__name__}.{own} = {value}"
        for path, layer in module.named_modules()
        if not type(layer).__module__.startswith("torch.")
        for own, value in vars(layer).items()
        if type(value) is int and value in widths
    ]
    return found[:8] or ["none"]


def first_line(error: BaseException) -> str:
    """The first line of what an error says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else "no message"


def _numbers(suspect: Suspect) -> str:
    """The numbers, with the attribute of their module that each one is."""
    held = {} if suspect.line.owner is None else vars(suspect.line.owner)
    names = {v: own for own, v in reversed(list(held.items())) if type(v) is int}
    return ", ".join(
        f"{number} (self.{names[number]})" if number in names else str(number)
        for number in suspect.numbers
    )


def _owner(module: nn.Module, line: Line) -> str:
    """How a user calls the module whose line it is."""
    for path, layer in module.named_modules():
        if layer is line.owner:
            return f"{path} ({type(layer).__name__})" if path else type(layer).__name__
    return "a function" if line.owner is None else type(line.owner).__name__
