"""`edgekit build --from`: on this machine, through trtexec, and from what build.sh left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import device_recipes
import fake_trtexec
import numpy as np
import onnx
import pytest
from conftest import RESIDUAL_RECIPE, residual_graph

from edgekit.bench.measurement import load_measurements
from edgekit.engines.device_recipe.document import load_device_recipe
from edgekit.errors import InputError, MissingPackageError, ResourceError
from edgekit.pipeline.build import BuildRequest, build
from edgekit.pipeline.from_recipe import FromRequest, build_from
from edgekit.pipeline.golden import compare
from edgekit.pipeline.recognised import power_note, recognise_device
from edgekit.targets import load_target
from edgekit.values import Unknown, Verdict

RECIPE = (
    RESIDUAL_RECIPE
    + """
[quantize]
ranges = "minmax"
refine = "none"
[gate]
max_drop = 1.0
min_speedup = 0.001
[bench]
seconds = 0.4
rounds = 6
warmup_seconds = 0.05
"""
)
IMAGES = device_recipes.two_batches()


def edgekit(*words: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgekit.cli", *words], cwd=folder, capture_output=True, text=True,
        check=False, env={**os.environ, **environment},
    )  # fmt: skip


def panel(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The words of the one panel."""
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("╭") == 1
    return " ".join(done.stderr.replace("│", " ").split())


@pytest.fixture
def device(residual_path: Path, tmp_path: Path) -> Path:
    """The folder of a recipe for this machine's processor."""
    return device_recipes.write(
        residual_path,
        tmp_path / "a device's folder",
        {"image": IMAGES},
        target=load_target("cpu"),
        precision="fp32",
        rounds=6,
    ).folder


def quietly(device: Path, **options: Any) -> Any:
    return build_from(FromRequest(folder=device, **options), on_event=lambda event: None)


def test_a_recipe_for_this_machine_goes_all_the_way(device: Path) -> None:
    done = edgekit("build", "--from", str(device), "--json", folder=device.parent)
    assert done.returncode == 0, done.stderr
    (target,) = json.loads(done.stdout)["targets"]
    assert target["verdict"] == "pass"
    checks = {check["name"]: check for check in target["checks"]}
    assert {"max_golden_error", "min_golden_cosine", "min_golden_top1"} < set(checks)
    assert checks["min_fps"]["value"] > 1
    assert checks["min_fps"]["verdict"] == "pass"
    built = device / "built"
    assert {path.name for path in built.iterdir()} == {
        "engine", "evidence.json", "golden.json", "measurement.json", "report.json", "summary.json",
    }  # fmt: skip
    gated = edgekit("gate", str(built), folder=device.parent)
    assert gated.returncode == 0, gated.stderr


def test_a_recipe_that_a_build_wrote_goes_all_the_way(residual_path: Path) -> None:
    folder = residual_path.parent
    images = np.random.default_rng(3).normal(size=(24, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "calibration.npz", image=images[:16])
    np.savez(folder / "evaluation.npz", image=images[16:], labels=np.arange(8) % 5)
    (folder / "edgekit.toml").write_text(RECIPE)
    request = BuildRequest(recipe=folder / "edgekit.toml", targets=("cpu",), recipe_only=True)
    (pending,) = build(request, on_event=lambda event: None).targets
    assert pending.verdict is Verdict.PENDING
    device = Path(pending.folder) / "device"
    recipe = load_device_recipe(device)
    assert (recipe.precision, recipe.samples, recipe.batch) == ("int8", 8, 1)
    (target,) = quietly(device).targets
    assert target.verdict is Verdict.PASS
    assert [check.name for check in target.checks] == [
        "max_golden_error", "min_golden_cosine", "min_golden_top1", "min_speedup", "max_drop",
        "min_int8_share",
    ]  # fmt: skip
    # The original was built and measured in turn.
    assert target.before.fps > 1
    assert [m.arm for m in load_measurements(device / "built" / "measurement.json")] == [
        "original", "int8",
    ]  # fmt: skip
    # What each step lost on the host, and then what this engine answered.
    stages = target.blame["int8"]
    assert stages[:-1] == pending.blame["int8"]
    assert [stage.step for stage in stages] == [
        "original", "simplify", "quantize", "engine on the device",
    ]  # fmt: skip
    golden = json.loads((device / "built" / "golden.json").read_text())
    assert stages[-1].last is not None
    assert stages[-1].last.relative_error == golden["relative_error"]
    assert (stages[-1].samples, stages[-1].first) == (8, None)


def test_a_second_time_nothing_is_made_again(device: Path) -> None:
    quietly(device)
    events: list[Any] = []
    result = build_from(FromRequest(folder=device), on_event=events.append)
    assert {e.step for e in events if e.state == "cached"} == {"engine", "bench"}
    assert {e.step for e in events if e.state == "done"} == {"golden"}
    assert result.targets[0].verdict is Verdict.PASS
    events.clear()
    build_from(FromRequest(folder=device, rebench=True), on_event=events.append)
    assert {e.step for e in events if e.state == "done"} == {"golden", "bench"}


def test_an_engine_that_answers_otherwise_fails_and_is_not_measured(
    residual_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The golden answers are another network's."""
    other = tmp_path / "other.onnx"
    onnx.save(residual_graph(seed=5), other)
    real = device_recipes.golden_of
    monkeypatch.setattr(
        device_recipes, "golden_of", lambda model, inputs, batch: real(other, inputs, batch)
    )
    device = device_recipes.write(
        residual_path, tmp_path / "device", {"image": IMAGES}, target=load_target("cpu"),
        precision="fp32",
    ).folder  # fmt: skip
    result = quietly(device)
    assert result.exit_code == 1
    (target,) = result.targets
    assert target.verdict is Verdict.FAIL
    assert "max_golden_error" in target.because
    assert not (device / "built" / "measurement.json").exists()
    gated = edgekit("gate", str(device / "built"), folder=tmp_path)
    assert gated.returncode == 1, gated.stderr


def test_one_flipped_byte_is_one_panel_and_nothing_is_made(device: Path) -> None:
    path = device / "golden.npz"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    said = panel(edgekit("build", "--from", str(device), folder=device.parent), 2)
    assert "not the one that was written" in said
    assert not (device / "built").exists()


@pytest.fixture
def jetson(residual_path: Path, tmp_path: Path) -> Path:
    """A recipe for a Jetson that is told by its module's number."""
    return device_recipes.write(residual_path, tmp_path / "jetson", {"image": IMAGES}).folder


@pytest.fixture
def someone(residual_path: Path, tmp_path: Path) -> Path:
    """A recipe for a Jetson that any machine may be."""
    target = device_recipes.anonymous()
    return device_recipes.write(
        residual_path, tmp_path / "some device", {"image": IMAGES}, target=target
    ).folder


@pytest.fixture
def trtexec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a trtexec that is this machine's."""
    place = fake_trtexec.install(tmp_path / "bin")
    monkeypatch.setenv("TRTEXEC", str(place))
    return place.parent


def test_without_tensorrt_and_trtexec_nothing_builds_it(jetson: Path) -> None:
    done = edgekit(
        "build", "--from", str(jetson), folder=jetson.parent, PATH="/nowhere", TRTEXEC=""
    )
    said = panel(done, 5)
    assert "nothing on this machine builds an engine for Jetson Orin Nano 8 GB" in said
    assert "--via" in said


@pytest.mark.usefixtures("trtexec")
def test_another_device_is_refused_with_what_it_is(jetson: Path) -> None:
    with pytest.raises(InputError, match="not the one that this recipe is for") as caught:
        quietly(jetson)
    assert "p3767-0003" in caught.value.wanted
    assert "Linux" in caught.value.got
    assert not (jetson / "results").exists()


def test_the_device_itself_is_recognised_by_its_modules_number(
    jetson: Path, tmp_path: Path
) -> None:
    recipe = load_device_recipe(jetson)
    tree = tmp_path / "root" / "proc" / "device-tree"
    tree.mkdir(parents=True)
    (tree / "compatible").write_bytes(b"nvidia,p3768-0000+p3767-0003\0nvidia,tegra234\0")
    (tree / "model").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    assert recognise_device(recipe, tmp_path / "root", ()).is_target
    (tree / "compatible").write_bytes(b"nvidia,p3768-0000+p3767-0000\0nvidia,tegra234\0")
    with pytest.raises(InputError, match="not the one") as caught:
        recognise_device(recipe, tmp_path / "root", ())
    assert "p3767-0000" in caught.value.got


def test_the_power_mode_stands_beside_the_profiles(jetson: Path) -> None:
    recipe = load_device_recipe(jetson)
    mode = recipe.target.power_mode
    assert mode
    assert power_note(recipe, mode) == f"power mode {mode}"
    assert f"those of {mode}" in power_note(recipe, "15W")
    assert "not known" in power_note(recipe, "")


@pytest.mark.usefixtures("trtexec")
def test_trtexec_of_this_machine_builds_verifies_measures_and_gates(someone: Path) -> None:
    (target,) = quietly(someone).targets
    assert target.verdict is Verdict.PASS
    checks = {check.name: check for check in target.checks}
    assert checks["min_fps"].value == pytest.approx(2 * 480.25)  # queries a second times batch
    assert checks["min_golden_cosine"].value > 0.9999
    assert target.after.p50_ms == pytest.approx(2.04)
    manifest = json.loads((someone / "built" / "engine" / "manifest.json").read_text())
    assert manifest["runtime"] == {"name": "tensorrt", "version": "10.3.0"}


@pytest.mark.usefixtures("trtexec")
def test_a_speedup_through_trtexec_is_that_of_its_rounds(
    residual_path: Path, tmp_path: Path
) -> None:
    device = device_recipes.write(
        residual_path, tmp_path / "device", {"image": IMAGES[:2]}, original=residual_path,
        target=device_recipes.anonymous(), limits={"min_speedup": 1.0},
    ).folder  # fmt: skip
    (target,) = quietly(device).targets
    checks = {check.name: check for check in target.checks}
    assert checks["min_speedup"].value == pytest.approx(1.0)
    assert target.before.p50_ms == pytest.approx(2.04)


@pytest.mark.usefixtures("trtexec")
def test_a_speedup_over_nothing_is_undecided(residual_path: Path, tmp_path: Path) -> None:
    device = device_recipes.write(
        residual_path, tmp_path / "device", {"image": IMAGES[:2]},
        target=device_recipes.anonymous(), limits={"min_speedup": 1.0},
    ).folder  # fmt: skip
    result = quietly(device)
    assert result.exit_code == 3
    (target,) = result.targets
    assert target.verdict is Verdict.INCONCLUSIVE


def test_wrong_answers_of_a_device_fail(someone: Path, trtexec: Path) -> None:
    (trtexec / "fault").write_text("wrong-answers")
    result = quietly(someone)
    assert result.exit_code == 1
    (target,) = result.targets
    assert target.verdict is Verdict.FAIL
    assert target.after.fps == Unknown("the engine does not answer as the model does")
    # This recipe has no history of its own: only the engine stands beside its graph.
    (stage,) = target.blame[target.precision]
    assert stage.last is not None
    assert stage.last.worst is not None
    golden = json.loads((Path(target.folder) / "golden.json").read_text())
    (told,) = golden["sqnr_db"].values()
    assert stage.last.worst.sqnr_db == told
    assert told < 40


def run_by_hand(folder: Path) -> Path:
    """The results of the folder's build.sh."""
    subprocess.run(["sh", str(folder / "build.sh")], check=True, capture_output=True)
    return folder / "results"


@pytest.mark.usefixtures("trtexec")
def test_results_that_were_carried_back_by_hand_are_judged(someone: Path, tmp_path: Path) -> None:
    away = shutil.copytree(someone, tmp_path / "on the device")
    back = shutil.copytree(run_by_hand(away), tmp_path / "back")
    result = quietly(someone, results=back, out=tmp_path / "judged")
    assert result.targets[0].verdict is Verdict.PASS
    assert (tmp_path / "judged" / "engine" / "model.engine").is_file()
    assert not (someone / "built").exists()
    layers = json.loads((tmp_path / "judged" / "layers.json").read_text())["layers"]
    assert [(layer["name"], layer["share"]) for layer in layers] == [("conv", 0.625), ("fc", 0.375)]


@pytest.mark.usefixtures("trtexec")
def test_any_command_that_takes_a_command_line_is_a_way(
    someone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "there"))
    result = quietly(someone, via="env sh -c")
    assert result.targets[0].verdict is Verdict.PASS
    (place,) = (tmp_path / "there" / "edgekit").glob("net-*")
    assert (place / "results" / "model.engine").is_file()
    assert not (someone / "argv.txt").exists()


@pytest.mark.usefixtures("trtexec")
def test_results_of_another_device_are_refused(jetson: Path) -> None:
    results = run_by_hand(jetson)
    with pytest.raises(InputError, match="not the one that this recipe is for"):
        quietly(jetson, results=results)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--via", "ssh nobody@nowhere"], "belong to a device recipe"),
        (["--results", "x"], "belong to a device recipe"),
        (["--from", "nowhere"], "no device recipe"),
        (["--from", "x", "--target", "cpu", "--dla"], "--target, --dla"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path: Path, words: list[str], said: str) -> None:
    assert said in panel(edgekit("build", *words, folder=tmp_path), 2)


def test_a_processors_engine_is_not_built_by_trtexec(device: Path) -> None:
    for options in ({"via": "ssh user@device"}, {"results": device}):
        with pytest.raises(InputError, match="not built by trtexec"):
            quietly(device, **options)


@pytest.mark.parametrize("via", ["'", "ssh 'user"])
def test_a_prefix_that_is_no_command_line_is_refused(someone: Path, via: str) -> None:
    with pytest.raises(InputError, match="no command line"):
        quietly(someone, via=via)


def test_a_prefix_of_a_program_that_is_not_here_is_missing(someone: Path) -> None:
    with pytest.raises(MissingPackageError, match="no nowhere-ssh"):
        quietly(someone, via="nowhere-ssh user@device")


def test_a_trtexec_that_is_killed_blames_nobody(someone: Path, trtexec: Path) -> None:
    (trtexec / "fault").write_text("killed")
    with pytest.raises(ResourceError, match="killed by SIGKILL, by whom is not known"):
        quietly(someone)


def test_a_trtexec_that_takes_too_long_is_ended(someone: Path, trtexec: Path) -> None:
    (trtexec / "fault").write_text("slow-build")
    with pytest.raises(ResourceError, match="took longer than its time limit"):
        quietly(someone, time_limit_s=2)
    assert not (someone / "built").exists()
    assert not fake_trtexec.is_at_work(str(trtexec))


def test_ctrl_c_ends_trtexec_too(someone: Path, trtexec: Path, tmp_path: Path) -> None:
    (trtexec / "fault").write_text("slow-build")
    process = subprocess.Popen(
        [sys.executable, "-m", "edgekit.cli", "build", "--from", str(someone)], cwd=tmp_path,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        deadline = time.monotonic() + 30
        while not (someone / "argv.txt").is_file() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    words = str(trtexec)
    deadline = time.monotonic() + 5
    while fake_trtexec.is_at_work(words) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not fake_trtexec.is_at_work(words)
    assert not (someone / "results" / "model.engine").exists()


def test_equal_answers_have_no_error_and_a_scaled_answer_its_own(jetson: Path) -> None:
    golden = load_device_recipe(jetson).golden
    same = compare(golden, [one.outputs for one in golden], 4)
    assert (same.relative_error, same.top1) == (0.0, 1.0)
    assert same.cosine == pytest.approx(1.0)
    doubled = compare(golden, [{"logits": 2 * one.outputs["logits"]} for one in golden], 4)
    assert doubled.relative_error == pytest.approx(1.0)
    assert doubled.cosine == pytest.approx(1.0)
    assert doubled.top1 == 1.0


def test_answers_of_another_shape_or_name_are_refused(jetson: Path) -> None:
    golden = load_device_recipe(jetson).golden
    for answer in ({"logits": np.zeros((2, 4))}, {"scores": np.zeros((2, 5))}):
        with pytest.raises(InputError, match="does not answer with"):
            compare(golden, [answer, answer], 4)


def test_a_device_needs_no_torch() -> None:
    code = "import sys, edgekit.pipeline.from_recipe; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
