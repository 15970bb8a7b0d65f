"""The one training loop: seeded, with progress, and taken up again after a kill."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
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


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """AdamW with a cosine schedule after a linear warm-up of 5% of the steps.

    The order of the samples and everything random follow from `seed`.
    """

    epochs: int
    learning_rate: float
    batch: int
    seed: int
    weight_decay: float = 0.0


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
    checkpoint: Path | None = None,
    fingerprint: str = "",
    on_step: OnStep = lambda done, total, said: None,
) -> FitReport:
    """Trains the module in place over sample indices 0..samples-1; leaves it in eval mode.

    `loss(module, indices, generator)` gives the loss of one batch of samples; the generator is the
    only source of randomness that it may use. After each epoch the state goes into `checkpoint`; a
    run with the same `fingerprint` goes on from there and ends with the very weights of a run that
    was never interrupted (on one machine). A last batch of less than half the size is left out.

    Raises InputError where the loss becomes NaN or infinite.
    """
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=options.learning_rate, weight_decay=options.weight_decay
    )
    batches = max(1, round(samples / options.batch))
    total = batches * options.epochs
    losses = _resume(module, optimizer, checkpoint, fingerprint)
    resumed = len(losses)
    module.train()
    for epoch in range(resumed, options.epochs):
        generator = torch.Generator().manual_seed(options.seed * 1_000_003 + epoch)
        order = torch.randperm(samples, generator=generator)
        summed = 0.0
        for index, chosen in enumerate(torch.split(order, options.batch)[:batches]):
            step = epoch * batches + index
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * _schedule(step, total)
            value = loss(module, chosen, generator)
            optimizer.zero_grad(set_to_none=True)
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            number = value.item()
            if not math.isfinite(number):
                raise InputError(
                    "the training diverged: the loss is no longer a number",
                    where="compress.recover", got=f"epoch {epoch + 1}, step {index + 1}",
                    hint=f"Lower learning_rate ({options.learning_rate:g}) by a factor of ten.",
                )  # fmt: skip
            summed += number
            on_step(step + 1, total, f"epoch {epoch + 1}/{options.epochs}, loss {number:.4f}")
        losses.append(summed / batches)
        _save(module, optimizer, losses, checkpoint, fingerprint)
    module.eval()
    return FitReport(losses=tuple(losses), resumed_after=resumed)


def _schedule(step: int, total: int) -> float:
    """The share of the learning rate at a step: up in a line, then down half a cosine."""
    warm = max(1, round(0.05 * total))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _save(
    module: nn.Module, optimizer: torch.optim.Optimizer, losses: Iterable[float],
    checkpoint: Path | None, fingerprint: str,
) -> None:  # fmt: skip
    if checkpoint is None:
        return
    state = {
        "fingerprint": fingerprint,
        "losses": list(losses),
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
    }
    with files.replacing(checkpoint) as partial:
        torch.save(state, partial)


def _resume(
    module: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Path | None, fingerprint: str
) -> list[float]:
    """The losses of the epochs that are done; the module and optimizer as they were after them."""
    if checkpoint is None or not checkpoint.is_file():
        return []
    try:
        state: dict[str, Any] = torch.load(checkpoint, weights_only=True)
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        logger.warning("the checkpoint %s cannot be read, training begins anew: %s",
                       checkpoint, error)  # fmt: skip
        return []
    if state.get("fingerprint") != fingerprint:
        return []
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    return [float(loss) for loss in state["losses"]]
