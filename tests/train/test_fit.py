"""The training loop: what it learns, that it repeats itself, and how it is taken up again."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgekit.errors import InputError

torch = pytest.importorskip("torch", reason="needs the compress extra")
pytestmark = pytest.mark.torch

SAMPLES = 50
INPUTS = torch.randn(SAMPLES, 6, generator=torch.Generator().manual_seed(1))
TARGETS = INPUTS @ torch.randn(6, 3, generator=torch.Generator().manual_seed(2))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """These networks are too small to be shared out between threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network() -> Any:
    """With BatchNormalization and Dropout: running statistics and randomness of torch's own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Linear(6, 16), torch.nn.BatchNorm1d(16), torch.nn.Dropout(0.1),
            torch.nn.ReLU(), torch.nn.Linear(16, 3),
        )  # fmt: skip


def loss(module: Any, chosen: Any, generator: Any) -> Any:
    noise = 0.01 * torch.randn(len(chosen), 6, generator=generator)
    return (module(INPUTS[chosen] + noise) - TARGETS[chosen]).square().mean()


def options(**changes: Any) -> Any:
    from edgekit.train.fit import FitOptions

    return FitOptions(**{"epochs": 5, "learning_rate": 0.02, "batch": 8, "seed": 3, **changes})


def kept(path: Path, fingerprint: str = "these") -> Any:
    from edgekit.train.fit import Checkpoint

    return Checkpoint(path=path, fingerprint=fingerprint)


def state(module: Any) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in module.state_dict().items()}


def trained(how: Any, checkpoint: Any = None, loss: Any = loss) -> tuple[Any, Any]:
    from edgekit.train.fit import fit

    module = network()
    return module, fit(module, SAMPLES, loss, how, checkpoint=checkpoint)


def test_the_loss_falls_and_the_module_is_left_in_eval_mode() -> None:
    module, report = trained(options(epochs=40))
    assert len(report.losses) == 40
    assert report.losses[-1] < 0.2 * report.losses[0]
    assert not module.training


def test_the_same_seed_gives_the_same_weights_and_another_gives_others() -> None:
    torch.manual_seed(11)  # what torch's own generator is at does not matter
    one = state(trained(options())[0])
    torch.manual_seed(12)
    assert state(trained(options())[0]) == one
    assert state(trained(options(seed=4))[0]) != one


def test_torchs_own_generator_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3).tolist()
    torch.manual_seed(5)
    trained(options())
    assert torch.rand(3).tolist() == expected


def stop_at(epoch: int) -> Any:
    """The loss, by which a Ctrl-C comes in the middle of an epoch."""
    calls = 0

    def interrupted(module: Any, chosen: Any, generator: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > 6 * epoch + 2:
            raise KeyboardInterrupt
        return loss(module, chosen, generator)

    return interrupted


@pytest.mark.parametrize("epoch", [0, 2, 4])
def test_an_interrupted_run_ends_with_the_very_weights_of_an_uninterrupted_one(
    tmp_path: Path, epoch: int
) -> None:
    whole, whole_report = trained(options())
    checkpoint = kept(tmp_path / "state.pt")
    with pytest.raises(KeyboardInterrupt):
        trained(options(), checkpoint, stop_at(epoch))
    module, report = trained(options(), checkpoint)
    assert report.resumed_after == epoch
    assert report.losses == whole_report.losses
    assert state(module) == state(whole)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    checkpoint = kept(tmp_path / "state.pt")
    module, _ = trained(options(), checkpoint)

    def never(*_: Any) -> Any:
        raise AssertionError

    again, report = trained(options(), checkpoint, never)
    assert report.resumed_after == 5
    assert state(again) == state(module)
    assert not again.training


@pytest.mark.parametrize(
    "change",
    [{"epochs": 6}, {"learning_rate": 0.01}, {"batch": 9}, {"seed": 1}, {"weight_decay": 0.1}],
    ids=lambda change: next(iter(change)),
)
def test_a_checkpoint_of_other_options_is_not_resumed(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    checkpoint = kept(tmp_path / "state.pt")
    trained(options(epochs=2), checkpoint)
    assert trained(options(**{"epochs": 2, **change}), checkpoint)[1].resumed_after == 0


def test_a_checkpoint_of_other_samples_or_weights_is_not_resumed(tmp_path: Path) -> None:
    trained(options(), kept(tmp_path / "state.pt", "these"))
    assert trained(options(), kept(tmp_path / "state.pt", "those"))[1].resumed_after == 0


@pytest.mark.parametrize("content", [b"", b"no checkpoint", b"PK\x03\x04 half of one", None])
def test_a_broken_checkpoint_is_reported_and_begun_anew(
    tmp_path: Path, content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state.pt"
    if content is None:
        trained(options(), kept(path))
        path.write_bytes(path.read_bytes()[:-500])
    else:
        path.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert trained(options(), kept(path))[1].resumed_after == 0
    assert str(path) in caplog.text


def test_nothing_but_the_checkpoint_is_left_beside_it(tmp_path: Path) -> None:
    trained(options(epochs=1), kept(tmp_path / "state.pt"))
    assert [path.name for path in tmp_path.iterdir()] == ["state.pt"]


def test_a_loss_that_is_no_number_says_where_and_what_to_lower() -> None:
    def broken(module: Any, chosen: Any, generator: Any) -> Any:
        return loss(module, chosen, generator) * float("nan")

    from edgekit.train.fit import fit

    module = network()
    before = [parameter.tolist() for parameter in module.parameters()]
    with pytest.raises(InputError) as caught:
        fit(module, SAMPLES, broken, options())
    assert caught.value.where == "epoch 1, step 1"
    assert "learning_rate (0.02)" in caught.value.hint
    assert [parameter.tolist() for parameter in module.parameters()] == before


def test_one_sample_is_too_few() -> None:
    from edgekit.train.fit import fit

    with pytest.raises(InputError, match="two samples"):
        fit(network(), 1, loss, options())


@pytest.mark.parametrize(
    ("samples", "batch", "sizes"),
    [(8, 4, [4, 4]), (10, 4, [4, 4]), (11, 4, [4, 4, 3]), (3, 4, [3]), (50, 100, [50])],
)
def test_each_sample_is_seen_at_most_once_an_epoch_and_a_small_rest_is_left_out(
    samples: int, batch: int, sizes: list[int]
) -> None:
    from edgekit.train.fit import fit

    seen: list[list[int]] = []

    def noting(module: Any, chosen: Any, generator: Any) -> Any:
        seen.append(chosen.tolist())
        return loss(module, chosen, generator)

    fit(network(), samples, noting, options(epochs=1, batch=batch))
    assert [len(chosen) for chosen in seen] == sizes
    flat = [index for chosen in seen for index in chosen]
    assert len(set(flat)) == len(flat)
    assert set(flat) <= set(range(samples))


def test_progress_counts_every_step() -> None:
    from edgekit.train.fit import fit

    steps: list[tuple[int, int, str]] = []
    fit(network(), SAMPLES, loss, options(epochs=2, batch=25), on_step=lambda *s: steps.append(s))
    assert [(done, total) for done, total, _ in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert steps[2][2].startswith("epoch 2/2, loss ")


def test_the_schedule_rises_in_a_line_and_falls_along_half_a_cosine() -> None:
    from edgekit.train.fit import schedule

    assert [schedule(step, 100) for step in range(5)] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert schedule(5, 100) == 1.0
    # 95 steps of descent: a third of the way down is cos(60 degrees).
    assert schedule(5 + 95 // 3, 100) == pytest.approx(
        0.5 + 0.5 * math.cos(math.pi * 31 / 95), abs=1e-12
    )
    assert schedule(99, 100) < 0.001
    assert schedule(0, 1) == 1.0
