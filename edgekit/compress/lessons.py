"""What a student is shown, and what the teacher answers to just that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgekit.data.batches import Batches
from edgekit.errors import InputError
from edgekit.models.torch_module import GraphModule
from edgekit.train.augment import Inputs, OwnFunction, apply_own, mirrored, shifted
from edgekit.values import Array

OnProgress = Callable[[int, int, str], None]

_ASKED_AT_ONCE = 100
_KEPT_ANSWERS_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is done to samples on their way, in this order; `mirror` and `shift` are for images."""

    mirror: bool = False
    shift: int = 0
    own: OwnFunction | None = None


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """The inputs of some samples, in the model's order, and the teacher's outputs for them."""

    inputs: list[Tensor]
    answers: list[Tensor]


class Lessons:
    """Samples with the teacher's answers, plain or changed.

    Where samples are at most mirrored, and all answers together can be kept, the teacher is asked
    once for each sample and side; else at every lesson. `taught` are the places of the outputs that
    teach: those in floating point.

    Raises InputError for samples or answers with NaN or infinity in them, for a teacher whose
    outputs do not go sample by sample, and for a shift that is none of these inputs'.
    """

    def __init__(
        self, teacher: GraphModule, batches: Batches, names: Sequence[str], changes: Changes, *,
        on_progress: OnProgress = lambda done, total, said: None,
    ) -> None:  # fmt: skip
        self._teacher = teacher
        self._batches = batches
        self._names = names
        self._changes = changes
        first = np.arange(min(_ASKED_AT_ONCE, batches.count))
        self._check_shift(first[:1])
        with torch.no_grad():
            outputs = teacher(*self._on_device(self._feeds(first)))
        self.taught = _taught(outputs, teacher.output_names, len(first))
        sides = 2 if changes.mirror else 1
        kept_bytes = (
            sum(outputs[i].nbytes for i in self.taught) / len(first) * batches.count * sides
        )
        is_kept = not changes.shift and changes.own is None and kept_bytes <= _KEPT_ANSWERS_BYTES
        self._kept = self._all_answers(sides, on_progress) if is_kept else None

    def inputs(self, chosen: Array) -> list[Tensor]:
        """The inputs alone of the samples at these indices, as they are."""
        return self._on_device(self._feeds(chosen))

    def plain(self, chosen: Array) -> Lesson:
        """The samples at these indices, as they are."""
        return self._lesson(self._feeds(chosen), chosen, np.zeros(len(chosen), bool))

    def changed(self, chosen: Array, generator: torch.Generator) -> Lesson:
        """The samples at these indices, changed at random."""
        changes, feeds = self._changes, self._feeds(chosen)
        flips = np.zeros(len(chosen), bool)
        if changes.mirror:
            flips = (torch.rand(len(chosen), generator=generator) < 0.5).numpy()
            feeds = self._mirrored(feeds, flips)
        if changes.shift:
            sides = (len(chosen), 2)
            most = changes.shift
            offsets = torch.randint(-most, most + 1, sides, generator=generator).numpy()
            feeds = {n: shifted(x, offsets, self._width_axis(x) - 1) for n, x in feeds.items()}
        if changes.own is not None:
            seed = int(torch.randint(2**62, (), generator=generator))
            feeds = apply_own(changes.own, feeds, np.random.default_rng(seed))
        return self._lesson(feeds, chosen, flips)

    def _lesson(self, feeds: Inputs, chosen: Array, flips: Array) -> Lesson:
        inputs = self._on_device(feeds)
        if self._kept is None:
            return Lesson(inputs=inputs, answers=self._ask(inputs))
        sides, rows = torch.from_numpy(flips.astype(np.int64)), torch.from_numpy(chosen)
        answers = [kept[sides.to(kept.device), rows.to(kept.device)] for kept in self._kept]
        return Lesson(inputs=inputs, answers=answers)

    def _ask(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        with torch.no_grad():
            outputs = self._teacher(*inputs)
        answers = [outputs[i] for i in self.taught]
        if not all(bool(answer.isfinite().all()) for answer in answers):
            raise InputError(
                "the teacher answers with NaN or infinity", where="compress.recover",
                hint="Look at its weights, and at what it is shown.",
            )  # fmt: skip
        return answers

    def _all_answers(self, sides: int, on_progress: OnProgress) -> list[Tensor]:
        """The answers to every sample: (side, sample, ...), a side as it is and one mirrored."""
        count = self._batches.count
        kept: list[list[Tensor]] = []
        for side in range(sides):
            asked = []
            for part in split(np.arange(count)):
                feeds = self._mirrored(self._feeds(part), np.full(len(part), bool(side)))
                asked.append(self._ask(self._on_device(feeds)))
                on_progress(0, 1, f"the original's answers, {part[-1] + 1} of {count}")
            kept.append([torch.cat(pieces) for pieces in zip(*asked, strict=True)])
        return [torch.stack(both) for both in zip(*kept, strict=True)]

    def _feeds(self, chosen: Array) -> Inputs:
        feeds = self._batches.pick(chosen).inputs
        for name, array in feeds.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                bad = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
                raise InputError(
                    f'the samples hold NaN or infinity for "{name}"', where="compress.recover",
                    got=f"sample {chosen[np.flatnonzero(bad)[0]]}", wanted="finite numbers",
                    hint="Look at how these samples were made, or leave them out.",
                )  # fmt: skip
        return {name: feeds[name] for name in self._names}

    def _check_shift(self, chosen: Array) -> None:
        most = self._changes.shift
        for name, x in self._feeds(chosen).items() if most else ():
            sides = x.shape[self._width_axis(x) - 1 :][:2] if x.ndim == 4 else ()
            if not sides or most >= min(sides):
                raise InputError(
                    "these inputs cannot be shifted so far", where="shift",
                    got=f'{most} pixels for "{name}" {x.shape}',
                    wanted="images, and fewer pixels than they are high and wide",
                )  # fmt: skip

    def _mirrored(self, feeds: Inputs, flips: Array) -> Inputs:
        if not flips.any():
            return feeds
        return {name: mirrored(x, flips, self._width_axis(x)) for name, x in feeds.items()}

    def _width_axis(self, images: Array) -> int:
        """Where the width of pictures lies: the last axis, or the one before the channels."""
        preprocessing = self._batches.preprocessing
        layout = preprocessing.layout if preprocessing is not None else None
        if layout is None and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
            layout = "nhwc"
        return 2 if layout == "nhwc" else 3

    def _on_device(self, feeds: Inputs) -> list[Tensor]:
        """The inputs where the network runs; images with the channels last in memory."""
        shown = []
        for name in self._names:
            x = torch.from_numpy(np.ascontiguousarray(feeds[name]))
            x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
            shown.append(x.to(device()))
        return shown


def device() -> torch.device:
    """Where training runs: on a graphics card that torch can use, else on the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def split(chosen: Array) -> list[Array]:
    """The indices in parts that are shown at once where nothing is trained."""
    return np.array_split(chosen, -(-len(chosen) // _ASKED_AT_ONCE))


def _taught(outputs: Sequence[Tensor], names: Sequence[str], samples: int) -> list[int]:
    for name, output in zip(names, outputs, strict=True):
        if not output.ndim or len(output) != samples:
            raise InputError(
                f'the first axis of the output "{name}" is not the samples',
                where="compress.recover", got=f"shape {tuple(output.shape)} for {samples} samples",
                hint="Leave [compress.recover] out of the recipe.",
            )  # fmt: skip
    return [i for i, output in enumerate(outputs) if output.is_floating_point()]
