"""build.sh, run by the shells that are here with a trtexec that prints what the real one prints."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import device_recipes
import fake_trtexec
import numpy as np
import onnx
import pytest
from conftest import residual_graph

from edgekit import files
from edgekit.engines.device_recipe.document import DeviceRecipe, load_device_recipe
from edgekit.engines.manifest import load_engine
from edgekit.engines.trtexec.engine import device_engine
from edgekit.engines.trtexec.results import read_results
from edgekit.errors import InputError
from edgekit.targets import load_target

IMAGES = device_recipes.two_batches()
SHELLS = [shell for shell in ("dash", "bash", "busybox") if shutil.which(shell)]


def run_script(
    recipe: DeviceRecipe, trtexec: Path | str, *, shell: str = "sh", cwd: str = "/"
) -> subprocess.CompletedProcess[str]:
    words = {"busybox": ["busybox", "sh"], "bash": ["bash", "--posix"]}.get(shell, [shell])
    return subprocess.run(
        [*words, str(recipe.folder / "build.sh")], env={**os.environ, "TRTEXEC": str(trtexec)},
        cwd=cwd, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.fixture
def recipe(residual_path: Path, tmp_path: Path) -> DeviceRecipe:
    folder = tmp_path / "it's a folder; with $signs"
    return device_recipes.write(residual_path, folder, {"image": IMAGES})


@pytest.fixture
def small(residual_path: Path, tmp_path: Path) -> DeviceRecipe:
    """A recipe with one golden batch."""
    return device_recipes.write(residual_path, tmp_path / "small", {"image": IMAGES[:2]})


@pytest.fixture
def quoted_path(residual_path: Path, tmp_path: Path) -> Path:
    """The residual model with an input name that a shell would take apart."""
    proto = onnx.load(residual_path)
    for node in proto.graph.node:
        node.input[:] = ["in put;$x:0" if name == "image" else name for name in node.input]
    proto.graph.input[0].name = "in put;$x:0"
    path = tmp_path / "quoted.onnx"
    onnx.save(proto, path)
    return path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe's folder with the results of a good run."""
    place = tmp_path_factory.mktemp("finished")
    onnx.save(residual_graph(), place / "net.onnx")
    made = device_recipes.write(place / "net.onnx", place / "device", {"image": IMAGES})
    assert run_script(made, fake_trtexec.install(place / "bin")).returncode == 0
    return place / "device"


@pytest.fixture
def done_once(finished: Path, tmp_path: Path) -> DeviceRecipe:
    """A copy of it."""
    shutil.copytree(finished, tmp_path / "done")
    return load_device_recipe(tmp_path / "done")


def asked(recipe: DeviceRecipe) -> list[list[str]]:
    """What trtexec was asked for, run by run."""
    path = recipe.folder / "argv.txt"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


@pytest.mark.parametrize("shell", SHELLS)
def test_the_whole_of_it_is_left_in_results(
    recipe: DeviceRecipe, tmp_path: Path, shell: str
) -> None:
    done = run_script(recipe, fake_trtexec.install(tmp_path / "bin"), shell=shell)
    assert done.returncode == 0, done.stderr
    assert "960.5 FPS, 480.25 queries a second, 2 at a time" in done.stderr
    found = read_results(recipe, recipe.folder / "results")
    assert found.version == "10.3.0"
    assert found.rates == (480.25, 480.25)
    assert len(found.measurement.samples) == 1400
    assert found.measurement.samples[:3] == pytest.approx((2.00e-3, 2.01e-3, 2.02e-3))
    assert found.measurement.rounds == (0, 700)
    assert found.measurement.batch == 2
    for one, answer in zip(recipe.golden, found.answers, strict=True):
        np.testing.assert_allclose(answer["logits"], one.outputs["logits"], rtol=1e-4, atol=1e-5)
    engine = device_engine(recipe, recipe.folder / "results", found, tmp_path / "engine")
    assert engine.sha256 == files.digest_file(tmp_path / "engine" / "model.engine")
    assert engine.figures["scratch_bytes"] == 512
    assert [layer.name for layer in engine.layers] == ["conv", "fc"]
    assert load_engine(tmp_path / "engine") == engine
    assert not list((recipe.folder / "results").glob("*.partial"))


def test_every_argument_is_handed_over_whole(quoted_path: Path, tmp_path: Path) -> None:
    recipe = device_recipes.write(quoted_path, tmp_path / "device", {"in put;$x:0": IMAGES})
    done = run_script(recipe, fake_trtexec.install(tmp_path / "bin"))
    assert done.returncode == 0, done.stderr
    build, answer, *_ = asked(recipe)
    assert "--minShapes='in put;$x:0':1x3x8x8" in build
    assert "--loadInputs='in put;$x:0':golden/batch-0-input-0.bin" in answer
    assert "--shapes='in put;$x:0':2x3x8x8" in answer
    found = read_results(recipe, recipe.folder / "results")
    np.testing.assert_allclose(
        found.answers[1]["logits"], recipe.golden[1].outputs["logits"], rtol=1e-4, atol=1e-5
    )


def test_a_second_run_builds_nothing_and_measures_again(
    done_once: DeviceRecipe, tmp_path: Path
) -> None:
    recipe, trtexec = done_once, fake_trtexec.install(tmp_path / "bin")
    first = len(asked(recipe))
    done = run_script(recipe, trtexec)
    assert "model.engine is built already" in done.stderr
    later = asked(recipe)[first:]
    assert not [run for run in later if any("--saveEngine" in word for word in run)]
    assert not [run for run in later if any("--exportOutput" in word for word in run)]
    assert sum(any("--exportTimes" in word for word in run) for run in later) == 2


def test_an_engine_with_a_flipped_byte_is_built_again(
    done_once: DeviceRecipe, tmp_path: Path
) -> None:
    recipe, trtexec = done_once, fake_trtexec.install(tmp_path / "bin")
    engine = recipe.folder / "results" / "model.engine"
    content = bytearray(engine.read_bytes())
    content[100] ^= 1
    engine.write_bytes(content)
    results = recipe.folder / "results"
    found = read_results(recipe, results)
    with pytest.raises(InputError, match="not the one that was built"):
        device_engine(recipe, results, found, tmp_path / "engine")
    first = len(asked(recipe))
    run_script(recipe, trtexec)
    assert [word for word in asked(recipe)[first] if "--saveEngine" in word]


def test_another_tensorrt_starts_anew(done_once: DeviceRecipe, tmp_path: Path) -> None:
    recipe = done_once
    first = len(asked(recipe))
    done = run_script(recipe, fake_trtexec.install(tmp_path / "bin", version="101602"))
    assert done.returncode == 0, done.stderr
    assert [word for word in asked(recipe)[first] if "--saveEngine" in word]
    assert read_results(recipe, recipe.folder / "results").version == "10.16.2"


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("refused", 1, "No importer registered for op: Mod"),
        ("full-disk", 6, "the disk is full here"),
    ],
)
def test_a_failed_build_leaves_no_engine(
    recipe: DeviceRecipe, tmp_path: Path, fault: str, code: int, said: str
) -> None:
    done = run_script(recipe, fake_trtexec.install(tmp_path / "bin", fault=fault))
    assert done.returncode == code
    assert said in done.stderr
    assert not (recipe.folder / "results" / "model.engine").exists()
    with pytest.raises(InputError):
        read_results(recipe, recipe.folder / "results")


def test_trtexecs_own_exit_code_is_kept(recipe: DeviceRecipe, tmp_path: Path) -> None:
    program = tmp_path / "trtexec"
    program.write_text("#!/bin/sh\nexit 7\n")
    program.chmod(0o755)
    assert run_script(recipe, program).returncode == 7


def test_only_the_model_that_it_came_with_is_built(recipe: DeviceRecipe, tmp_path: Path) -> None:
    (recipe.folder / "golden" / "batch-1-input-0.bin").write_bytes(b"another")
    done = run_script(recipe, fake_trtexec.install(tmp_path / "bin"))
    assert done.returncode == 2
    assert "not the one that was written" in done.stderr


def test_a_device_without_trtexec_is_told_what_to_set(recipe: DeviceRecipe) -> None:
    done = run_script(recipe, "/nowhere/trtexec")
    assert done.returncode == 5
    assert "set TRTEXEC" in done.stderr


def test_a_trtexec_may_be_named_from_where_one_stands(recipe: DeviceRecipe, tmp_path: Path) -> None:
    fake_trtexec.install(tmp_path / "a bin")
    done = run_script(recipe, "a bin/trtexec", cwd=str(tmp_path))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("number", ["8201", "8502", "110100"])
def test_a_tensorrt_that_the_recipe_has_no_settings_for_is_refused(
    recipe: DeviceRecipe, tmp_path: Path, number: str
) -> None:
    done = run_script(recipe, fake_trtexec.install(tmp_path / "bin", version=number))
    assert done.returncode == 2
    assert f"here is {number}" in done.stderr
    assert asked(recipe) == []


@pytest.mark.parametrize(
    ("target", "number", "own"),
    [
        ("jetson-nano", "8201", {"--workspace", "--buildOnly", "--fp16"}),
        ("jetson-xavier-nx-8gb", "8502", {"--memPoolSize", "--buildOnly", "--fp16"}),
        ("jetson-orin-nano-8gb@6.0", "8602", {"--memPoolSize", "--skipInference", "--fp16"}),
        ("jetson-orin-nano-8gb", "101602", {"--memPoolSize", "--skipInference", "--fp16"}),
        ("jetson-orin-nano-8gb", "", {"--memPoolSize", "--skipInference", "--fp16"}),
    ],
)
def test_each_jetpack_gets_its_own_flags(
    residual_path: Path, tmp_path: Path, target: str, number: str, own: set[str]
) -> None:
    recipe = device_recipes.write(
        residual_path, tmp_path / "device", {"image": IMAGES[:2]}, target=load_target(target)
    )
    done = run_script(recipe, fake_trtexec.install(tmp_path / "bin", version=number))
    assert done.returncode == 0, done.stderr
    build = {word.partition("=")[0] for word in asked(recipe)[0]}
    assert own <= build
    assert build - own == {
        "--onnx", "--saveEngine", "--minShapes", "--optShapes", "--maxShapes",
        "--timingCacheFile", "--profilingVerbosity",
    }  # fmt: skip
    assert read_results(recipe, recipe.folder / "results").rates == (480.25, 480.25)


def test_the_original_is_built_and_measured_in_turn(residual_path: Path, tmp_path: Path) -> None:
    recipe = device_recipes.write(
        residual_path, tmp_path / "device", {"image": IMAGES[:2]}, original=residual_path,
        precision="int8",
    )  # fmt: skip
    assert recipe.has_original
    done = run_script(recipe, fake_trtexec.install(tmp_path / "bin"))
    assert done.returncode == 0, done.stderr
    runs = [" ".join(run) for run in asked(recipe)]
    first, second = (run for run in runs if "--saveEngine" in run)
    assert "--onnx=model.onnx" in first
    assert "--int8" in first
    assert "--onnx=original.onnx" in second
    assert "--int8" not in second
    assert "--saveEngine=results/original.engine.partial" in second
    measured = [run for run in runs if "--exportTimes" in run]
    assert ["original.engine" in run for run in measured] == [False, True, False, True]
    found = read_results(recipe, recipe.folder / "results")
    assert found.baseline is not None
    assert (found.baseline.arm, found.measurement.arm) == ("original", "int8")
    assert found.baseline.rounds == found.measurement.rounds == (0, 700)
    assert found.rates == (480.25, 480.25)


@pytest.mark.parametrize("fault", ["half-times", "nan"])
def test_damaged_exports_are_refused(small: DeviceRecipe, tmp_path: Path, fault: str) -> None:
    run_script(small, fake_trtexec.install(tmp_path / "bin", fault=fault))
    with pytest.raises(InputError):
        read_results(small, small.folder / "results")


@pytest.mark.parametrize(
    ("fault", "said"),
    [("unstable", ["12.3%", "CPU that starts"]), ("no-graph", ["CUDA graph"]), ("", [])],
)
def test_what_trtexec_warns_of_becomes_a_doubt(
    small: DeviceRecipe, tmp_path: Path, fault: str, said: list[str]
) -> None:
    run_script(small, fake_trtexec.install(tmp_path / "bin", fault=fault))
    doubts = read_results(small, small.folder / "results").measurement.doubts
    assert len(doubts) == len(said)
    for doubt, words in zip(doubts, said, strict=True):
        assert words in doubt


@pytest.mark.parametrize(
    "name", ["stamp", "build.log", "answer-1.json", "times-1.json", "times-1.log", "times-0.date"]
)
def test_results_with_a_part_missing_are_refused(
    done_once: DeviceRecipe, tmp_path: Path, name: str
) -> None:
    recipe = done_once
    (recipe.folder / "results" / name).unlink()
    with pytest.raises(InputError):
        read_results(recipe, recipe.folder / "results")


def test_results_of_another_recipe_are_refused(
    done_once: DeviceRecipe, residual_path: Path, tmp_path: Path
) -> None:
    other = device_recipes.write(residual_path, tmp_path / "other", {"image": IMAGES[:2]})
    with pytest.raises(InputError, match="of another recipe"):
        read_results(other, done_once.folder / "results")


@pytest.fixture
def running(recipe: DeviceRecipe, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The script while trtexec builds for a minute."""
    trtexec = fake_trtexec.install(tmp_path / "bin", fault="slow-build")
    process = subprocess.Popen(
        ["sh", str(recipe.folder / "build.sh")], env={**os.environ, "TRTEXEC": str(trtexec)},
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + 20
    while not asked(recipe) and time.monotonic() < deadline:
        time.sleep(0.05)
    with process:
        yield process
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_script_ends_what_it_started(
    recipe: DeviceRecipe, running: subprocess.Popen[str], tmp_path: Path, number: int
) -> None:
    word = str(tmp_path / "bin")
    running.send_signal(number)
    assert running.wait(5) == 130
    assert running.stderr is not None
    assert "interrupted" in running.stderr.read()
    deadline = time.monotonic() + 5
    while fake_trtexec.is_at_work(word) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not fake_trtexec.is_at_work(word)
    assert not (recipe.folder / "results" / "model.engine").exists()
    done = run_script(recipe, fake_trtexec.install(tmp_path / "bin"))
    assert done.returncode == 0, done.stderr
