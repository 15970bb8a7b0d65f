"""The one training loop: seeded, with progress, and taken up again after a kill."""

from __future__ import annotations

import io
import logging
import math
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edgekit import files
from edgekit.errors import InputError

logger = logging.getLogger(__name__)

OnStep = Callable[[int, int, str], None]
Loss = Callable[[nn.Module, Tensor, torch.Generator], Tensor]

_WARM_UP = 0.05  # of all steps


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """AdamW with a cosine schedule after a short linear warm-up.

    The order of the samples and everything random follow from `seed` and the epoch.
    """

    epochs: int
    learning_rate: float
    batch: int
    seed: int
    weight_decay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """Where a run leaves its state after each epoch, and the hash of its module and samples."""

    path: Path
    fingerprint: str


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """The mean loss of each epoch, and how many of the epochs an earlier run had done."""

    losses: tuple[float, ...]
    resumed_after: int


def fit(
    module: nn.Module,
    samples: int,
    loss: Loss,
    options: FitOptions,
    *,
    checkpoint: Checkpoint | None = None,
    on_step: OnStep = lambda done, total, said: None,
) -> FitReport:
    """Trains the module in place over sample indices 0..samples-1; leaves it in eval mode.

    `loss(module, indices, generator)` gives the loss of one batch of samples; for what is random in
    it, it draws from the generator (torch's own is seeded for each epoch too, for Dropout). A last
    batch of less than half the size is left out.

    After each epoch the state goes into `checkpoint`. A run with the same options and fingerprint
    goes on from there, and ends with the very weights of a run that was never interrupted, on one
    machine; a checkpoint of any other run is written over.

    Raises InputError for fewer than two samples, and where the loss becomes NaN or infinite.
    """
    if samples < 2:
        raise InputError(
            "training needs at least two samples", got=str(samples), wanted="some hundreds or more"
        )
    optimizer = torch.optim.AdamW(
        [p for p in module.parameters() if p.requires_grad],
        lr=options.learning_rate, weight_decay=options.weight_decay,
    )  # fmt: skip
    key = _key(checkpoint, options, samples)
    losses = [] if checkpoint is None else _resume(module, optimizer, checkpoint.path, key)
    resumed = len(losses)
    steps = max(1, round(samples / options.batch))
    total = steps * options.epochs
    module.train()
    for epoch in range(resumed, options.epochs):
        with torch.random.fork_rng(devices=[]):
            generator = torch.manual_seed(options.seed * 1_000_003 + epoch)
            order = torch.randperm(samples, generator=generator)
            summed = 0.0
            for index, chosen in enumerate(torch.split(order, options.batch)[:steps]):
                step = epoch * steps + index
                for group in optimizer.param_groups:
                    group["lr"] = options.learning_rate * schedule(step, total)
                number = _train_step(module, optimizer, loss(module, chosen, generator))
                if not math.isfinite(number):
                    raise InputError(
                        "the training diverged: the loss is NaN or infinite",
                        where=f"epoch {epoch + 1}, step {index + 1}", got=str(number),
                        hint=f"Lower learning_rate ({options.learning_rate:g}), by a factor of "
                        "ten to begin with.",
                    )  # fmt: skip
                summed += number
                on_step(step + 1, total, f"epoch {epoch + 1}/{options.epochs}, loss {number:.4f}")
        losses.append(summed / steps)
        if checkpoint is not None:
            _save(module, optimizer, losses, checkpoint.path, key)
    module.eval()
    return FitReport(losses=tuple(losses), resumed_after=resumed)


def schedule(step: int, total: int) -> float:
    """The share of the learning rate at a step: up in a line, then down half a cosine."""
    warm = max(1, round(_WARM_UP * total))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _train_step(module: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    """The loss; where it is finite, the module is one step further."""
    number = loss.item()
    if math.isfinite(number):
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return number


def _key(checkpoint: Checkpoint | None, options: FitOptions, samples: int) -> str:
    made_from = (checkpoint and checkpoint.fingerprint, options, samples, torch.__version__)
    return files.digest_bytes(repr(made_from).encode())


def _save(
    module: nn.Module, optimizer: torch.optim.Optimizer, losses: Sequence[float], path: Path,
    key: str,
) -> None:  # fmt: skip
    state = {
        "key": key,
        "losses": list(losses),
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    content = io.BytesIO()  # into a file, torch says of a full disk only that it is a RuntimeError
    torch.save(state, content)
    files.write_bytes(path, content.getvalue())


def _resume(
    module: nn.Module, optimizer: torch.optim.Optimizer, path: Path, key: str
) -> list[float]:
    """The losses of the epochs that are done; the module and optimizer as they were after them."""
    if not path.is_file():
        return []
    try:
        state: Any = torch.load(path, weights_only=True)
    except (RuntimeError, EOFError, ValueError, OSError, pickle.UnpicklingError) as error:
        logger.warning("the checkpoint %s cannot be read, training begins anew: %s", path, error)
        return []
    if not isinstance(state, dict) or state.get("key") != key:
        logger.info("the checkpoint %s is of another run, training begins anew", path)
        return []
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    return [float(loss) for loss in state["losses"]]
