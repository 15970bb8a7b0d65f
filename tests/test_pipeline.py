"""A whole build on a small network: what it leaves, what it does not do twice, and how it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import RESIDUAL_RECIPE, write_samples

from edgekit.errors import InputError, ResourceError
from edgekit.pipeline.build import BuildRequest, build, plan
from edgekit.pipeline.result import StepEvent
from edgekit.values import Verdict

pytestmark = pytest.mark.rtx
pytest.importorskip("tensorrt_rtx", reason="needs the rtx extra")

RECIPE = (
    RESIDUAL_RECIPE
    + """
[compress.channels]
macs = 0.6
[quantize]
ranges = "percentile"
refine = "none"
[gate]
max_drop = 1.0
[bench]
seconds = 0.4
rounds = 2
warmup_seconds = 0.05
[build]
targets = ["cpu", "rtx-3060", "jetson"]
"""
)


@pytest.fixture
def project(residual_path: Path) -> Path:
    """A folder with a recipe, the residual network and seeded data."""
    folder = residual_path.parent
    write_samples(folder, 32, np.arange(16) % 5)
    (folder / "edgekit.toml").write_text(RECIPE)
    return folder


def run_build(project: Path, **options: Any) -> tuple[Any, list[StepEvent]]:
    events: list[StepEvent] = []
    request = BuildRequest(recipe=project / "edgekit.toml", **options)
    return build(request, on_event=events.append), events


def made(events: list[StepEvent]) -> set[tuple[str, str]]:
    return {(event.step, event.target) for event in events if event.state == "done"}


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_each_target_gets_what_this_machine_can_give_it(project: Path) -> None:
    result, _ = run_build(project)
    place = project / "build" / "residual"
    by_name = {target.target: target for target in result.targets}
    assert by_name["cpu"].verdict is Verdict.PASS
    assert by_name["rtx-3060"].verdict is Verdict.PENDING
    assert by_name["jetson-orin-nano-8gb"].verdict is Verdict.PENDING
    assert result.exit_code == 0
    assert (place / "cpu" / "engine" / "model.onnx").stat().st_size > 1000
    assert (place / "rtx-3060" / "engine" / "model.engine").stat().st_size > 10_000
    assert os.access(place / "jetson-orin-nano-8gb" / "device" / "build.sh", os.X_OK)
    flight = json.loads((place / "jetson-orin-nano-8gb" / "preflight.json").read_text())
    assert flight["verdict"] == "passed"
    cpu = by_name["cpu"]
    assert cpu.after.macs <= 0.6 * cpu.before.macs
    assert json.loads((place / "summary.json").read_text())["exit_code"] == 0


def test_a_second_build_does_nothing_and_says_how_old_the_measurement_is(project: Path) -> None:
    run_build(project)
    result, events = run_build(project)
    assert result.up_to_date
    assert not made(events)
    assert any("ago" in event.said for event in events if event.step == "bench")


def test_rebench_measures_again_and_builds_nothing(project: Path) -> None:
    run_build(project, targets=("cpu",))
    _, events = run_build(project, targets=("cpu",), rebench=True)
    assert made(events) == {("bench", "cpu")}


def test_adding_a_target_redoes_only_what_depends_on_it(project: Path) -> None:
    run_build(project, targets=("rtx-3060",))
    _, events = run_build(project, targets=("rtx-3060", "jetson"))
    assert {target for _, target in made(events)} == {"jetson-orin-nano-8gb"}


def test_other_weights_are_another_build(project: Path) -> None:
    run_build(project, targets=("rtx-3060",))
    proto = onnx.load(project / "residual.onnx")
    tensor = next(t for t in proto.graph.initializer if t.name == "fc.bias")
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.ones(5, np.float32), "fc.bias"))
    onnx.save(proto, project / "residual.onnx")
    _, events = run_build(project, targets=("rtx-3060",))
    assert ("channels", "") in made(events)


def test_a_dry_run_writes_nothing_and_knows_what_is_cached(project: Path) -> None:
    request = BuildRequest(recipe=project / "edgekit.toml", targets=("rtx-3060",))
    before = plan(request)
    assert not (project / "build").exists()
    assert not any(cached for _, _, cached in before.steps)
    run_build(project, targets=("rtx-3060",))
    after = plan(request)
    assert [step[:2] for step in after.steps] == [step[:2] for step in before.steps]
    assert all(cached for _, _, cached in after.steps)


def test_a_missed_limit_fails_the_build(project: Path) -> None:
    recipe = project / "edgekit.toml"
    recipe.write_text(RECIPE.replace("max_drop = 1.0", "min_fps = 1e9"))
    result, _ = run_build(project, targets=("cpu",))
    assert result.exit_code == 1
    assert result.targets[0].checks[0].verdict is Verdict.FAIL


def test_strict_counts_a_target_that_nobody_measured(project: Path) -> None:
    result, _ = run_build(project, targets=("rtx-3060",), strict=True)
    assert result.exit_code == 3


def test_shared_samples_are_refused(project: Path) -> None:
    with np.load(project / "calibration.npz") as stored:
        images = stored["image"]
    np.savez(project / "evaluation.npz", image=images[30:], labels=np.zeros(2, np.int64))
    with pytest.raises(InputError, match="share samples") as caught:
        run_build(project)
    assert caught.value.got.startswith("2 of 2 evaluation samples")
    assert not (project / "build").exists()


def test_a_metric_that_fails_does_so_before_any_long_step(project: Path) -> None:
    with np.load(project / "evaluation.npz") as stored:
        np.savez(project / "evaluation.npz", image=stored["image"])
    with pytest.raises(InputError, match='"top1" needs labels'):
        run_build(project)
    assert not list((project / "build" / ".cache").glob("channels-*"))
    (project / "mine.py").write_text("def half(outputs, labels):\n    return 0.5\n")
    (project / "edgekit.toml").write_text(RECIPE + '[evaluate]\nmetric = "mine.py:half"\n')
    result, events = run_build(project, targets=("rtx-3060",))
    assert any(event.said == "the original: mine.py:half 0.5000" for event in events)
    assert result.targets[0].after.metric == 0.5


def test_a_precision_that_a_target_lacks_is_refused(project: Path) -> None:
    recipe = project / "edgekit.toml"
    recipe.write_text(RECIPE + '[target.cpu.engine]\nprecision = "fp16"\n')
    with pytest.raises(InputError, match="no FP16 hardware"):
        run_build(project, targets=("cpu",))


def test_a_runtime_that_takes_its_types_from_the_graph_gets_a_float16_graph(project: Path) -> None:
    recipe = project / "edgekit.toml"
    recipe.write_text(RECIPE + '[target.rtx-3060.engine]\nprecision = "fp16"\n')
    result, events = run_build(project, targets=("rtx-3060",))
    (said,) = [event.said for event in events if event.step == "fp16" and event.state == "done"]
    assert said.startswith("15 nodes in float16, 0 in float32, 2 casts")
    place = project / "build" / "residual" / "rtx-3060"
    assert json.loads((place / "engine" / "manifest.json").read_text())["precision"] == "fp16"
    graph = onnx.load(place / "model.onnx").graph
    assert {tensor.data_type for tensor in graph.initializer} == {onnx.TensorProto.FLOAT16}
    assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert result.targets[0].verdict is Verdict.PENDING


@pytest.mark.parametrize("blocked", ["build", "build/residual"])
def test_a_place_that_cannot_be_written_is_named(project: Path, blocked: str) -> None:
    place = project / blocked
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("a file where a folder should be")
    with pytest.raises(InputError, match="cannot be written"):
        run_build(project, targets=("rtx-3060",))


def test_a_full_disk_leaves_nothing_half_written(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekit.pipeline import steps

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(steps, "save_ranges", full)
        with pytest.raises(ResourceError, match="disk is full"):
            run_build(project, targets=("rtx-3060",))
    assert not [name for name in tree(project / "build") if ".partial" in name]
    assert not (project / "build" / "residual" / "rtx-3060").exists()
    result, events = run_build(project, targets=("rtx-3060",))
    assert ("channels", "") not in made(events)
    assert result.exit_code == 0


def limited(most_bytes: int) -> Callable[[], None]:
    """Makes a child's files end at that size, as a full disk would: the system says EFBIG."""

    def limit() -> None:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))

    return limit


@pytest.mark.torch
@pytest.mark.parametrize("most_bytes", [500, 5_000, 25_000, 60_000])
def test_a_file_that_cannot_grow_ends_in_one_panel_wherever_it_strikes(
    project: Path, most_bytes: int
) -> None:
    pytest.importorskip("torch", reason="needs the compress extra")
    recover = "[compress.recover]\nepochs = 1\n[compress.channels]\n"
    (project / "edgekit.toml").write_text(RECIPE.replace("[compress.channels]\n", recover))
    done = subprocess.run(
        command(project, "--target", "rtx-3060"), capture_output=True, text=True, check=False,
        preexec_fn=limited(most_bytes),
    )  # fmt: skip
    assert done.returncode == 6, done.stderr
    assert done.stderr.count("the disk is full") == 1
    assert "Traceback" not in done.stderr
    assert not [name for name in tree(project / "build") if ".partial" in name]
    result, _ = run_build(project, targets=("rtx-3060",))
    assert result.exit_code == 0


def command(project: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "edgekit.cli", "build", str(project / "edgekit.toml"), *arguments]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(3000):
        if condition():
            return
        assert process.poll() is None, "the build ended before it could be stopped"
        time.sleep(0.01)
    pytest.fail("the build never came that far")


@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_build_that_is_stopped_is_taken_up_again(
    project: Path, kind: signal.Signals, code: int
) -> None:
    cache = project / "build" / ".cache"
    process = subprocess.Popen(
        command(project, "--target", "rtx-3060"), stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    wait_for(lambda: any(cache.glob("channels-*")), process)
    process.send_signal(kind)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in said
    if kind is signal.SIGINT:
        assert said.count("interrupted") == 1
    whole = [path for path in cache.glob("*-*") if path.is_dir()]
    assert all(any(path.iterdir()) for path in whole if not path.name.startswith("."))
    result, events = run_build(project, targets=("rtx-3060",))
    assert ("channels", "") not in made(events)
    assert result.exit_code == 0
    assert not [name for name in tree(project / "build") if ".partial" in name]


def test_two_builds_at_once_make_everything_once(project: Path) -> None:
    both = [
        subprocess.Popen(
            command(project, "--target", "rtx-3060", "--json"), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    answers = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    steps = [json.loads(out)["steps"] for out, _ in answers]
    done = [sum(not step["cached"] for step in listed) for listed in steps]
    assert sorted(done) == [0, len(steps[0])]
