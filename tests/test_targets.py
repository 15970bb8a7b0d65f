"""Devices as data, found from the checkout; and what this machine is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit import targets
from edgekit.errors import InputError
from edgekit.targets import (
    detect_machine,
    family_names,
    load_target,
    preferred_multiple,
    resolve_target,
    target_names,
)

BOARD = """
name = "my-board"
title = "A board"
family = "cpu"
precisions = ["fp32"]
multiple = { fp32 = 8 }
[runtime]
name = "onnxruntime"
version = "1.20"
dialect = "onnxruntime"
build = "here"
opset = 17
"""


def device_tree(root: Path, **files: str) -> Path:
    tree = root / "proc" / "device-tree"
    tree.mkdir(parents=True)
    for name, content in files.items():
        (
            tree / name.replace("_", ",", 1) if name.startswith("nvidia") else tree / name
        ).write_bytes(content.encode() + b"\0")
    return root


def test_every_shipped_target_loads_under_its_own_name() -> None:
    assert {"cpu", "rtx-3060", "jetson-orin-nano-8gb"} <= set(target_names())
    for name in target_names():
        target = load_target(name)
        assert target.name == name
        assert set(target.multiple) >= set(target.precisions)
        assert target.sources


def test_int8_prefers_32_channels_on_tensor_cores() -> None:
    assert preferred_multiple(load_target("rtx-3060"), "int8") == 32
    assert preferred_multiple(load_target("rtx-3060"), "fp32") == 1


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        load_target("rtx-3600")
    assert '"rtx-3060"' in caught.value.hint


def test_a_family_on_a_build_host_means_its_default_and_says_so(tmp_path: Path) -> None:
    found = resolve_target("jetson", root=tmp_path)
    assert found.target.name == "jetson-orin-nano-8gb"
    assert "Jetson Orin Nano 8 GB" in found.note


def test_a_family_on_a_device_means_that_module(tmp_path: Path) -> None:
    root = device_tree(
        tmp_path,
        compatible="nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0005\0nvidia,tegra234",
        model="NVIDIA Jetson Orin Nano Developer Kit",
    )
    assert detect_machine(root=root).target == "jetson-orin-nano-8gb"
    assert "this machine" in resolve_target("jetson", root=root).note


def test_a_module_without_a_profile_is_refused_by_name(tmp_path: Path) -> None:
    root = device_tree(
        tmp_path, compatible="nvidia,p2888-0001\0nvidia,tegra194", model="Jetson AGX Xavier"
    )
    assert detect_machine(root=root).target == ""
    with pytest.raises(InputError) as caught:
        resolve_target("jetson", root=root)
    assert "AGX Xavier" in caught.value.got


def test_any_other_machine_is_a_cpu(tmp_path: Path) -> None:
    assert detect_machine(root=tmp_path).target == "cpu"


def test_a_board_of_ones_own_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "my-board.toml"
    path.write_text(BOARD)
    assert load_target(str(path)).title == "A board"


def test_a_broken_board_lists_every_fault(tmp_path: Path) -> None:
    path = tmp_path / "my-board.toml"
    path.write_text(
        BOARD.replace('precisions = ["fp32"]', 'precisions = ["fp23"]').replace(
            "opset = 17", 'opset = "17"\ntrtexce = "x"'
        )
    )
    with pytest.raises(InputError) as caught:
        load_target(str(path))
    assert 'did you mean "fp32"?' in caught.value.got
    assert "runtime.opset: wanted a whole number, got '17'" in caught.value.got
    assert 'runtime.trtexce: unknown key; did you mean "trtexec"?' in caught.value.got


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (("opset = 17", "opset = 0"), "runtime.opset: 0 is not more than 0"),
        (("fp32 = 8", "fp32 = 0"), "multiple.fp32: 0 is not more than 0"),
        (('name = "onnxruntime"', 'name = "tensorrt"'), "compute_capability is missing"),
        (('build = "here"', 'build = "there"'), 'did you mean "here"?'),
        (('title = "A board"', ""), "title: is missing"),
        (
            ("[runtime]", "peak = { fp32 = inf }\n[runtime]"),
            "peak.fp32: inf is not a finite number",
        ),
        (("[runtime]", "[identity]\np_numbers = [3767]\n[runtime]"), "identity.p_numbers.0"),
    ],
)
def test_a_fault_in_a_board_has_its_line_of_sight(
    tmp_path: Path, broken: tuple[str, str], said: str
) -> None:
    path = tmp_path / "my-board.toml"
    path.write_text(BOARD.replace(*broken))
    with pytest.raises(InputError) as caught:
        load_target(str(path))
    assert said in caught.value.got
    assert caught.value.where == str(path)


def test_a_board_may_not_take_the_name_of_a_shipped_target(tmp_path: Path) -> None:
    path = tmp_path / "my-board.toml"
    path.write_text(BOARD.replace("my-board", "cpu"))
    with pytest.raises(InputError, match="name of a target that edgekit ships"):
        load_target(str(path))


def test_a_shipped_target_may_be_named_by_its_file() -> None:
    path = Path(__file__).resolve().parent.parent / "targets" / "cpu.toml"
    assert load_target(str(path)) == load_target("cpu")


def test_a_board_that_is_not_there_and_one_that_is_no_toml(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such target file"):
        load_target(str(tmp_path / "gone.toml"))
    (tmp_path / "bad.toml").write_text("name = ")
    with pytest.raises(InputError, match="no TOML"):
        load_target(str(tmp_path / "bad.toml"))


def test_a_precision_without_a_multiple_of_its_own_prefers_none() -> None:
    assert preferred_multiple(load_target("cpu"), "fp16") == 1


def test_every_family_has_one_default() -> None:
    defaults = [t.family for t in map(load_target, target_names()) if t.family_default]
    assert tuple(sorted(defaults)) == family_names() == ("jetson",)


def test_peak_rates_are_those_of_the_units_and_the_clock() -> None:
    nano, rtx = load_target("jetson-orin-nano-8gb"), load_target("rtx-3060")
    per_clock = {"fp32": 128 * 2, "fp16": 1024 * 2, "int8": 2048 * 2}  # Orin: an SM's operations
    for precision, operations in per_clock.items():
        assert nano.peak[precision] == pytest.approx(8 * 1.02e9 * operations, rel=0.02)  # type: ignore[index]
    per_clock = {"fp32": 128 * 2, "fp16": 1024, "int8": 2048}  # GA10x, FP32 accumulation apart
    for precision, operations in per_clock.items():
        assert rtx.peak[precision] == pytest.approx(28 * 1.777e9 * operations, rel=0.02)  # type: ignore[index]


JETPACK_5 = "/dvs/kernel-dts/tegra234-p3767-0003-p3768-0000-a0.dts"


@pytest.mark.parametrize(
    "files",
    [
        {"compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234"},
        {"compatible": "nvidia,p3767-0003\0nvidia,tegra234"},
        {"compatible": "nvidia,tegra234", "nvidia_dtsfilename": JETPACK_5},
        {"compatible": "nvidia,tegra234", "nvidia_boardids": "p3767-0005"},
    ],
    ids=["super", "module", "dtsfilename", "boardids"],
)
def test_an_orin_nano_is_known_by_its_module_wherever_that_is_written(
    tmp_path: Path, files: dict[str, str]
) -> None:
    machine = detect_machine(root=device_tree(tmp_path, **files))
    assert (machine.target, machine.family) == ("jetson-orin-nano-8gb", "jetson")


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("p3767-0004", "jetson-orin-nano-4gb"),
        ("p3767-0000", "jetson-orin-nx-16gb"),
        ("p3701-0005", "jetson-agx-orin-64gb"),
        ("p3767-00051", ""),
        ("p3767-0002", ""),
    ],
)
def test_another_module_of_the_family_is_no_orin_nano_8gb(
    tmp_path: Path, module: str, target: str
) -> None:
    root = device_tree(tmp_path, compatible=f"nvidia,p3768-0000+{module}\0nvidia,tegra234")
    machine = detect_machine(root=root)
    assert (machine.target, machine.family) == (target, "jetson")


def test_a_device_tree_without_a_tegra_is_a_cpu(tmp_path: Path) -> None:
    root = device_tree(tmp_path, compatible="raspberrypi,5-model-b\0brcm,bcm2712")
    machine = detect_machine(root=root)
    assert (machine.target, machine.family) == ("cpu", "cpu")


def test_an_ordinary_name_has_no_note() -> None:
    assert resolve_target("rtx-3060").note == ""


def test_an_installed_package_finds_its_own_targets_and_no_neighbour_s(tmp_path: Path) -> None:
    package = Path(targets.__file__).parent
    site = tmp_path / "site-packages"
    shutil.copytree(package, site / "edgekit", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(package.parent / "targets", site / "edgekit" / "_targets")
    (site / "targets").mkdir()
    (site / "targets" / "stranger.toml").write_text("")
    code = "from edgekit.targets import load_target, target_names; print(*target_names())"
    code += "; load_target('jetson-nano')"  # which extends a file of a folder below
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(site)},
    )  # fmt: skip
    assert tuple(done.stdout.split()) == target_names()


def test_targets_are_read_without_numpy_or_onnx() -> None:
    code = "import sys, edgekit.targets; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"numpy", "onnx", "onnx_ir", "onnxruntime", "torch"} & set(done.stdout.split())
