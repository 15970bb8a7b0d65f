"""What every runtime's Session says of inputs that it cannot take."""

from __future__ import annotations

from collections.abc import Iterable

from edgekit.errors import InputError
from edgekit.values import Array, Feeds


def other_inputs(
    feeds: Feeds, wanted: Iterable[str], where: str, *, whose: str = "model"
) -> InputError:  # fmt: skip
    """The error for feeds whose names are not those of the model, or of the engine."""
    return InputError(
        f"these are not the {whose}'s inputs",
        where=where, got=", ".join(feeds), wanted=", ".join(wanted),
    )  # fmt: skip


def wrong_type(name: str, array: Array, wanted: object, where: str) -> InputError:
    """The error for an input of another type."""
    return InputError(
        f'the input "{name}" has the wrong type',
        where=where, got=str(array.dtype), wanted=str(wanted),
    )  # fmt: skip
