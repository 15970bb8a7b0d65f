"""What the student is shown, and that the teacher's answer is to just that."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgekit.data.batches import Batches
from edgekit.errors import InputError
from edgekit.models.model import Model
from edgekit.train.augment import OwnFunction, shifted
from edgekit.values import Array

torch = pytest.importorskip("torch", reason="needs the compress extra")
pytestmark = pytest.mark.torch

Reference = Callable[..., list[Array]]
IMAGES = np.random.default_rng(3).normal(size=(230, 3, 8, 8)).astype(np.float32)
CHOSEN = np.array([4, 1, 3, 229, 100, 7, 9, 11])


def lessons(model: Model, images: Array = IMAGES, **changes: Any) -> Any:
    from edgekit.compress.lessons import Changes, Lessons
    from edgekit.models.torch_module import torch_module

    batches = Batches(arrays={"image": images}, pixels={}, batch_size=16)
    return Lessons(torch_module(model), batches, ["image"], Changes(**changes))


def generator(seed: int = 0) -> Any:
    return torch.Generator().manual_seed(seed)


def add_one(batch: Any, g: np.random.Generator) -> Any:
    return {"image": batch["image"] + np.float32(1)}


CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "mirror": {"mirror": True},
    "shift": {"shift": 3},
    "own": {"own": OwnFunction(name="add_one", digest="", call=add_one)},
    "everything": {
        "mirror": True, "shift": 2, "own": OwnFunction(name="add_one", digest="", call=add_one)
    },
}  # fmt: skip


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_the_teacher_answers_to_just_what_is_shown(
    residual: Model, reference: Reference, changes: dict[str, Any]
) -> None:
    lesson = lessons(residual, **changes).changed(CHOSEN, generator())
    (wanted,) = reference(residual, {"image": lesson.inputs[0].contiguous().numpy()})
    assert np.allclose(lesson.answers[0].numpy(), wanted, atol=1e-4)


def test_a_mirror_turns_about_half_of_the_images(residual: Model) -> None:
    shown = lessons(residual, mirror=True).changed(np.arange(200), generator()).inputs[0].numpy()
    as_they_are = (shown == IMAGES[:200]).all(axis=(1, 2, 3))
    turned = (shown == IMAGES[:200, :, :, ::-1]).all(axis=(1, 2, 3))
    assert (as_they_are ^ turned).all()
    assert 70 < turned.sum() < 130  # 100 ± 4 standard deviations


def test_a_shift_goes_as_far_as_it_may_in_every_direction(residual: Model) -> None:
    shown = lessons(residual, shift=1).changed(np.arange(200), generator()).inputs[0].numpy()
    ways = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    counts = [
        (shown == shifted(IMAGES[:200], np.tile(way, (200, 1)), 2)).all(axis=(1, 2, 3)).sum()
        for way in ways
    ]
    assert sum(counts) == 200
    assert min(counts) > 5


def test_an_own_function_comes_last(residual: Model) -> None:
    own = OwnFunction(name="add_one", digest="", call=add_one)
    with_own = lessons(residual, mirror=True, shift=2, own=own).changed(CHOSEN, generator())
    without = lessons(residual, mirror=True, shift=2).changed(CHOSEN, generator())
    assert torch.equal(with_own.inputs[0], without.inputs[0] + 1)


def test_plain_lessons_are_never_changed(residual: Model) -> None:
    everything = lessons(residual, **CHANGES["everything"])
    assert np.array_equal(everything.plain(CHOSEN).inputs[0].numpy(), IMAGES[CHOSEN])
    assert np.array_equal(everything.inputs(CHOSEN)[0].numpy(), IMAGES[CHOSEN])


def test_the_same_seed_changes_in_the_same_way(residual: Model) -> None:
    noisy = OwnFunction(
        name="noisy", digest="",
        call=lambda batch, g: {
            n: x + g.normal(size=x.shape).astype(np.float32) for n, x in batch.items()
        },
    )  # fmt: skip
    made = lessons(residual, shift=2, own=noisy)
    first, again, other = (made.changed(CHOSEN, generator(seed)).inputs[0] for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_pictures_with_the_channels_last_are_turned_from_left_to_right(residual: Model) -> None:
    from edgekit.compress.lessons import Changes, Lessons

    class Sum(torch.nn.Module):
        output_names = ("sum",)

        def forward(self, x: Any) -> Any:
            return (x.sum((1, 2, 3)),)

    last = np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1))
    batches = Batches(arrays={"image": last}, pixels={}, batch_size=16)
    made: Any = Lessons(Sum(), batches, ["image"], Changes(mirror=True))  # type: ignore[arg-type]
    shown = made.changed(CHOSEN, generator()).inputs[0].numpy()
    first = lessons(residual, mirror=True).changed(CHOSEN, generator()).inputs[0].numpy()
    assert np.array_equal(shown, first.transpose(0, 2, 3, 1))


def test_samples_with_nan_are_named(residual: Model) -> None:
    images = IMAGES.copy()
    images[150, 0, 2, 2] = np.nan
    with pytest.raises(InputError, match="NaN") as caught:
        lessons(residual, images)
    assert caught.value.got == "sample 150"


def test_a_teacher_with_nan_is_named(residual: Model) -> None:
    images = IMAGES * np.float32(5e37)  # its answers are beyond float32
    with pytest.raises(InputError, match="teacher answers with NaN or infinity"):
        lessons(residual, images)


@pytest.mark.parametrize("shift", [8, 100])
def test_a_shift_beyond_the_image_is_refused(residual: Model, shift: int) -> None:
    with pytest.raises(InputError, match="shifted") as caught:
        lessons(residual, shift=shift)
    assert caught.value.where == "shift"


class Answers(torch.nn.Module):
    """A teacher that gives these outputs for its first input."""

    def __init__(self, *outputs: Callable[[Any], Any]) -> None:
        super().__init__()
        self.output_names = tuple(f"out{i}" for i in range(len(outputs)))
        self._outputs = outputs

    def forward(self, x: Any) -> Any:
        return tuple(output(x) for output in self._outputs)


def asked(*outputs: Callable[[Any], Any]) -> Any:
    from edgekit.compress.lessons import Changes, Lessons

    batches = Batches(arrays={"x": IMAGES}, pixels={}, batch_size=16)
    return Lessons(Answers(*outputs), batches, ["x"], Changes())  # type: ignore[arg-type]


def test_outputs_of_whole_numbers_are_left_out() -> None:
    made = asked(lambda x: x.mean((1, 2, 3)).argsort(), lambda x: x.mean((2, 3)))
    assert made.taught == [1]
    assert [answer.shape[1] for answer in made.plain(CHOSEN).answers] == [3]


def test_outputs_that_do_not_go_sample_by_sample_are_refused() -> None:
    with pytest.raises(InputError, match="first axis") as caught:
        asked(lambda x: x.mean(0))
    assert "100 samples" in caught.value.got
