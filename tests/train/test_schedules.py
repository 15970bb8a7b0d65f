"""Learning-rate schedules by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from edgekit.errors import InputError
from edgekit.train.schedules import Schedule, check_schedule, rate_share


def shares(kind: Any, *, epochs: int = 5, epoch_steps: int = 20, **changes: Any) -> list[float]:
    schedule = Schedule(kind=kind, **changes)
    steps = range(epochs * epoch_steps)
    return [rate_share(schedule, s, epoch_steps=epoch_steps, epochs=epochs) for s in steps]


@pytest.mark.parametrize("kind", ["cosine", "linear", "step", "constant"])
def test_every_schedule_rises_in_a_line_first(kind: str) -> None:
    found = shares(kind, warm_up_epochs=0.25)  # 5 of 20 steps
    assert found[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert found[5] == 1.0
    assert shares(kind, warm_up_epochs=0)[0] == 1.0


def test_cosine_falls_along_half_a_cosine_to_zero() -> None:
    found = shares("cosine", warm_up_epochs=0.5)  # 10 steps up, 90 down
    assert found[10 + 30] == pytest.approx(0.75)  # a third of the way: cos 60° = 1/2
    assert found[10 + 45] == pytest.approx(0.5)
    assert found[10 + 60] == pytest.approx(0.25)
    assert 0 < found[-1] < 0.001


def test_linear_falls_in_a_line_to_zero() -> None:
    found = shares("linear", warm_up_epochs=0.5)
    assert found[10 + 30] == pytest.approx(2 / 3)
    assert found[10 + 45] == pytest.approx(0.5)
    assert found[-1] == pytest.approx(1 / 90)


def test_step_falls_by_its_factor_every_so_many_epochs() -> None:
    found = shares("step", warm_up_epochs=0, step_epochs=2, step_factor=0.1)
    assert found == pytest.approx([1.0] * 40 + [0.1] * 40 + [0.01] * 20)


def test_constant_stays() -> None:
    assert set(shares("constant", warm_up_epochs=0)) == {1.0}


@pytest.mark.parametrize("kind", ["cosine", "linear", "step", "constant"])
def test_only_what_is_spread_over_all_epochs_depends_on_how_many_there_are(kind: Any) -> None:
    alike = shares(kind, epochs=4) == shares(kind, epochs=8)[: 4 * 20]
    assert Schedule(kind=kind).depends_on_length != alike


@pytest.mark.parametrize("kind", ["cosine", "linear", "step", "constant"])
@pytest.mark.parametrize(("epochs", "epoch_steps"), [(1, 1), (1, 2), (2, 1), (30, 7)])
def test_every_step_trains_at_a_share_of_the_rate(kind: str, epochs: int, epoch_steps: int) -> None:
    found = shares(kind, epochs=epochs, epoch_steps=epoch_steps, warm_up_epochs=0.5)
    assert all(0 < share <= 1 and math.isfinite(share) for share in found)


@pytest.mark.parametrize(
    ("schedule", "where"),
    [
        (Schedule(kind="cosinus"), "schedule"),  # type: ignore[arg-type]
        (Schedule(warm_up_epochs=2), "warm_up_epochs"),
        (Schedule(warm_up_epochs=-1), "warm_up_epochs"),
        (Schedule(warm_up_epochs=math.nan), "warm_up_epochs"),
        (Schedule(kind="step", step_epochs=0), "schedule"),
        (Schedule(kind="step", step_factor=0), "schedule"),
        (Schedule(kind="step", step_factor=2), "schedule"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(schedule: Schedule, where: str) -> None:
    with pytest.raises(InputError) as caught:
        check_schedule(schedule, 2)
    assert caught.value.where == where
    check_schedule(Schedule(), 1)
