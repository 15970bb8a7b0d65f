"""What is done to samples before they are shown: the same for the student and the teacher."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

from edgekit.data.functions import function_digest, load_function, user_code
from edgekit.errors import InputError
from edgekit.values import Array

Inputs: TypeAlias = Mapping[str, Array]


@dataclass(frozen=True, kw_only=True)
class OwnFunction:
    """A user's `function(batch, generator) -> batch`, and the hash of the code that it is in.

    A batch has an array for each input of the model, the first axis the samples, as the model reads
    them (pixels are preprocessed); `generator` is a `numpy.random.Generator`.
    """

    name: str
    digest: str
    call: Callable[[dict[str, Array], np.random.Generator], object] = field(repr=False)


def load_own_function(spec: str, folder: Path) -> OwnFunction:
    """The function that `package.module:function` or `file.py:function` names.

    Files are relative to `folder`. Raises InputError where there is none.
    """
    return OwnFunction(
        name=spec, digest=function_digest(spec, folder), call=load_function(spec, folder)
    )


def mirrored(images: Array, chosen: Array, width_axis: int) -> Array:
    """The images, those of the samples `chosen` (n,) flipped from left to right."""
    found: Array = images.copy()
    found[chosen] = np.flip(images, width_axis)[chosen]
    return found


def shifted(images: Array, offsets: Array, height_axis: int) -> Array:
    """Each image moved by its offset (n, 2), down and right, in pixels; the width axis comes next.

    What was outside is the reflection at the border: it keeps to the values that images have. This
    is a random crop from the padded image, seen from the image.
    """
    moved = np.moveaxis(images, (height_axis, height_axis + 1), (1, 2))
    sizes = moved.shape[1:3]
    rows, columns = (
        _reflected(np.arange(size) - offset[:, None], size)
        for size, offset in zip(sizes, offsets.T, strict=True)
    )
    found: Array = moved[
        np.arange(len(images))[:, None, None], rows[:, :, None], columns[:, None, :]
    ]
    found = np.moveaxis(found, (1, 2), (height_axis, height_axis + 1))
    return np.ascontiguousarray(found)


def apply_own(function: OwnFunction, inputs: Inputs, generator: np.random.Generator) -> Inputs:
    """What the user's function makes of a batch; the batch itself stays as it is.

    Raises InputError where it fails, and for a batch that is not of the same names, shapes and
    types, or has NaN or infinity in it.
    """
    with user_code("the augmentation failed", function.name):
        made = function.call({name: array.copy() for name, array in inputs.items()}, generator)
    if not isinstance(made, Mapping) or set(made) != set(inputs):
        raise InputError(
            "the augmentation gave something else than the arrays of a batch", where=function.name,
            got=", ".join(map(str, made)) if isinstance(made, Mapping) else type(made).__name__,
            wanted=f"a mapping with {', '.join(inputs)}",
        )  # fmt: skip
    for name, before in inputs.items():
        after = made[name]
        fits = isinstance(after, np.ndarray) and after.dtype == before.dtype
        if not fits or after.shape != before.shape:
            raise InputError(
                f'the augmentation changed what "{name}" is', where=function.name,
                got=f"{getattr(after, 'dtype', type(after).__name__)} {np.shape(after)}",
                wanted=f"{before.dtype} {before.shape}",
            )  # fmt: skip
        if after.dtype.kind == "f" and not np.isfinite(after).all():
            raise InputError(f'the augmentation made NaN or infinity in "{name}"',
                             where=function.name)  # fmt: skip
    return {name: made[name] for name in inputs}


def _reflected(places: Array, size: int) -> Array:
    """Indices folded back into 0..size-1 at the borders, which are not repeated."""
    period = max(1, 2 * size - 2)
    folded: Array = np.abs((places + size - 1) % period - (size - 1))
    return folded
