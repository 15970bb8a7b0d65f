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


def distance(module: Any) -> float:
    """To the targets, of all samples, in whatever mode the module is."""
    with torch.no_grad():
        return float((module(INPUTS) - TARGETS).square().mean())


def options(**changes: Any) -> Any:
    from edgekit.train.options import FitOptions

    return FitOptions(**{"epochs": 5, "learning_rate": 0.02, "batch": 8, "seed": 3, **changes})


def schedule(**changes: Any) -> Any:
    from edgekit.train.schedules import Schedule

    return Schedule(**changes)


def task(loss: Any = loss, samples: int = SAMPLES, judge: Any = None) -> Any:
    from edgekit.train.fit import Task

    return Task(samples=samples, loss=loss, judge=judge)


def kept(path: Path, data: str = "these") -> Any:
    from edgekit.train.checkpoint import Checkpoint

    return Checkpoint(path=path, made_from={"data": data})


def state(module: Any) -> dict[str, list[float]]:
    return {name: tensor.flatten().tolist() for name, tensor in module.state_dict().items()}


def trained(
    how: Any, checkpoint: Any = None, loss: Any = loss, judge: Any = None
) -> tuple[Any, Any]:
    from edgekit.train.fit import fit

    module = network()
    return module, fit(module, task(loss, judge=judge), how, checkpoint=checkpoint)


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
@pytest.mark.parametrize("feature", ["plain", "sgd", "linear", "step", "patience"])
def test_an_interrupted_run_ends_with_the_very_weights_of_an_uninterrupted_one(
    tmp_path: Path, epoch: int, feature: str
) -> None:
    how = options(**{
        "plain": {},
        "sgd": {"optimizer": "sgd", "weight_decay": 0.01},
        "linear": {"schedule": schedule(kind="linear")},
        "step": {"schedule": schedule(kind="step")},
        "patience": {"patience": 4},
    }[feature])  # fmt: skip
    whole, whole_report = trained(how, judge=distance)
    checkpoint = kept(tmp_path / "state.pt")
    with pytest.raises(KeyboardInterrupt):
        trained(how, checkpoint, stop_at(epoch), judge=distance)
    module, report = trained(how, checkpoint, judge=distance)
    assert report.resumed_after == epoch
    assert report.losses == whole_report.losses
    assert report.held_out == whole_report.held_out
    assert report.kept_epoch == whole_report.kept_epoch
    assert state(module) == state(whole)


@pytest.mark.parametrize("kind", ["constant", "step"])
def test_four_epochs_go_on_to_eight_where_the_schedule_does_not_depend_on_the_end(
    tmp_path: Path, kind: str
) -> None:
    how = {"schedule": schedule(kind=kind, step_epochs=3)}
    whole, whole_report = trained(options(epochs=8, **how))
    checkpoint = kept(tmp_path / "state.pt")
    trained(options(epochs=4, **how), checkpoint)
    module, report = trained(options(epochs=8, **how), checkpoint)
    assert report.resumed_after == 4
    assert report.losses == whole_report.losses
    assert state(module) == state(whole)
    # Eight do not go back to four.
    fewer = trained(options(epochs=4, **how), checkpoint)[1]
    assert fewer.resumed_after == 0
    assert fewer.not_resumed == "it has 8 epochs, more than the 4 asked for"


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
    ("change", "said"),
    [
        ({"epochs": 6}, "epochs of a cosine schedule 2, now 6"),
        ({"learning_rate": 0.01}, "learning_rate 0.02, now 0.01"),
        ({"batch": 9}, "batch 8, now 9"),
        ({"seed": 1}, "seed 3, now 1"),
        ({"weight_decay": 0.1}, "weight_decay 0.0, now 0.1"),
        ({"optimizer": "sgd"}, "optimizer adamw, now sgd"),
        ({"schedule": {"kind": "linear"}}, "schedule"),
        ({"patience": 2}, "patience 0, now 2"),
    ],
    ids=lambda change: next(iter(change)) if isinstance(change, dict) else "",
)
def test_a_checkpoint_of_other_options_is_not_resumed_and_the_report_says_why(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    if "schedule" in change:
        change = {"schedule": schedule(**change["schedule"])}
    checkpoint = kept(tmp_path / "state.pt")
    assert trained(options(epochs=2), checkpoint)[1].not_resumed == ""
    report = trained(options(**{"epochs": 2, **change}), checkpoint, judge=distance)[1]
    assert report.resumed_after == 0
    assert said in report.not_resumed


def test_a_checkpoint_of_other_samples_or_weights_is_not_resumed(tmp_path: Path) -> None:
    trained(options(), kept(tmp_path / "state.pt", "these"))
    report = trained(options(), kept(tmp_path / "state.pt", "those"))[1]
    assert report.resumed_after == 0
    assert report.not_resumed == "it is of another run: data these, now those"


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
        report = trained(options(), kept(path))[1]
    assert report.resumed_after == 0
    assert report.not_resumed.startswith("it cannot be read")
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
        fit(module, task(broken), options())
    assert caught.value.where == "epoch 1, step 1"
    assert "learning_rate (0.02)" in caught.value.hint
    assert [parameter.tolist() for parameter in module.parameters()] == before


def test_one_sample_is_too_few() -> None:
    from edgekit.train.fit import fit

    with pytest.raises(InputError, match="two samples"):
        fit(network(), task(samples=1), options())


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

    fit(network(), task(noting, samples), options(epochs=1, batch=batch))
    assert [len(chosen) for chosen in seen] == sizes
    flat = [index for chosen in seen for index in chosen]
    assert len(set(flat)) == len(flat)
    assert set(flat) <= set(range(samples))


def test_progress_counts_every_step() -> None:
    from edgekit.train.fit import fit

    steps: list[tuple[int, int, str]] = []
    fit(network(), task(), options(epochs=2, batch=25), on_step=lambda *s: steps.append(s))
    assert [(done, total) for done, total, _ in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert steps[2][2].startswith("epoch 2/2, loss ")


def heard(*numbers: float) -> Any:
    """A judge that says these, one after another."""
    left = list(numbers)
    return lambda module: left.pop(0)


def test_training_ends_after_so_many_epochs_without_progress_and_keeps_the_best() -> None:
    stopped, report = trained(options(epochs=9, patience=2), judge=heard(9, 5, 3, 4, 3))
    assert len(report.losses) == 4
    assert report.held_out == (9, 5, 3, 4, 3)
    assert report.kept_epoch == 2
    assert not stopped.training
    states: list[dict[str, list[float]]] = []

    def noting(module: Any) -> float:
        assert not module.training
        states.append(state(module))
        return -len(states)  # ever better: nothing ends

    trained(options(epochs=9, patience=2), judge=noting)
    assert len(states) == 10
    assert state(stopped) == states[2]


def test_a_training_that_only_harms_leaves_the_module_as_it_was() -> None:
    module, report = trained(options(patience=2), judge=heard(1, 2, 3))
    assert report.kept_epoch == 0
    assert state(module) == state(network())


def test_without_patience_nobody_judges_and_the_last_weights_stay() -> None:
    report = trained(options(epochs=2), judge=heard())[1]
    assert report.held_out == ()
    assert report.kept_epoch == 2


def test_a_run_that_ended_early_is_not_taken_up_for_more_epochs(tmp_path: Path) -> None:
    how = {"patience": 1, "schedule": schedule(kind="constant")}
    checkpoint = kept(tmp_path / "state.pt")
    one, first = trained(options(epochs=5, **how), checkpoint, judge=heard(3, 2, 4))
    again, second = trained(options(epochs=50, **how), checkpoint, judge=heard())
    assert (len(first.losses), first.kept_epoch) == (2, 1)
    assert second.losses == first.losses
    assert state(again) == state(one)


def test_held_out_samples_that_give_nan_are_a_divergence() -> None:
    with pytest.raises(InputError, match="diverged") as caught:
        trained(options(patience=1), judge=heard(1.0, math.nan))
    assert caught.value.where == "the held-out samples"


def test_sgd_steps_with_nesterov_momentum() -> None:
    """By hand: v = 0.9 v + g, w = w - rate (g + 0.9 v)."""
    from edgekit.train.fit import fit

    module = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(1.0)

    def slope(module: Any, chosen: Any, generator: Any) -> Any:
        return (2.0 * module.weight).sum()  # its gradient is 2

    how = options(
        epochs=2, batch=2, learning_rate=0.1, optimizer="sgd",
        schedule=schedule(kind="constant", warm_up_epochs=0),
    )  # fmt: skip
    fit(module, task(slope, 2), how)
    first = 0.1 * (2 + 0.9 * 2)
    second = 0.1 * (2 + 0.9 * (0.9 * 2 + 2))
    assert module.weight.item() == pytest.approx(1 - first - second)


def test_weight_decay_is_for_matrices_only() -> None:
    from edgekit.train.options import make_optimizer

    decays = {
        parameter.ndim: group["weight_decay"]
        for group in make_optimizer(network(), options(weight_decay=0.1)).param_groups
        for parameter in group["params"]
    }
    assert decays == {2: 0.1, 1: 0.0}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0), ("batch", 0), ("learning_rate", 0.0), ("learning_rate", math.inf),
        ("learning_rate", math.nan), ("weight_decay", -1.0), ("optimizer", "adam"),
        ("momentum", 1.0), ("patience", -1),
    ],
)  # fmt: skip
def test_an_option_that_makes_no_sense_is_named(name: str, value: object) -> None:
    with pytest.raises(InputError) as caught:
        trained(options(**{name: value}), judge=distance)
    assert caught.value.where == name
    assert caught.value.wanted


def test_a_network_without_parameters_is_refused() -> None:
    from edgekit.train.fit import fit

    with pytest.raises(InputError, match="nothing to train"):
        fit(torch.nn.ReLU(), task(), options())


def test_a_batch_of_one_value_for_batchnorm_is_one_error() -> None:
    with pytest.raises(InputError, match="batch of one") as caught:
        trained(options(batch=1))
    assert caught.value.where == "batch"


def test_memory_that_runs_out_is_one_error() -> None:
    from edgekit.errors import ResourceError

    def greedy(module: Any, chosen: Any, generator: Any) -> Any:
        return torch.empty(2**60).sum()

    with pytest.raises(ResourceError, match="memory"):
        trained(options(), loss=greedy)


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_every_seed_of_a_recipe_can_be_used(seed: int) -> None:
    assert trained(options(seed=seed, epochs=1))[1].losses[0] > 0


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    """A pickle in its place, which would write a file, is refused."""

    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    path = tmp_path / "state.pt"
    torch.save({"format": 2, "made_from": Trap()}, path)
    assert trained(options(epochs=1), kept(path))[1].not_resumed.startswith("it cannot be read")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "change", [{"format": 1}, {"losses": 3}, {"module": None}, {"made_from": None}, None]
)
def test_a_checkpoint_of_another_form_is_no_use(
    tmp_path: Path, change: dict[str, Any] | None
) -> None:
    path = tmp_path / "state.pt"
    trained(options(epochs=1), kept(path))
    stored = torch.load(path, weights_only=True)
    torch.save([1, 2] if change is None else {**stored, **change}, path)
    report = trained(options(epochs=1), kept(path))[1]
    assert report.resumed_after == 0
    assert report.not_resumed
