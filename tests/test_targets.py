"""Devices as data, found from the checkout; and what this machine is."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.errors import InputError
from edgekit.targets import (
    detect_machine,
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
