"""What a machine says of itself, read from captured files and output."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgekit import board
from edgekit.engines import here

ORIN_COMPATIBLE = b"nvidia,p3767-0003\0nvidia,p3768-0000+p3767-0003\0nvidia,tegra234\0"
ORIN_RELEASE = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, "
    "DATE: Wed Jan  8 01:49:37 UTC 2025\n# KERNEL_VARIANT: oot\n"
)
DPKG = """Package: nvidia-l4t-core
Status: install ok installed
Version: 36.4.3-20250107174145

Package: libnvinfer10
Status: install ok installed
Version: 10.3.0.30-1+cuda12.5

Package: nvidia-jetpack
Status: deinstall ok config-files
Version: 9.9+b1
"""


def written(root: Path, **files: bytes | str) -> Path:
    for name, content in files.items():
        place = root / name.replace("__", "/").replace("dt/", "proc/device-tree/")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def tool(folder: Path, name: str, body: str) -> None:
    place = folder / name
    place.write_text(f"#!/bin/sh\n{body}\n")
    place.chmod(0o755)


def orin(root: Path) -> Path:
    return written(
        root, dt__compatible=ORIN_COMPATIBLE, dt__model=b"NVIDIA Jetson Orin Nano Developer Kit\0",
        etc__nv_tegra_release=ORIN_RELEASE, var__lib__dpkg__status=DPKG,
    )  # fmt: skip


def test_a_jetson_is_read_from_its_files(tmp_path: Path) -> None:
    root = orin(tmp_path)
    assert board.is_tegra(root)
    assert board.soc_name(root) == "tegra234"
    assert board.board_numbers(root) == ("p3767-0003", "p3768-0000")
    assert (board.l4t_version(root), board.jetpack_version(root)) == ("36.4.3", "6.2")
    assert board.libnvinfer_version(root) == "10.3.0.30"


def test_without_the_release_file_dpkg_knows_l4t(tmp_path: Path) -> None:
    root = orin(tmp_path)
    (root / "etc" / "nv_tegra_release").unlink()
    assert board.l4t_version(root) == "36.4.3"


def test_a_package_that_was_removed_is_not_there(tmp_path: Path) -> None:
    assert board.debian_version("nvidia-jetpack", orin(tmp_path)) == ""


@pytest.mark.parametrize(
    ("line", "l4t", "jetpack"),
    [
        ("# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref", "32.7.1", "4.6.1"),
        ("# R35 (release), REVISION: 5.0, GCID: 35550185, BOARD: t186ref", "35.5.0", "5.1.3"),
        ("# R36 (release), REVISION: 3.0, GCID: 36923193, BOARD: generic", "36.3.0", "6.0"),
        ("# R38 (release), REVISION: 2, GCID: 1, BOARD: generic", "38.2.0", "7.0"),
        ("# R99 (release), REVISION: 1.0, GCID: 1, BOARD: generic", "99.1.0", ""),
        ("what is this", "", ""),
    ],
)
def test_a_release_line_gives_l4t_and_its_jetpack(
    tmp_path: Path, line: str, l4t: str, jetpack: str
) -> None:
    root = written(tmp_path, etc__nv_tegra_release=line)
    assert (board.l4t_version(root), board.jetpack_version(root)) == (l4t, jetpack)


def test_an_empty_root_knows_nothing(tmp_path: Path) -> None:
    assert not board.is_tegra(tmp_path)
    assert board.model_name(tmp_path) == board.soc_name(tmp_path) == ""
    assert board.l4t_version(tmp_path) == board.jetpack_version(tmp_path) == ""
    assert board.cuda_version(tmp_path) == board.libnvinfer_version(tmp_path) == ""


def test_cuda_is_read_from_either_of_its_files(tmp_path: Path) -> None:
    folder = tmp_path / "usr" / "local" / "cuda"
    folder.mkdir(parents=True)
    (folder / "version.txt").write_text("CUDA Version 10.2.300\n")
    assert board.cuda_version(tmp_path) == "10.2.300"
    (folder / "version.json").write_text('{"cuda": {"name": "CUDA SDK", "version": "12.6.68"}}')
    assert board.cuda_version(tmp_path) == "12.6.68"
    (folder / "version.json").write_text("[]")
    assert board.cuda_version(tmp_path) == "10.2.300"


def test_gpus_are_what_nvidia_smi_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = "NVIDIA GeForce RTX 3060, 8.6, 550.54.14\nTesla T4, 7.5, 550.54.14"
    tool(tmp_path, "nvidia-smi", f"printf '{lines}'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert [gpu.compute_capability for gpu in board.gpus()] == ["8.6", "7.5"]
    assert board.gpus()[0] == board.Gpu(
        name="NVIDIA GeForce RTX 3060", compute_capability="8.6", driver="550.54.14"
    )


@pytest.mark.parametrize(
    "body",
    ["echo 'NVIDIA-SMI has failed because it could not communicate with the driver'; exit 9",
     "echo 'No devices were found'", "echo 'a, [N/A], b'", "kill -9 $$"],
)  # fmt: skip
def test_a_tool_that_fails_knows_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    tool(tmp_path, "nvidia-smi", body)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert board.gpus() == ()


def test_a_tool_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, "nvpmodel", "exec sleep 30")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert board.tool_output(["nvpmodel", "-q"], seconds=0.2) == ""


def test_the_power_mode_goes_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool(tmp_path, "nvpmodel", "printf 'NV Power Mode: MAXN_SUPER\\n2\\n'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert board.power_mode() == "MAXN_SUPER"
    assert board.parse_power_mode("NVPM ERROR: permission denied") == ""


def test_the_facts_of_a_jetson_come_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(tmp_path, "nvpmodel", "printf 'NV Power Mode: 15W\\n0\\n'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    facts = here.facts_here(orin(tmp_path))
    assert facts.items() >= {
        "device": "NVIDIA Jetson Orin Nano Developer Kit", "soc": "tegra234",
        "compute_capability": "8.7", "tensorrt": "10.3.0.30", "l4t": "36.4.3", "jetpack": "6.2",
        "power_mode": "15W", "board": "p3767-0003 p3768-0000",
    }.items()  # fmt: skip
    assert "driver" not in facts


def test_what_is_not_known_is_no_fact() -> None:
    assert all(here.facts_here().values())
    assert {"machine", "system", "cores", "onnxruntime"} <= here.facts_here().keys()


def test_the_facts_cost_no_heavy_import() -> None:
    code = (
        "import sys; from edgekit.engines.here import facts_here; facts_here(); "
        "print(sorted({'onnxruntime', 'torch', 'tensorrt_rtx', 'onnx', 'pydantic', 'openvino'} "
        "& set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
