"""`edgekit recover`, its table in a recipe, and how it is interrupted and taken up again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import api
from edgekit.compress.channels.groups import find_groups
from edgekit.compress.channels.remove import remove_channels
from edgekit.errors import InputError
from edgekit.models.model import Model, save, to_bytes
from edgekit.models.source import load
from edgekit.pipeline.origin import Origin
from edgekit.pipeline.recovery import RecoveryRequest, recover_file
from edgekit.pipeline.steps import Source, recover_options, recover_step
from edgekit.recipe_sections import RecoverSection, read_section
from edgekit.train.schedules import Schedule

needs_torch = pytest.mark.torch

OWN = """
import numpy as np

def noisy(batch, generator):
    return {n: x + np.float32(0.1) * generator.normal(size=x.shape).astype(x.dtype)
            for n, x in batch.items()}
"""


@pytest.fixture
def project(residual: Model, residual_path: Path) -> Path:
    """A folder with a teacher, a student, samples, and an augmentation."""
    folder = residual_path.parent
    groups = find_groups(residual)
    kept = [np.arange(group.units * 3 // 4) for group in groups.groups]
    save(remove_channels(residual, groups, kept)[0], folder / "student.onnx")
    images = np.random.default_rng(3).normal(size=(96, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "data.npz", image=images)
    (folder / "mine.py").write_text(OWN)
    return folder


def request(folder: Path, **changes: Any) -> RecoveryRequest:
    return RecoveryRequest(**{
        "student": Origin(place=str(folder / "student.onnx")),
        "teacher": Origin(place=str(folder / "residual.onnx")),
        "data": str(folder / "data.npz"),
        "out": folder / "taught.onnx",
        "settings": {"epochs": 2, "batch": 16},
        **changes,
    })  # fmt: skip


def command(folder: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "edgekit.cli", "recover", str(folder / "student.onnx"), "--teacher",
        str(folder / "residual.onnx"), "--data", str(folder / "data.npz"), "-o",
        str(folder / "taught.onnx"), "--json", *more,
    ]  # fmt: skip


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


@needs_torch
def test_the_taught_model_is_written_and_nothing_else_is_left(project: Path) -> None:
    pytest.importorskip("torch", reason="needs the compress extra")
    before = {path.name for path in project.iterdir()}
    events: list[Any] = []
    report = recover_file(request(project), on_event=events.append)
    assert report["after"] < report["before"]
    assert {path.name for path in project.iterdir()} - before == {"taught.onnx"}
    taught = load(project / "taught.onnx")
    assert taught.history[-1] == "recover"
    assert to_bytes(taught) != to_bytes(load(project / "student.onnx"))
    assert [event.state for event in events][:1] == ["started"]
    assert events[-1].state == "done"
    json.dumps(report)


@needs_torch
def test_the_settings_go_before_the_recipes_and_its_function_lies_beside_it(project: Path) -> None:
    pytest.importorskip("torch", reason="needs the compress extra")
    (project / "edgekit.toml").write_text(
        '[model]\npath = "residual.onnx"\n[data]\ncalibration = "data.npz"\n'
        'evaluation = "data.npz"\n[compress.recover]\nepochs = 3\nbatch = 16\n'
        'augment = "mine.py:noisy"\npatience = 1\n'
    )
    recipe = project / "edgekit.toml"
    report = recover_file(request(project, recipe=recipe, settings={"epochs": 1}))
    assert report["epochs"] == 1
    assert len(report["held_out"]) == 2
    with pytest.raises(InputError, match="no such file"):  # here, it is looked for in this folder
        recover_file(request(project, recipe=recipe, settings={"augment": "yours.py:noisy"}))


@needs_torch
def test_a_checkpoint_that_is_named_is_kept_for_more_epochs(project: Path) -> None:
    pytest.importorskip("torch", reason="needs the compress extra")
    settings = {"batch": 16, "schedule": "constant"}
    place = project / "state.pt"
    for epochs, resumed in ((2, 0), (4, 2)):
        report = recover_file(
            request(project, settings={**settings, "epochs": epochs}, checkpoint=place)
        )
        assert report["resumed_after"] == resumed
    whole = recover_file(
        request(project, settings={**settings, "epochs": 4}, out=project / "whole.onnx")
    )
    assert whole["losses"] == report["losses"]
    assert (project / "whole.onnx").read_bytes() == (project / "taught.onnx").read_bytes()


@needs_torch
def test_of_several_processes_only_the_first_one_writes_and_says(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch", reason="needs the compress extra")
    monkeypatch.setattr("edgekit.pipeline.recovery.launched", lambda: (1, 2))
    events: list[Any] = []
    assert recover_file(request(project), on_event=events.append) == {}
    assert not events
    assert not (project / "taught.onnx").exists()


@needs_torch
@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_run_that_is_stopped_keeps_its_last_epoch_and_ends_as_if_it_had_not_been(
    project: Path, kind: signal.Signals, code: int
) -> None:
    pytest.importorskip("torch", reason="needs the compress extra")
    more = ("--epochs", "40", "--batch", "16", "--augment", f"{project}/mine.py:noisy")
    place = project / "taught.checkpoint.pt"
    process = subprocess.Popen(
        command(project, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=environment(),
    )  # fmt: skip
    while not place.exists():
        assert process.poll() is None, process.stderr and process.stderr.read()
        time.sleep(0.005)
    process.send_signal(kind)
    output, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    assert place.is_file()
    assert not (project / "taught.onnx").exists()
    again = subprocess.run(
        command(project, *more), capture_output=True, text=True, env=environment(), check=True
    )
    report = json.loads(again.stdout)
    assert 1 <= report["resumed_after"] < 40
    assert not place.exists()
    assert not list(project.glob(".partial-*"))
    assert kind != signal.SIGINT or json.loads(output)["exit_code"] == 130
    # By a process of the same kind: with other threads, sums are rounded otherwise.
    unstopped = subprocess.run(
        command(project, *more), capture_output=True, text=True, env=environment(), check=True
    )
    whole = json.loads(unstopped.stdout)
    assert (whole["resumed_after"], whole["losses"]) == (0, report["losses"])


@needs_torch
@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--schedule", "cosinus"), "cosine"),
        (("--optimizer", "sgd"), "learning_rate"),
        (("--epochs", "0"), "epochs"),
        (("--data", "nowhere.npz"), "no such data file"),
        (("--augment", "mine"), "package.module:function"),
        (("--shift", "9"), "shifted"),
        (("--precision", "fp64"), "precision"),
    ],
)
def test_what_does_not_fit_is_one_error_and_nothing_is_written(
    project: Path, more: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="needs the compress extra")
    from edgekit.cli import app

    before = sorted(path.name for path in project.iterdir())
    with pytest.raises(SystemExit) as left:
        app(command(project, *more)[3:], standalone_mode=True)
    assert left.value.code == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert said in json.dumps(error)
    assert sorted(path.name for path in project.iterdir()) == before


@needs_torch
def test_the_api_takes_the_settings_of_a_recipe(project: Path) -> None:
    pytest.importorskip("torch", reason="needs the compress extra")
    student, teacher = (api.load(project / f"{name}.onnx") for name in ("student", "residual"))
    data = api.data(project / "data.npz", teacher)
    settings = {"optimizer": "sgd", "learning_rate": 0.01, "schedule": "linear", "shift": 1}
    taught, report = api.recover(student, teacher, data, epochs=2, settings=settings)
    assert len(report.losses) == 2
    assert taught.history[-1] == "recover"
    with pytest.raises(InputError, match="fault") as caught:
        api.recover(student, teacher, data, settings={"lerning_rate": 1.0})
    assert 'did you mean "learning_rate"' in caught.value.got


def test_a_build_of_several_processes_is_refused_before_they_wait_for_one_another(
    residual: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    source = Source(key="", path=Path(), load=lambda: residual)
    options = recover_options(RecoverSection(), Path())
    data: Any = None
    with pytest.raises(InputError, match="a build is one process"):
        recover_step(source, source, data, options, lambda share, said: None)


def test_the_table_becomes_options(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(OWN)
    section = RecoverSection(
        schedule="step", step_epochs=3, step_factor=0.2, optimizer="sgd", learning_rate=0.05,
        momentum=0.8, augment="mine.py:noisy", shift=4, patience=2, precision="bf16",
    )  # fmt: skip
    options = recover_options(section, tmp_path)
    assert options.schedule == Schedule(kind="step", step_epochs=3, step_factor=0.2)
    assert (options.optimizer, options.learning_rate, options.momentum) == ("sgd", 0.05, 0.8)
    assert (options.shift, options.patience, options.precision) == (4, 2, "bf16")
    assert options.own is not None
    assert options.own.name == "mine.py:noisy"
    (tmp_path / "mine.py").write_text(OWN + "\n# another\n")
    assert repr(recover_options(section, tmp_path)) != repr(options)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"momentum": 0.5}, 'momentum is for optimizer = "sgd"'),
        ({"nesterov": False}, 'nesterov is for optimizer = "sgd"'),
        ({"step_epochs": 2}, 'step_epochs is for schedule = "step"'),
        ({"schedule": "linear", "step_factor": 0.5}, 'step_factor is for schedule = "step"'),
        ({"optimizer": "sgd"}, "sgd needs a learning_rate"),
        ({"optimizer": "sgd", "learning_rate": 0.1, "momentum": 0.0}, "nesterov needs a momentum"),
        ({"epochs": 1, "warm_up_epochs": 1.0}, "leaves none of 1 epochs"),
        ({"augment": "mine"}, "is not package.module:function"),
        ({"precision": "int8"}, "precision"),
        ({"shift": -1}, "shift"),
        ({"patience": 1.5}, "patience"),
    ],
)
def test_keys_without_a_use_and_values_without_a_sense_are_refused(
    keys: dict[str, object], said: str
) -> None:
    with pytest.raises(InputError) as caught:
        read_section(RecoverSection, keys, "here")
    assert said in caught.value.got
    assert caught.value.where == "here"
