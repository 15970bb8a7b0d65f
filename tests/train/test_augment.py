"""What is done to samples on their way, against numpy's own padding and by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import InputError
from edgekit.train.augment import (
    OwnFunction,
    apply_own,
    load_own_function,
    mirrored,
    shifted,
)
from edgekit.values import Array

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(4, 3, 5, 7)).astype(np.float32)
OFFSETS = np.array([[0, 0], [4, -6], [-4, 6], [1, 2]])


def cropped(image: Array, down: int, right: int) -> Array:
    """A crop (c, h, w) from the image that numpy padded by reflection."""
    height, width = image.shape[1:]
    padded = np.pad(image, ((0, 0), (6, 6), (6, 6)), mode="reflect")
    return padded[:, 6 - down : 6 - down + height, 6 - right : 6 - right + width]


def test_a_shift_is_a_crop_from_the_padded_image() -> None:
    found = shifted(IMAGES, OFFSETS, 2)
    expected = np.stack([cropped(x, *o) for x, o in zip(IMAGES, OFFSETS.tolist(), strict=True)])
    assert np.array_equal(found, expected)
    assert found.flags.c_contiguous


def test_a_shift_of_images_with_the_channels_last_is_the_same() -> None:
    last = shifted(IMAGES.transpose(0, 2, 3, 1), OFFSETS, 1)
    assert np.array_equal(last, shifted(IMAGES, OFFSETS, 2).transpose(0, 2, 3, 1))


def test_an_image_of_one_pixel_has_nowhere_to_go() -> None:
    dots = IMAGES[:, :, :1, :1]
    assert np.array_equal(shifted(dots, np.zeros((4, 2), int), 2), dots)


def test_a_mirror_turns_only_the_chosen_and_changes_nothing_in_place() -> None:
    before = IMAGES.copy()
    found = mirrored(IMAGES, np.array([True, False, True, False]), 3)
    assert np.array_equal(found[[1, 3]], before[[1, 3]])
    assert np.array_equal(found[[0, 2]], before[[0, 2]][..., ::-1])
    assert np.array_equal(IMAGES, before)


def own(call: Callable[..., Any]) -> OwnFunction:
    return OwnFunction(name="mine.py:change", digest="", call=call)


def applied(call: Callable[..., Any]) -> Any:
    return apply_own(own(call), {"image": IMAGES}, np.random.default_rng(5))


def test_an_own_function_gets_the_batch_and_a_generator() -> None:
    found = applied(lambda batch, g: {"image": batch["image"] * np.float32(g.uniform(2, 3))})
    factor = np.float32(np.random.default_rng(5).uniform(2, 3))
    assert np.array_equal(found["image"], IMAGES * factor)


def test_an_own_function_may_write_into_what_it_gets() -> None:
    before = IMAGES.copy()

    def spoil(batch: Any, generator: Any) -> Any:
        batch["image"][:] = 0
        return batch

    assert not applied(spoil)["image"].any()
    assert np.array_equal(IMAGES, before)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda batch, g: None, "something else than the arrays"),
        (lambda batch, g: {"images": batch["image"]}, "something else than the arrays"),
        (lambda batch, g: {"image": batch["image"][:2]}, 'changed what "image" is'),
        (lambda batch, g: {"image": batch["image"].astype(np.float64)}, 'changed what "image" is'),
        (lambda batch, g: {"image": 3}, 'changed what "image" is'),
        (lambda batch, g: {"image": batch["image"] / np.float32("nan")}, "NaN or infinity"),
        (lambda batch, g: batch["picture"], "augmentation failed"),
    ],
)
def test_an_own_function_that_gives_something_else_is_quoted(
    call: Callable[..., Any], said: str
) -> None:
    with pytest.raises(InputError, match=said) as caught:
        applied(call)
    assert caught.value.where == "mine.py:change"


def test_an_own_function_is_found_beside_the_recipe_and_known_by_its_code(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def change(batch, generator):\n    return batch\n")
    found = load_own_function("mine.py:change", tmp_path)
    assert found.call({"a": IMAGES}, RNG) == {"a": IMAGES}
    path.write_text("def change(batch, generator):\n    return dict(batch)\n")
    assert load_own_function("mine.py:change", tmp_path).digest != found.digest
    with pytest.raises(InputError, match='no function "chagne"'):
        load_own_function("mine.py:chagne", tmp_path)
