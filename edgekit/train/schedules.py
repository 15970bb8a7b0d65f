"""Learning-rate schedules: the share of the learning rate that a step trains with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

from edgekit.errors import InputError

Kind: TypeAlias = Literal["cosine", "linear", "step", "constant"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How the learning rate goes, after it has risen in a line over `warm_up_epochs`.

    cosine    down half a cosine to zero at the end (Loshchilov, Hutter, "SGDR" (2017), eq. 5
              without restarts)
    linear    down in a line to zero at the end
    step      times `step_factor` after every `step_epochs` epochs, counted from the beginning
    constant  stays
    """

    kind: Kind = "cosine"
    warm_up_epochs: float = 0.3
    step_epochs: int = 2
    step_factor: float = 0.1

    @property
    def depends_on_length(self) -> bool:
        """Whether a longer run trains its first epochs at other rates than a shorter one."""
        return self.kind in ("cosine", "linear")


COSINE = Schedule()


def rate_share(schedule: Schedule, step: int, *, epoch_steps: int, epochs: int) -> float:
    """The factor of the learning rate at a step, counted from 0 over all epochs; in (0, 1]."""
    warm = round(schedule.warm_up_epochs * epoch_steps)
    if step < warm:
        return (step + 1) / warm
    way = (step - warm) / max(1, epoch_steps * epochs - warm)
    if schedule.kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * way))
    if schedule.kind == "linear":
        return 1 - way
    if schedule.kind == "step":
        return float(schedule.step_factor ** (step // (schedule.step_epochs * epoch_steps)))
    return 1.0


def check_schedule(schedule: Schedule, epochs: int) -> None:
    """Raises InputError for a schedule that there is not, or that such a run has no room for."""
    if schedule.kind not in get_args(Kind):
        raise InputError(
            "there is no such learning-rate schedule", where="schedule", got=str(schedule.kind),
            wanted=", ".join(get_args(Kind)),
        )  # fmt: skip
    if not 0 <= schedule.warm_up_epochs < epochs:
        raise InputError(
            "the warm-up leaves no epoch to train in", where="warm_up_epochs",
            got=f"{schedule.warm_up_epochs:g} of {epochs} epochs",
            wanted=f"a number from 0 to below {epochs}",
        )  # fmt: skip
    if schedule.step_epochs < 1 or not 0 < schedule.step_factor <= 1:
        raise InputError(
            "these steps of the learning rate are none", where="schedule",
            got=f"times {schedule.step_factor:g} every {schedule.step_epochs} epochs",
            wanted="a factor in (0, 1] every so many epochs, at least 1",
        )  # fmt: skip
