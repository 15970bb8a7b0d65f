"""Recovery: the original teaches the cut network, on unlabelled samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgekit import files
from edgekit.data.batches import Batches
from edgekit.errors import InputError
from edgekit.models.model import Model, to_bytes
from edgekit.models.torch_module import GraphModule, torch_module, write_back
from edgekit.train.fit import FitOptions, fit
from edgekit.train.losses import imitation
from edgekit.values import Array

_TEACHER_BATCH = 100
_STATISTICS_BATCHES = 16


@dataclass(frozen=True, kw_only=True)
class RecoverOptions:
    """How long and how. `mirror` also shows each image (n, c, h, w) flipped from left to right."""

    epochs: int = 6
    learning_rate: float = 1e-3
    batch: int = 64
    temperature: float = 4.0
    mirror: bool = True
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class RecoverReport:
    """The mean loss before and after each epoch, over how many samples."""

    samples: int
    epochs: int
    losses: tuple[float, ...]
    resumed_after: int

    def __str__(self) -> str:
        begin = f", resumed after epoch {self.resumed_after}" if self.resumed_after else ""
        return (
            f"{self.epochs} epochs on {self.samples} samples, loss {self.losses[0]:.3f} to "
            f"{self.losses[-1]:.3f}{begin}"
        )


def recover(
    student: Model,
    teacher: Model,
    batches: Batches,
    options: RecoverOptions,
    *,
    checkpoint: Path | None = None,
    on_progress: Callable[[int, int, str], None] = lambda done, total, said: None,
) -> tuple[Model, RecoverReport]:
    """The student with new weights under their old names, after it has imitated the teacher.

    BatchNormalization's statistics are first estimated anew, since a cut moves them. The teacher's
    outputs are computed once. Labels are never read. Raises InputError as `torch_module` and `fit`
    do, and where the two Models do not have the same inputs and outputs.
    """
    if (student.inputs, student.outputs) != (teacher.inputs, teacher.outputs):
        raise InputError(
            "the teacher does not have the student's inputs and outputs", where="compress.recover"
        )
    module = torch_module(student)
    names = [spec.name for spec in student.inputs]
    inputs = [_stacked(batches, name) for name in names]
    mirror = options.mirror and all(x.ndim == 4 for x in inputs)
    taught = _teach(torch_module(teacher), inputs, mirror=mirror, on_progress=on_progress)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _estimate_statistics(module, inputs, options.batch)

    def loss(module: nn.Module, chosen: Tensor, generator: torch.Generator) -> Tensor:
        flipped = mirror and bool(torch.rand((), generator=generator) < 0.5)
        shown = [_shown(x[chosen], flipped=flipped) for x in inputs]
        outputs = module(*shown)
        terms = [
            imitation(found, target[int(flipped)][chosen], options.temperature)
            for found, target in zip(outputs, taught, strict=True)
        ]
        return torch.stack(terms).mean()

    fingerprint = files.digest_bytes(
        repr((asdict(options), batches.digest)).encode() + to_bytes(student) + to_bytes(teacher)
    )
    report = fit(
        module,
        batches.count,
        loss,
        FitOptions(
            epochs=options.epochs,
            learning_rate=options.learning_rate,
            batch=options.batch,
            seed=options.seed,
        ),
        checkpoint=checkpoint,
        fingerprint=fingerprint,
        on_step=on_progress,
    )
    _estimate_statistics(module, inputs, options.batch)
    return write_back(module, student, "recover"), RecoverReport(
        samples=batches.count,
        epochs=options.epochs,
        losses=report.losses,
        resumed_after=report.resumed_after,
    )


def _stacked(batches: Batches, name: str) -> Tensor:
    parts: list[Array] = [np.asarray(batch.inputs[name]) for batch in batches]
    return torch.from_numpy(np.concatenate(parts))


def _shown(x: Tensor, *, flipped: bool) -> Tensor:
    if flipped:
        x = x.flip(3)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


@torch.no_grad()
def _teach(
    teacher: GraphModule,
    inputs: list[Tensor],
    *,
    mirror: bool,
    on_progress: Callable[[int, int, str], None],
) -> list[tuple[Tensor, ...]]:
    """For each output the teacher's values on all samples, and on their mirror images."""
    teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    versions = []
    for flipped in (False, True) if mirror else (False,):
        found: list[list[Tensor]] = [[] for _ in teacher.output_names]
        for begin in range(0, len(inputs[0]), _TEACHER_BATCH):
            part = [_shown(x[begin : begin + _TEACHER_BATCH], flipped=flipped) for x in inputs]
            for kept, output in zip(found, teacher(*part), strict=True):
                kept.append(output)
            on_progress(0, 1, "the original's answers")
        versions.append([torch.cat(parts) for parts in found])
    return [tuple(version[i] for version in versions) for i in range(len(teacher.output_names))]


@torch.no_grad()
def _estimate_statistics(module: GraphModule, inputs: list[Tensor], batch: int) -> None:
    """Running means and variances as the plain mean over some batches, evenly spaced."""
    norms = module.statistics_by_name()
    if not norms:
        return
    count = len(inputs[0])
    size = min(count, max(batch, 100))
    starts = np.linspace(0, count - size, min(_STATISTICS_BATCHES, max(1, count // size)))
    sums = {name: torch.zeros_like(tensor, dtype=torch.float64) for name, tensor in norms.items()}
    for start in starts.astype(int):
        module.observe_statistics(*[_shown(x[start : start + size], flipped=False) for x in inputs])
        for name, tensor in norms.items():
            sums[name] += tensor
    for name, tensor in norms.items():
        tensor.copy_(sums[name] / len(starts))
