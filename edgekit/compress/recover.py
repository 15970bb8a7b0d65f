"""Recovery: the original teaches the cut network, on unlabelled samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgekit.compress.statistics import MOST_SHOWN, SHOWN_AT_ONCE, settle_statistics, spaced_parts
from edgekit.data.batches import Batches
from edgekit.errors import InputError, MissingPackageError
from edgekit.models.model import Model, digest
from edgekit.train.augment import OwnFunction
from edgekit.train.schedules import COSINE, Schedule
from edgekit.values import Array, TensorSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from edgekit.compress.lessons import Lesson, Lessons
    from edgekit.models.torch_module import GraphModule
    from edgekit.train.acceleration import Precision
    from edgekit.train.options import FitOptions, OptimizerName

OnProgress = Callable[[int, int, str], None]

_JUDGED_SAMPLES = 500
_A_HELD_OUT_OF = 10  # one sample in so many


@dataclass(frozen=True, kw_only=True)
class RecoverOptions:
    """How long and how.

    `mirror` also shows images (n, c, h, w) flipped from left to right, `shift` moves each by up to
    so many pixels in both directions, `own` is a user's function on top. With patience, training
    ends after so many epochs that brought no held-out sample nearer, and the best epoch's weights
    are kept; one sample in ten, at most 500, is held out for that. `hint` is the weight of the last
    feature map that both networks share (`hints.with_hint`), whose relative error is learnt beside
    the outputs; 0: not at all. The rest is as in `train.options.FitOptions`.
    """

    epochs: int = 6
    learning_rate: float = 1e-3
    batch: int = 64
    temperature: float = 4.0
    hint: float = 0.0
    mirror: bool = True
    shift: int = 0
    own: OwnFunction | None = None
    seed: int = 0
    optimizer: OptimizerName = "adamw"
    weight_decay: float = 0.0
    momentum: float = 0.9
    nesterov: bool = True
    schedule: Schedule = COSINE
    patience: int = 0
    precision: Precision = "fp32"


@dataclass(frozen=True, kw_only=True)
class RecoverReport:
    """How far the student was from the teacher before and after, and the mean loss of each epoch.

    `before` (with BatchNormalization's statistics estimated anew already) and `after` are the loss
    in eval mode on evenly spaced samples; with patience, on the held-out ones, which `held_out` has
    for each epoch too, the first before any training. The weights are those after `kept_epoch`
    epochs. `resumed_after` counts the epochs of an earlier run; `not_resumed` says why a checkpoint
    that was there was no use. `hint` is the feature map that was imitated too; none of the numbers
    but `losses` counts it.
    """

    samples: int
    epochs: int
    before: float
    after: float
    losses: tuple[float, ...]
    held_out: tuple[float, ...] = ()
    kept_epoch: int
    resumed_after: int
    not_resumed: str = ""
    processes: int = 1
    hint: str = ""

    def __str__(self) -> str:
        done, notes = len(self.losses), []
        if done < self.epochs:
            notes.append(f"ended early of {self.epochs}")
        if self.kept_epoch < done:
            notes.append(f"the weights of epoch {self.kept_epoch} kept" if self.kept_epoch
                         else "none was better than no training")  # fmt: skip
        if self.resumed_after:
            notes.append(f"resumed after epoch {self.resumed_after}")
        if self.not_resumed:
            notes.append(f"begun anew, the checkpoint was no use: {self.not_resumed}")
        if self.processes > 1:
            notes.append(f"{self.processes} processes")
        return ", ".join([
            f"{done} epoch{'s' * (done != 1)} on {self.samples} samples",
            f"loss {self.before:.3f} to {self.after:.3f}", *notes,
        ])  # fmt: skip


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
    at the end. The teacher answers once for each sample (and once for its mirror image), or at
    every step where its answers are too large to keep, or what is shown differs each time; it is
    always shown what the student is. Labels are never read. What `checkpoint` is for, and what
    several processes do, `train.fit.fit` says.

    Raises InputError as `torch_module`, `Lessons` and `fit` do, and where the two Models or the
    samples do not have the same inputs and outputs; MissingPackageError without torch.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError(
            "recovery trains the cut network, which needs torch", where="compress.recover",
            hint="pip install 'edgekit[compress]'",
        ) from error  # fmt: skip
    from edgekit.compress.hints import with_hint
    from edgekit.compress.lessons import Changes, Lessons, device, split
    from edgekit.models.torch_module import torch_module, write_back
    from edgekit.train.acceleration import choose_acceleration
    from edgekit.train.checkpoint import Checkpoint
    from edgekit.train.fit import Task, fit
    from edgekit.train.losses import imitation, relative_error

    _check_options(options)
    _check_models(student, teacher)
    _check_samples(batches, student)
    choose_acceleration(options.precision)  # before anything lies on a device
    changes = Changes(
        mirror=options.mirror and all(len(spec.shape) == 4 for spec in student.inputs),
        shift=options.shift, own=options.own,
    )  # fmt: skip
    networks, hint = (student, teacher), ""
    if options.hint:
        networks, hint = with_hint(student, teacher)
    # With the channels last in memory convolutions are faster, on the CPU too.
    module, original = (
        torch_module(model).to(device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
        for model in networks
    )
    names = [spec.name for spec in student.inputs]
    lessons = Lessons(original, batches, names, changes, on_progress=on_progress)
    trained, judged = _divided(batches.count, options.patience)

    def distance(module: nn.Module, lesson: Lesson, hint_weight: float) -> Tensor:
        outputs = module(*lesson.inputs)
        pairs = [(outputs[i], v) for i, v in zip(lessons.taught, lesson.answers, strict=True)]
        hinted = pairs.pop() if hint else None
        own = torch.stack([imitation(z, v, options.temperature) for z, v in pairs]).mean()
        return own + hint_weight * relative_error(*hinted) if hinted and hint_weight else own

    def loss(module: nn.Module, indices: Tensor, generator: torch.Generator) -> Tensor:
        lesson = lessons.changed(trained[indices.numpy()], generator)
        return distance(module, lesson, options.hint)

    def judge(of: nn.Module) -> float:
        _settle(module, lessons, trained, options.batch)
        with torch.no_grad():
            lots = ((lessons.plain(part), len(part)) for part in split(judged))
            summed = sum(distance(of, lesson, 0.0).item() * size for lesson, size in lots)
        return summed / len(judged)

    before = judge(module)
    if not math.isfinite(before):
        raise InputError(
            "the network to train answers with NaN or infinity", where="compress.recover",
            got=f"a loss of {before} before any training",
            hint="Look at its weights: the step before this one may have broken them.",
        )  # fmt: skip
    kept = None
    if checkpoint is not None:
        made_from = _made_from(student, teacher, batches, options)
        kept = Checkpoint(path=checkpoint, made_from=made_from)
    report = fit(
        module, Task(samples=len(trained), loss=loss, judge=judge), _fit_options(options),
        checkpoint=kept, on_step=on_progress,
    )  # fmt: skip
    after = judge(module)
    return write_back(module, student, "recover"), RecoverReport(
        samples=len(trained), epochs=options.epochs, before=before, after=after, hint=hint,
        **vars(report),
    )  # fmt: skip


def _check_options(options: RecoverOptions) -> None:
    wanted = {
        "temperature": (0 < options.temperature < math.inf, "a number above 0"),
        "hint": (0 <= options.hint < math.inf, "0 or more"),
        "shift": (options.shift >= 0, "0 or more pixels"),
    }
    for name, (fits, said) in wanted.items():
        if not fits:
            raise InputError(
                f"recovery cannot be done with this {name}", where=name,
                got=str(getattr(options, name)), wanted=said,
            )  # fmt: skip


def _check_models(student: Model, teacher: Model) -> None:
    theirs, ours = ((*model.inputs, *model.outputs) for model in (teacher, student))
    if list(map(_comparable, theirs)) != list(map(_comparable, ours)):
        raise InputError(
            "the teacher does not have the student's inputs and outputs", where="compress.recover",
            got=", ".join(map(str, theirs)), wanted=", ".join(map(str, ours)),
        )  # fmt: skip
    if not any("float" in spec.dtype for spec in student.outputs):
        raise InputError(
            "no output of this network can be imitated: none is in floating point",
            where="compress.recover", got=", ".join(map(str, student.outputs)),
            hint="Take the last step, such as an ArgMax, out of the network.",
        )  # fmt: skip


def _check_samples(batches: Batches, student: Model) -> None:
    missing = [spec.name for spec in student.inputs if spec.name not in batches.arrays]
    first = batches.pick(np.arange(1)).inputs
    misfits = [
        f"{spec.name} {first[spec.name].dtype} {first[spec.name].shape}"
        for spec in student.inputs
        if spec.name in first and not _fits(first[spec.name], spec)
    ]
    if missing or misfits:
        raise InputError(
            "the samples do not fit the networks' inputs", where="compress.recover",
            got=", ".join(misfits or batches.arrays), wanted=", ".join(map(str, student.inputs)),
        )  # fmt: skip


def _comparable(spec: TensorSpec) -> tuple[object, ...]:
    """Name, type and sizes; how a dynamic size is called does not matter."""
    return spec.name, spec.dtype, tuple(s if isinstance(s, int) else None for s in spec.shape)


def _fits(array: Array, spec: TensorSpec) -> bool:
    """Whether one sample has the input's type and, the batch apart, its sizes."""
    sizes = zip(array.shape[1:], spec.shape[1:], strict=False)
    return (
        array.dtype.name == spec.dtype
        and array.ndim == len(spec.shape)
        and all(got == wanted or not isinstance(wanted, int) for got, wanted in sizes)
    )


def _divided(samples: int, patience: int) -> tuple[Array, Array]:
    """The indices of the samples to train on, and of those to judge by: the same, or held out."""
    if not patience:
        return np.arange(samples), spaced_parts(samples, _JUDGED_SAMPLES, 1)[0]
    held = min(_JUDGED_SAMPLES, samples // _A_HELD_OUT_OF)
    if not held:
        raise InputError(
            "these samples are too few to hold some out", where="patience",
            got=f"{samples} samples",
            wanted=f"{_A_HELD_OUT_OF} or more", hint="Give more samples, or no patience.",
        )  # fmt: skip
    judged = spaced_parts(samples, held, 1)[0]
    return np.setdiff1d(np.arange(samples), judged), judged


def _settle(module: GraphModule, lessons: Lessons, trained: Array, batch: int) -> None:
    """Makes BatchNormalization's running statistics those of evenly spaced training samples."""
    parts = spaced_parts(len(trained), max(batch, SHOWN_AT_ONCE), MOST_SHOWN)
    settle_statistics(module, (lessons.inputs(trained[part]) for part in parts))


def _fit_options(options: RecoverOptions) -> FitOptions:
    from edgekit.train.options import FitOptions

    return FitOptions(
        epochs=options.epochs, learning_rate=options.learning_rate, batch=options.batch,
        seed=options.seed, optimizer=options.optimizer, weight_decay=options.weight_decay,
        momentum=options.momentum, nesterov=options.nesterov, schedule=options.schedule,
        patience=options.patience, precision=options.precision,
    )  # fmt: skip


def _made_from(
    student: Model, teacher: Model, batches: Batches, options: RecoverOptions
) -> dict[str, str]:
    own = options.own
    return {
        "student": digest(student), "teacher": digest(teacher), "data": batches.digest,
        "temperature": str(options.temperature), "hint": str(options.hint),
        "mirror": str(options.mirror),
        "shift": str(options.shift), "augment": f"{own.name} {own.digest}" if own else "",
    }  # fmt: skip
