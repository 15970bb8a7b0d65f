"""What a training run is told, and the optimizer that comes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import nn

from edgekit.errors import InputError
from edgekit.train.acceleration import Precision
from edgekit.train.schedules import COSINE, Schedule, check_schedule

OptimizerName: TypeAlias = Literal["adamw", "sgd"]


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How long and how; everything random follows from `seed` and the epoch.

    `batch` samples make a step, over all processes together. `weight_decay` is for tensors of two
    axes and more: not for biases and normalisations. `momentum` and `nesterov` are SGD's.
    `patience`: so many epochs without a lower held-out loss end the training; 0, it never ends
    early.
    """

    epochs: int
    learning_rate: float
    batch: int
    seed: int
    optimizer: OptimizerName = "adamw"
    weight_decay: float = 0.0
    momentum: float = 0.9
    nesterov: bool = True
    schedule: Schedule = COSINE
    patience: int = 0
    precision: Precision = "fp32"


def check_options(options: FitOptions, *, samples: int, processes: int) -> None:
    """Raises InputError for options that make no sense, or not for so many samples."""
    if samples < 2:
        raise InputError(
            "training needs at least two samples", got=str(samples),
            wanted="some hundreds or more",
        )  # fmt: skip
    wanted = {
        "epochs": (options.epochs >= 1, "1 or more"),
        "batch": (options.batch >= 1, "1 or more"),
        "learning_rate": (0 < options.learning_rate < math.inf, "a number above 0"),
        "weight_decay": (0 <= options.weight_decay < math.inf, "0 or more"),
        "optimizer": (options.optimizer in get_args(OptimizerName), "adamw or sgd"),
        "momentum": (0 <= options.momentum < 1, "a number from 0 to below 1"),
        "nesterov": (not options.nesterov or options.momentum > 0, "false without momentum"),
        "patience": (options.patience >= 0, "0 or more"),
    }
    for name, (fits, said) in wanted.items():
        if not fits:
            raise InputError(
                f"training cannot be done with this {name}", where=name,
                got=str(getattr(options, name)), wanted=said,
            )  # fmt: skip
    check_schedule(options.schedule, options.epochs)
    if min(options.batch, samples) < 2 * processes and processes > 1:
        raise InputError(
            "a batch is too small to be shared out", where="batch",
            got=f"{min(options.batch, samples)} samples for {processes} processes",
            wanted=f"{2 * processes} or more",
        )  # fmt: skip


def make_optimizer(module: nn.Module, options: FitOptions) -> torch.optim.Optimizer:
    """The optimizer of all parameters that learn. Raises InputError where there are none."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise InputError(
            "this network has nothing to train", got="no parameter of a layer that learns",
            hint="Leave [compress.recover] out of the recipe.",
        )  # fmt: skip
    if options.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=options.learning_rate, momentum=options.momentum, nesterov=options.nesterov
        )
    return torch.optim.AdamW(groups, lr=options.learning_rate)
