"""Recovery: the original teaches the cut network, on unlabelled samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit import files
from edgekit.data.batches import Batches
from edgekit.errors import InputError, MissingPackageError
from edgekit.models.model import Model, digest
from edgekit.values import Array

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from edgekit.models.torch_module import GraphModule

OnProgress = Callable[[int, int, str], None]
# The teacher's outputs for samples by index, of which some are shown as in a mirror.
Answers = Callable[[Array, Array], "list[Tensor]"]

_ASKED_AT_ONCE = 100
_KEPT_ANSWERS_BYTES = 256 << 20
_STATISTICS_BATCHES = 16
_JUDGED_SAMPLES = 500


@dataclass(frozen=True, kw_only=True)
class RecoverOptions:
    """How long and how. `mirror` also shows images (n, c, h, w) flipped from left to right."""

    epochs: int = 6
    learning_rate: float = 1e-3
    batch: int = 64
    temperature: float = 4.0
    mirror: bool = True
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class RecoverReport:
    """How far the student was from the teacher before and after, and the mean loss of each epoch.

    `before` (with BatchNormalization's statistics estimated anew already) and `after` are the loss
    in eval mode on evenly spaced samples. `resumed_after` counts the epochs of an earlier run.
    """

    samples: int
    epochs: int
    before: float
    after: float
    losses: tuple[float, ...]
    resumed_after: int

    def __str__(self) -> str:
        resumed = f", resumed after epoch {self.resumed_after}" if self.resumed_after else ""
        return (
            f"{self.epochs} epochs on {self.samples} samples, loss {self.before:.3f} to "
            f"{self.after:.3f}{resumed}"
        )


def recover(
    student: Model,
    teacher: Model,
    batches: Batches,
    options: RecoverOptions,
    *,
    checkpoint: Path | None = None,
    on_progress: OnProgress = lambda done, total, said: None,
) -> tuple[Model, RecoverReport]:
    """The student with new weights under their old names, after it has imitated the teacher.

    BatchNormalization's statistics are first estimated anew, since a cut moves them, and once more
    at the end. The teacher answers once for each sample (and once for its mirror image), or again
    at every step where its answers are too large to keep. Labels are never read. What `checkpoint`
    is for, `train.fit.fit` says.

    Raises InputError as `torch_module` and `fit` do, and where the two Models do not have the same
    inputs and outputs; MissingPackageError without torch.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError(
            "recovery trains the cut network, which needs torch", where="compress.recover",
            hint="pip install 'edgekit[compress]'",
        ) from error  # fmt: skip
    from edgekit.models.torch_module import torch_module, write_back
    from edgekit.train.fit import Checkpoint, FitOptions, fit
    from edgekit.train.losses import imitation

    if (student.inputs, student.outputs) != (teacher.inputs, teacher.outputs):
        raise InputError(
            "the teacher does not have the student's inputs and outputs", where="compress.recover",
            got=", ".join(map(str, (*teacher.inputs, *teacher.outputs))),
            wanted=", ".join(map(str, (*student.inputs, *student.outputs))),
        )  # fmt: skip
    names = [spec.name for spec in student.inputs]
    mirror = options.mirror and all(len(spec.shape) == 4 for spec in student.inputs)
    module = torch_module(student)
    module.to(_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
    answers = _answers(torch_module(teacher), batches, names, mirror, on_progress)

    def imitate(module: nn.Module, chosen: Array, mirrored: Array) -> Tensor:
        outputs = module(*_show(batches, names, chosen, mirrored))
        asked = zip(outputs, answers(chosen, mirrored), strict=True)
        return torch.stack([imitation(z, v, options.temperature) for z, v in asked]).mean()

    def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> Tensor:
        flips = torch.rand(len(indices), generator=generator) < (0.5 if mirror else 0.0)
        return imitate(module, indices.numpy(), flips.numpy())

    def judge() -> float:
        chosen = _spaced(batches.count, _JUDGED_SAMPLES)
        with torch.no_grad():
            parts = [
                imitate(module, part, np.zeros(len(part), bool)).item() * len(part)
                for part in _split(chosen)
            ]
        return sum(parts) / len(chosen)

    kept = None
    if checkpoint is not None:
        fingerprint = _fingerprint(student, teacher, batches, options)
        kept = Checkpoint(path=checkpoint, fingerprint=fingerprint)
    _estimate_statistics(module, batches, names, options.batch)
    before = judge()
    report = fit(
        module, batches.count, loss,
        FitOptions(
            epochs=options.epochs, learning_rate=options.learning_rate, batch=options.batch,
            seed=options.seed,
        ),
        checkpoint=kept,
        on_step=on_progress,
    )  # fmt: skip
    _estimate_statistics(module, batches, names, options.batch)
    return write_back(module, student, "recover"), RecoverReport(
        samples=batches.count,
        epochs=options.epochs,
        before=before,
        after=judge(),
        losses=report.losses,
        resumed_after=report.resumed_after,
    )


def _fingerprint(student: Model, teacher: Model, batches: Batches, options: RecoverOptions) -> str:
    parts = (digest(student), digest(teacher), repr((options, batches.digest)))
    return files.digest_bytes("\n".join(parts).encode())


def _spaced(count: int, most: int) -> Array:
    found: Array = np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)
    return found


def _split(chosen: Array) -> list[Array]:
    return np.array_split(chosen, -(-len(chosen) // _ASKED_AT_ONCE))


def _show(batches: Batches, names: Sequence[str], chosen: Array, mirrored: Array) -> list[Tensor]:
    """The inputs of these samples; of images, the mirrored ones flipped; channels last."""
    import torch

    feeds = batches.pick(chosen).inputs
    shown = []
    for name in names:
        x = torch.from_numpy(np.ascontiguousarray(feeds[name]))
        if mirrored.any():
            turned = x.flip(_width_axis(batches, feeds[name]))
            x = torch.where(torch.from_numpy(mirrored).reshape(-1, 1, 1, 1), turned, x)
        x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        shown.append(x.to(_device()))
    return shown


def _device() -> torch.device:
    """Where training runs: on the first graphics card that torch can use, else on the CPU."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _width_axis(batches: Batches, images: Array) -> int:
    """Where the width of pictures lies: the last axis, or the one before the channels."""
    layout = batches.preprocessing.layout if batches.preprocessing is not None else None
    if layout is None and images.shape[3] in (1, 3) and images.shape[1] not in (1, 3):
        layout = "nhwc"
    return 2 if layout == "nhwc" else 3


def _answers(
    teacher: GraphModule,
    batches: Batches,
    names: Sequence[str],
    mirror: bool,
    on_progress: OnProgress,
) -> Answers:
    """The teacher's Answers: looked up, where all of them together can be kept."""
    import torch

    teacher.to(_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]

    def ask(chosen: Array, mirrored: Array) -> list[Tensor]:
        with torch.no_grad():
            return list(teacher(*_show(batches, names, chosen, mirrored)))

    sides = (False, True) if mirror else (False,)
    parts = _split(np.arange(batches.count))
    found = ask(parts[0], np.zeros(len(parts[0]), bool))
    _check_rows(found, teacher.output_names, len(parts[0]))
    sample_bytes = sum(output.nbytes for output in found) / len(parts[0])
    if sample_bytes * batches.count * len(sides) > _KEPT_ANSWERS_BYTES:
        return ask
    kept: list[list[Tensor]] = []
    for side in sides:
        asked = []
        for part in parts:
            asked.append(ask(part, np.full(len(part), side)))
            on_progress(0, 1, f"the original's answers, {part[-1] + 1} of {batches.count}")
        kept.append([torch.cat(pieces) for pieces in zip(*asked, strict=True)])
    stacked = [torch.stack(both) for both in zip(*kept, strict=True)]

    def look_up(chosen: Array, mirrored: Array) -> list[Tensor]:
        sides, rows = torch.from_numpy(mirrored.astype(np.int64)), torch.from_numpy(chosen)
        return [output[sides.to(output.device), rows.to(output.device)] for output in stacked]

    return look_up


def _check_rows(outputs: Sequence[Tensor], names: Sequence[str], samples: int) -> None:
    for name, output in zip(names, outputs, strict=True):
        if not output.ndim or len(output) != samples:
            raise InputError(
                f'the first axis of the output "{name}" is not the samples',
                where="compress.recover", got=f"shape {tuple(output.shape)} for {samples} samples",
                hint="Leave [compress.recover] out of the recipe.",
            )  # fmt: skip


def _estimate_statistics(
    module: GraphModule, batches: Batches, names: Sequence[str], batch: int
) -> None:
    """Makes running means and variances the plain mean of those of some evenly spaced batches."""
    import torch

    norms = module.statistics_by_name()
    if not norms:
        return
    size = min(batches.count, max(batch, _ASKED_AT_ONCE))
    parts = np.array_split(_spaced(batches.count, _STATISTICS_BATCHES * size),
                           max(1, min(_STATISTICS_BATCHES, batches.count // size)))  # fmt: skip
    sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in norms.items()}
    for part in parts:
        module.observe_statistics(*_show(batches, names, part, np.zeros(len(part), bool)))
        for name, tensor in norms.items():
            sums[name] += tensor
    for name, tensor in norms.items():
        tensor.copy_(sums[name] / len(parts))
