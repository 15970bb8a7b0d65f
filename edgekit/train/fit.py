"""The one training loop: seeded, with progress, and taken up again after a kill."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from edgekit.errors import InputError, ResourceError
from edgekit.train.acceleration import Acceleration, choose_acceleration
from edgekit.train.checkpoint import Checkpoint, Found, State, Tensors, load_state, save_state
from edgekit.train.options import FitOptions, check_options, make_optimizer
from edgekit.train.schedules import rate_share

logger = logging.getLogger(__name__)

OnStep = Callable[[int, int, str], None]
Loss = Callable[[nn.Module, Tensor, torch.Generator], Tensor]
Judge = Callable[[nn.Module], float]

_SEEDS = 2**63
_SEED_STEP, _PROCESS_STEP = 1_000_003, 7_368_787  # apart, so that no two epochs meet


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is learnt, over the sample indices 0..samples-1.

    `loss(module, indices, generator)` is the loss of one batch, a mean over its samples; for what
    is random in it, it draws from the generator (torch's own is seeded for each epoch too, for
    Dropout). `judge(module)` is the loss on samples that are not among these, with the module in
    eval mode; only patience needs it.
    """

    samples: int
    loss: Loss
    judge: Judge | None = None


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """The mean loss of each epoch, and how many of the epochs an earlier run had done.

    With patience, `held_out` has the judge's losses, the first before any training, and the module
    is as it was after `kept_epoch` epochs; without, that is the last. `not_resumed` says why a
    checkpoint that was there was no use.
    """

    losses: tuple[float, ...]
    resumed_after: int
    held_out: tuple[float, ...] = ()
    kept_epoch: int
    not_resumed: str = ""
    processes: int = 1


def fit(
    module: nn.Module,
    task: Task,
    options: FitOptions,
    *,
    checkpoint: Checkpoint | None = None,
    on_step: OnStep = lambda done, total, said: None,
) -> FitReport:
    """Trains the module in place and leaves it in eval mode.

    A last batch of less than half the size is left out. Where several processes were launched, each
    computes its part of every batch, all end with the same parameters, and the first one writes.

    After each epoch the state goes into `checkpoint`. A run with the same options, made from the
    same, goes on from there and ends with the very weights of a run that was never interrupted, on
    one machine; so does one of more epochs, if its schedule has the same first epochs. A checkpoint
    of any other run is written over.

    Raises InputError for options that make no sense, for fewer than two samples, and where the loss
    becomes NaN or infinite; ResourceError where the memory runs out; and as `choose_acceleration`.
    """
    acceleration = choose_acceleration(options.precision)
    check_options(options, samples=task.samples, processes=acceleration.processes)
    optimizer = make_optimizer(module, options)
    made_from = _made_from(checkpoint, task, options, acceleration.processes)
    run = _begin(module, optimizer, task, options, _look(checkpoint, made_from, options))
    _check_alike(run, module, acceleration)
    acceleration.restore(run.acceleration)
    running = _Running(module, optimizer, task, options, acceleration)
    try:
        if options.patience and not run.held_out:
            run.hear(running.judge(), module)
        for epoch in range(len(run.losses), options.epochs):
            if run.is_over(options.patience):
                break
            run.losses.append(running.epoch(epoch, on_step))
            if options.patience:
                run.hear(running.judge(), module)
            if checkpoint is not None and acceleration.index == 0:
                state = run.state(module, optimizer, acceleration)
                save_state(checkpoint.path, state, made_from)
    finally:
        acceleration.release()
    if options.patience and run.best is not None:
        module.load_state_dict(run.best)
    module.eval()
    return FitReport(
        losses=tuple(run.losses),
        resumed_after=run.resumed_after,
        held_out=tuple(run.held_out),
        kept_epoch=run.best_epoch if options.patience else len(run.losses),
        not_resumed=run.not_resumed,
        processes=acceleration.processes,
    )


class _Running:
    """A module, its optimizer and all that they train with, prepared for the processes."""

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, task: Task, options: FitOptions,
        acceleration: Acceleration,
    ) -> None:  # fmt: skip
        self._module = module
        self._task = task
        self._options = options
        self._acceleration = acceleration
        self._prepared, self._optimizer = acceleration.prepare(module, optimizer)

    def epoch(self, epoch: int, on_step: OnStep) -> float:
        """The mean loss of an epoch of training."""
        options, task, processes = self._options, self._task, self._acceleration.processes
        steps = _epoch_steps(task, options)
        self._prepared.train()
        with torch.random.fork_rng(devices=[]), _translated(options):
            seed = options.seed * _SEED_STEP + epoch
            generator = torch.manual_seed(seed % _SEEDS)
            order = torch.randperm(task.samples, generator=generator)
            if processes > 1:
                generator.manual_seed((seed + _PROCESS_STEP * self._acceleration.index) % _SEEDS)
            summed = 0.0
            for index, chosen in enumerate(torch.split(order, options.batch)[:steps]):
                step = epoch * steps + index
                self._set_rate(step, steps)
                own = torch.tensor_split(chosen, processes)[self._acceleration.index]
                loss = task.loss(self._prepared, own, generator)
                number = self._step(loss * (len(own) * processes / len(chosen)))
                if not math.isfinite(number):
                    raise _diverged(options, f"epoch {epoch + 1}, step {index + 1}", number)
                summed += number
                said = f"epoch {epoch + 1}/{options.epochs}, loss {number:.4f}"
                on_step(step + 1, steps * options.epochs, said)
        return summed / steps

    def judge(self) -> float:
        """The loss on the held-out samples, the mean over the processes' own."""
        if self._task.judge is None:
            raise TypeError("patience needs a judge")  # of the caller's, not of the user's
        self._module.eval()
        with torch.no_grad(), _translated(self._options):
            number = torch.tensor(self._task.judge(self._module), device=_device_of(self._module))
            found = self._acceleration.mean(number)
        if not math.isfinite(found):
            raise _diverged(self._options, "the held-out samples", found)
        return found

    def _set_rate(self, step: int, steps: int) -> None:
        options = self._options
        share = rate_share(options.schedule, step, epoch_steps=steps, epochs=options.epochs)
        for group in self._optimizer.param_groups:
            group["lr"] = options.learning_rate * share

    def _step(self, loss: Tensor) -> float:
        """The loss over all processes; where it is finite, the module is one step further."""
        number = self._acceleration.mean(loss)
        if math.isfinite(number):
            self._optimizer.zero_grad(set_to_none=True)
            self._acceleration.backward(loss)
            self._optimizer.step()
        return number


@dataclass
class _Run:
    """How far a run is. `best` are the module's tensors where the held-out loss was least."""

    losses: list[float] = field(default_factory=list)
    held_out: list[float] = field(default_factory=list)
    best: Tensors | None = None
    acceleration: dict[str, Any] = field(default_factory=dict)
    resumed_after: int = 0
    not_resumed: str = ""

    @property
    def best_epoch(self) -> int:
        return self.held_out.index(min(self.held_out))

    def hear(self, held_out: float, module: nn.Module) -> None:
        """Takes in a new held-out loss, and the module's tensors if it is the least so far."""
        if not self.held_out or held_out < min(self.held_out):
            self.best = {name: t.detach().clone() for name, t in module.state_dict().items()}
        self.held_out.append(held_out)

    def is_over(self, patience: int) -> bool:
        return patience > 0 and len(self.held_out) - 1 - self.best_epoch >= patience

    def state(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, acceleration: Acceleration
    ) -> State:
        return State(
            losses=tuple(self.losses), held_out=tuple(self.held_out), best=self.best,
            module=module.state_dict(), optimizer=optimizer.state_dict(),
            acceleration=acceleration.state(),
        )  # fmt: skip


def _epoch_steps(task: Task, options: FitOptions) -> int:
    return max(1, round(task.samples / options.batch))


def _made_from(
    checkpoint: Checkpoint | None, task: Task, options: FitOptions, processes: int
) -> dict[str, str]:
    """All that decides which weights a run ends with, by a name that a user knows."""
    listed = {name: str(value) for name, value in vars(options).items() if name != "epochs"}
    if options.schedule.depends_on_length:
        listed[f"epochs of a {options.schedule.kind} schedule"] = str(options.epochs)
    return {
        **(checkpoint.made_from if checkpoint is not None else {}), **listed,
        "samples": str(task.samples), "processes": str(processes), "torch": str(torch.__version__),
    }  # fmt: skip


def _look(checkpoint: Checkpoint | None, made_from: dict[str, str], options: FitOptions) -> Found:
    if checkpoint is None:
        return Found()
    found = load_state(checkpoint.path, made_from)
    if found.state is not None and len(found.state.losses) > options.epochs:
        done = len(found.state.losses)
        found = Found(why_not=f"it has {done} epochs, more than the {options.epochs} asked for")
    if found.why_not:
        logger.warning(
            "the checkpoint %s is not used, training begins anew: %s", checkpoint.path,
            found.why_not,
        )  # fmt: skip
    return found


def _begin(
    module: nn.Module, optimizer: torch.optim.Optimizer, task: Task, options: FitOptions,
    found: Found,
) -> _Run:  # fmt: skip
    """The run as it was left, module and optimizer too; or a new one."""
    state = found.state
    if state is None:
        return _Run(not_resumed=found.why_not)
    module.load_state_dict(state.module)
    optimizer.load_state_dict(dict(state.optimizer))
    return _Run(
        losses=list(state.losses), held_out=list(state.held_out), best=state.best,
        acceleration=dict(state.acceleration), resumed_after=len(state.losses),
    )  # fmt: skip


def _check_alike(run: _Run, module: nn.Module, acceleration: Acceleration) -> None:
    """Raises InputError where the processes do not go on from the same epoch."""
    done = torch.tensor(float(len(run.losses)), device=_device_of(module))
    if acceleration.mean(done) != len(run.losses):
        raise InputError(
            "the processes do not see the same checkpoint", got=f"one of them {len(run.losses)} "
            "epochs, another one another number", hint="Keep it in a folder that all of them see.",
        )  # fmt: skip


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device


def _diverged(options: FitOptions, where: str, number: float) -> InputError:
    return InputError(
        "the training diverged: the loss is NaN or infinite", where=where, got=str(number),
        hint=f"Lower learning_rate ({options.learning_rate:g}), by a factor of ten to begin with.",
    )  # fmt: skip


@contextlib.contextmanager
def _translated(options: FitOptions) -> Iterator[None]:
    """Turns what torch says of memory, of a batch of one, and of a precision, into our errors."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            "BatchNormalization cannot learn from a batch of one value", where="batch",
            got=str(options.batch), hint="Use a larger batch.",
        ) from error  # fmt: skip
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
            raise ResourceError(
                "the memory is not enough to train with this batch", where="batch",
                got=str(options.batch), hint="Use a smaller batch; the last epoch's state is kept.",
            ) from error  # fmt: skip
        if options.precision == "fp32":
            raise
        raise InputError(
            f"this network does not run in {options.precision}", where="precision",
            got=str(error).partition("\n")[0], hint='Train it with precision = "fp32".',
        ) from error  # fmt: skip
