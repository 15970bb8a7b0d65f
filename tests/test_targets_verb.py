"""`edgekit targets`, and what `edgekit build` refuses of a target before it makes anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import residual_graph
from typer.testing import CliRunner

from edgekit.cli import app
from edgekit.engines import tensorrt_rtx
from edgekit.targets import load_target, target_names

RECIPE = """
[model]
path = "net.onnx"
[data]
calibration = "calibration.npz"
evaluation = "evaluation.npz"
[quantize]
refine = "none"
ranges = "minmax"
{more}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def project(folder: Path, more: str = "", opset: int = 18) -> None:
    onnx.save(residual_graph(opset=opset), folder / "net.onnx")
    images = np.random.default_rng(3).normal(size=(48, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "calibration.npz", image=images[:32])
    np.savez(folder / "evaluation.npz", image=images[32:], labels=np.arange(16) % 5)
    (folder / "edgekit.toml").write_text(RECIPE.format(more=more))


def said(*arguments: str) -> tuple[int, str]:
    """The exit code, and what people see."""
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.stderr


def document(*arguments: str) -> tuple[int, Any]:
    done = CliRunner().invoke(app, [*arguments, "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_the_list_has_every_target_and_a_star_at_this_machine(folder: Path) -> None:
    code, text = said("targets")
    assert code == 0
    for name in target_names():
        assert name in text
    assert "cpu *" in text
    assert "* this machine: " in text


def test_a_profile_shows_its_figures_with_their_sources_and_marks(folder: Path) -> None:
    code, text = said("targets", "jetson-orin-nano-8gb@6.0")
    assert code == 0
    assert "tensorrt 8.6 (JetPack 6.0), dialect tensorrt-8, opset 17" in text
    assert "extends targets/bases/jetson-orin.toml" in text
    assert "bytes 7,990,149,120 [" in text
    assert "int8 2.05e+13 (unverified)" in text
    assert "DS-11105-001" in text
    code, found = document("targets", "jetson-orin-nano-8gb@6.0")
    target = load_target("jetson-orin-nano-8gb@6.0")
    assert found == {
        **target.model_dump(mode="json"), "own": False,
        "files": [f"targets/{name}.toml" for name in
                  ("jetson-orin-nano-8gb", "bases/jetson-orin", "bases/jetson")],
    }  # fmt: skip


def test_a_users_own_target_is_listed_as_such(folder: Path) -> None:
    (folder / "targets").mkdir()
    path = folder / "targets" / "my-board.toml"
    path.write_text('name = "my-board"\ntitle = "A board"\nextends = "jetson-nano"\n')
    assert "A board (your own)" in said("targets")[1]
    _, found = document("targets")
    (mine,) = [target for target in found["targets"] if target["own"]]
    assert mine["name"] == "my-board"
    assert mine["files"][0] == str(Path("targets/my-board.toml"))
    assert "your own, targets" in said("targets", "my-board")[1]


def test_a_broken_file_is_one_panel_with_every_fault(folder: Path) -> None:
    (folder / "targets").mkdir()
    path = folder / "targets" / "my-board.toml"
    path.write_text(
        'name = "my-board"\ntitle = ""\nextends = "jetson-nano"\nprecisions = ["int9"]\nspeed = 1\n'
    )
    for arguments in (("targets",), ("targets", "my-board")):
        code, text = said(*arguments)
        assert code == 2
        assert text.count("edgekit") - text.count("edgekit targets") == 1  # the panel's title
        assert "title:" in text
        assert 'did you mean "int8"?' in text
        assert "speed: unknown key" in text
        assert "my-board.toml, which extends" in text


def test_an_unknown_name_is_refused(folder: Path) -> None:
    code, found = document("targets", "jetson-nanno")
    assert code == 2
    assert '"jetson-nano"' in found["error"]["hint"]


def test_int8_on_a_nano_is_refused_and_fp16_offered(folder: Path) -> None:
    project(folder, '[engine]\nprecision = "int8"\n')
    code, found = document("build", "--target", "jetson-nano")
    assert code == 2
    assert found["error"]["what"] == "Jetson Nano 4 GB has no INT8 hardware"
    assert found["error"]["wanted"] == "auto, fp32, fp16"
    assert "--precision fp16" in found["error"]["hint"]
    assert not (folder / "build").exists()


def test_a_nano_gets_its_device_recipe_in_fp16_at_opset_13(folder: Path) -> None:
    project(folder, '[engine]\nprecision = "int8"\n')
    code, found = document("build", "--target", "jetson-nano", "--precision", "fp16")
    assert code == 0
    (target,) = found["targets"]
    assert (target["target"], target["precision"]) == ("jetson-nano", "fp16")
    place = folder / "build" / "net" / "jetson-nano"
    written = onnx.load(place / "device" / "model.onnx")
    assert {entry.domain: entry.version for entry in written.opset_import}[""] == 13
    assert not {"QuantizeLinear", "DequantizeLinear"} & {n.op_type for n in written.graph.node}
    assert "--fp16" in (place / "device" / "build.sh").read_text()


@pytest.mark.parametrize(
    ("target", "what", "wanted"),
    [
        ("jetson-orin-nano-8gb", "Jetson Orin Nano 8 GB has no DLA", "jetson-orin-nx-16gb"),
        ("jetson-agx-thor", "Jetson AGX Thor (T5000) has no DLA", "jetson-agx-orin-64gb"),
        ("cpu", "this machine's CPU has no DLA", "jetson-xavier-nx-8gb"),
        ("jetson-orin-nx-16gb@7.2", "TensorRT 10.16 of JetPack 7.2 drives no DLA",
         "jetson-orin-nx-16gb@6.2"),
    ],
)  # fmt: skip
def test_a_dla_that_is_not_there_is_refused(
    folder: Path, target: str, what: str, wanted: str
) -> None:
    project(folder)
    code, found = document("build", "--target", target, "--dla")
    assert code == 2
    assert found["error"]["what"] == what
    assert wanted in found["error"]["wanted"]
    assert "TensorRT 10." in found["error"]["hint"]


def test_a_dla_core_beyond_the_last_is_refused(folder: Path) -> None:
    project(folder, "[engine]\ndla = 1\n")
    code, found = document("build", "--target", "jetson-orin-nx-8gb", "--dry-run")
    assert (code, found["error"]["wanted"]) == (2, "0")
    # What the command line says goes before the recipe.
    code, found = document("build", "--target", "jetson-orin-nx-8gb", "--dla", "--dry-run")
    assert code == 0
    assert found["recipe"]["engine"]["dla"] == 0


def test_an_engine_for_a_dla_is_fp16_and_no_other_precision_is_taken(folder: Path) -> None:
    project(folder)
    code, found = document("build", "--target", "jetson-orin-nx-16gb", "--dla", "--dry-run")
    assert code == 0
    assert "quantize" not in {step["step"] for step in found["steps"]}
    for precision, what in (("int8", "wants a calibration cache"), ("fp32", "has no FP32")):
        code, found = document("build", "-t", "jetson-orin-nx-16gb", "--dla",
                               "--precision", precision)  # fmt: skip
        assert code == 2
        assert what in found["error"]["what"]
        assert "--precision fp16" in found["error"]["hint"]


def test_the_command_lines_precision_goes_before_every_override(folder: Path) -> None:
    project(folder, '[target.jetson.engine]\nprecision = "int8"\n[build]\ntargets = ["jetson"]\n')
    code, found = document("build", "--precision", "fp32", "--dry-run")
    assert code == 0
    assert "quantize" not in {step["step"] for step in found["steps"]}
    code, found = document("build", "--precision", "fp23")
    assert code == 2
    assert 'did you mean "fp32"?' in found["error"]["got"]


def test_one_device_with_two_jetpacks_is_two_targets(folder: Path) -> None:
    project(
        folder,
        '[engine]\nprecision = "fp16"\n'
        '[target.jetson-orin-nano-8gb.engine]\nprecision = "fp32"\n'
        '[target."jetson-orin-nano-8gb@5.1".engine]\nprecision = "int8"\n'
        '[build]\ntargets = ["jetson-orin-nano-8gb", "jetson-orin-nano-8gb@5.1.1"]\n',
    )
    code, found = document("build", "--dry-run")
    assert code == 0
    named = {(step["step"], step["target"]) for step in found["steps"]}
    assert ("quantize", "jetson-orin-nano-8gb@5.1.1") in named
    assert ("device", "jetson-orin-nano-8gb") in named
    assert ("quantize", "jetson-orin-nano-8gb") not in named


def test_of_several_targets_one_that_refuses_does_not_stop_the_others(folder: Path) -> None:
    project(folder, '[build]\ntargets = ["cpu", "jetson-nano"]\n')
    code, found = document("build", "--precision", "fp16")
    assert code == found["exit_code"] == 2
    assert [target["target"] for target in found["targets"]] == ["jetson-nano"]
    (refused,) = found["refused"]
    assert (refused["target"], refused["exit_code"]) == ("cpu", 2)
    assert refused["what"] == "this machine's CPU has no FP16 hardware"
    assert json.loads((folder / "build" / "net" / "summary.json").read_text()) == found
    code, text = said("build", "--precision", "fp16")
    assert code == 2
    assert "cpu: refused" in text
    assert "jetson-nano: fp16" in text
    code, found = document("build", "--precision", "fp16", "--dry-run")
    assert code == 0
    assert found["notes"] == ["cpu is refused: this machine's CPU has no FP16 hardware"]


def test_what_all_targets_refuse_alike_is_one_error(folder: Path) -> None:
    project(folder, '[engine]\nstreams = 2\n[build]\ntargets = ["cpu", "jetson-nano"]\n')
    code, found = document("build")
    assert code == 2
    assert "one stream" in found["error"]["what"]


def test_what_several_targets_refuse_each_in_its_own_words_is_told_of_each(folder: Path) -> None:
    project(folder, '[build]\ntargets = ["jetson-tx2", "jetson-nano"]\n')
    code, found = document("build", "--precision", "int8")
    assert code == 2
    assert [one["target"] for one in found["refused"]] == ["jetson-tx2", "jetson-nano"]
    assert not found["targets"]
    assert not found["steps"]


def test_a_recipe_with_a_jetpack_that_a_device_does_not_have_is_refused(folder: Path) -> None:
    project(folder, '[build]\ntargets = ["jetson-nano@6.2", "jetson-nanno@6.2"]\n')
    code, found = document("build", "--dry-run")
    assert code == 2
    first, second = found["error"]["got"].splitlines()
    assert "Jetson Nano 4 GB has no JetPack 6.2; want jetson-nano@4.6.1" in first
    assert 'no target called "jetson-nanno@6.2"; did you mean "jetson-nano"?' in second


def test_a_recipe_finds_the_targets_beside_it_from_anywhere(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project(folder, '[build]\ntargets = ["my-board"]\n[target.my-board.engine]\ndla = 1\n')
    (folder / "targets").mkdir()
    (folder / "targets" / "my-board.toml").write_text(
        'name = "my-board"\ntitle = "A board"\nextends = "jetson-orin-nx-8gb"\n[dla]\ncores = 2\n'
    )
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    code, found = document("build", "../edgekit.toml", "--dry-run")
    assert code == 0
    assert "my-board" in {step["target"] for step in found["steps"]}
    (folder / "targets" / "my-board.toml").write_text('name = "my-board"\nextends = "cpu"\nx = 1\n')
    code, found = document("build", "../edgekit.toml", "--dry-run")
    assert code == 2
    assert found["error"]["got"].splitlines() == [
        "build.targets: my-board: title: is missing", "build.targets: my-board: x: unknown key",
    ]  # fmt: skip


def test_an_override_of_a_family_with_a_jetpack_is_refused(folder: Path) -> None:
    project(folder, '[target."jetson@6.0".engine]\nprecision = "fp16"\n')
    code, found = document("build", "--target", "jetson", "--dry-run")
    assert code == 2
    assert "name a module" in found["error"]["got"]


def test_an_override_of_the_default_jetpack_is_the_devices(folder: Path) -> None:
    project(folder, '[target."jetson-orin-nano-8gb@6.2.1".engine]\nprecision = "fp32"\n')
    code, found = document("build", "--target", "jetson-orin-nano-8gb", "--dry-run")
    assert code == 0
    assert "quantize" not in {step["step"] for step in found["steps"]}


@pytest.mark.rtx
@pytest.mark.skipif(not tensorrt_rtx.is_installed(), reason="needs the rtx extra")
def test_a_turing_card_gets_its_engine_though_its_runtime_refuses_fp32_products(
    folder: Path,
) -> None:
    project(folder)
    code, found = document("build", "--target", "t4", "--precision", "fp16")
    assert code == 0
    (target,) = found["targets"]
    assert (target["precision"], target["verdict"]) == ("fp16", "pending")
    assert "engine" in target["files"]
    (note,) = [note for note in target["notes"] if "original" in note and "FP16" in note]
    assert "FP32 GEMM is not supported" in note
