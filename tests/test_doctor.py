"""`edgekit doctor`: good, missing or wrong, with the command that mends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit import doctor
from edgekit.doctor import State, nvidia, packages, resources
from edgekit.doctor.finding import named
from edgekit.errors import InputError

PARTS = {part.module: part for part in packages.PARTS}


def distribution(site: Path, name: str, version: str) -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def module(site: Path, name: str, code: str = "") -> None:
    (site / name).mkdir(parents=True)
    (site / name / "__init__.py").write_text(code)


def tool(folder: Path, name: str, body: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / name
    place.write_text(f"#!/bin/sh\n{body}\n")
    place.chmod(0o755)
    return place


RELEASE = "# R36 (release), REVISION: 4.3, GCID: 1"


def orin(root: Path, *, l4t: str = RELEASE, tensorrt: str = "10.3.0.30") -> Path:
    tree = root / "proc" / "device-tree"
    tree.mkdir(parents=True)
    (tree / "compatible").write_bytes(b"nvidia,p3768-0000+p3767-0003\0nvidia,tegra234\0")
    (tree / "model").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    (tree / "nvidia,boardids").write_bytes(b"p3767-0003\0")
    (root / "etc").mkdir()
    (root / "etc" / "nv_tegra_release").write_text(l4t)
    status = root / "var" / "lib" / "dpkg" / "status"
    status.parent.mkdir(parents=True)
    package = f"libnvinfer{tensorrt.partition('.')[0]}"
    status.write_text(
        f"Package: {package}\nStatus: install ok installed\nVersion: {tensorrt}-1+cuda12.5\n"
    )
    return root


def run(*options: str, site: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = {"PYTHONPATH": str(site)} if site is not None else {}
    return subprocess.run(
        [sys.executable, "-m", "edgekit.cli", "doctor", *options], capture_output=True, text=True,
        check=False, env={**os.environ, **path},
    )  # fmt: skip


def finding(done: subprocess.CompletedProcess[str], name: str) -> dict[str, str]:
    found = json.loads(done.stdout)["findings"]
    return next(one for one in found if one["name"] == name)


def test_every_line_is_good_or_says_what_mends_it() -> None:
    found = doctor.examine()
    assert found.exit_code == 0
    assert {"python", "onnxruntime", "GPU", "trtexec", "memory", "current folder"} <= {
        one.name for one in found.findings
    }
    for one in found.findings:
        assert one.purpose
        assert bool(one.remedy) == (one.state is not State.GOOD), one


def test_two_onnxruntimes_at_once_are_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(tmp_path, "onnxruntime-gpu", "1.20.1")
    monkeypatch.syspath_prepend(tmp_path)
    found = packages.examined(PARTS["onnxruntime"], floors={}, error="")
    assert found.state is State.WRONG
    assert "onnxruntime-gpu 1.20.1" in found.found
    assert found.remedy == ("pip uninstall -y onnxruntime onnxruntime-gpu; pip install onnxruntime")


@pytest.mark.parametrize(
    ("version", "state"),
    [("1.9.0", State.WRONG), ("1.19.2", State.WRONG), ("1.20.0", State.GOOD), ("2.0", State.GOOD)],
)
def test_a_package_older_than_edgekit_asks_for_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str, state: State
) -> None:
    distribution(tmp_path, "openvino", version)
    module(tmp_path, "openvino")
    monkeypatch.syspath_prepend(tmp_path)
    found = packages.examined(PARTS["openvino"], floors={"openvino": "1.20"}, error="")
    assert (found.state, found.found) == (state, version)
    assert ("openvino>=1.20" in found.remedy) == (state is State.WRONG)


def test_a_folder_that_an_uninstallation_left_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "left_over").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    part = packages.Part(module="left_over", distributions=("left-over",), purpose="a test")
    found = packages.examined(part, floors={}, error="")
    assert found.state is State.WRONG
    assert "--force-reinstall" in found.remedy


def test_a_package_whose_libraries_do_not_load_is_wrong(tmp_path: Path) -> None:
    distribution(tmp_path, "tensorrt", "10.3.0")
    module(
        tmp_path, "tensorrt",
        "raise ImportError('libnvinfer.so.10: cannot open shared object file')",
    )  # fmt: skip
    done = run("--json", site=tmp_path)
    assert done.returncode == 0
    found = finding(done, "tensorrt")
    assert found["state"] == "wrong"
    assert found["found"].startswith("10.3.0; its import fails: ")
    assert "libnvinfer.so.10" in found["found"]
    assert "libnvinfer" in found["remedy"]
    assert json.loads(done.stdout)["summary"].startswith("wrong: tensorrt")


def test_a_package_that_crashes_is_wrong_and_the_doctor_lives(tmp_path: Path) -> None:
    distribution(tmp_path, "pycuda", "2024.1")
    module(tmp_path, "pycuda", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    found = finding(run("--json", site=tmp_path), "pycuda")
    assert found["state"] == "wrong"
    assert "it ended with code -11" in found["found"]


@pytest.mark.parametrize("place", ["/proc", "/proc/nowhere", __file__])
def test_a_folder_that_takes_no_file_is_wrong(place: str) -> None:
    found = resources.folder_finding("here", Path(place), "builds", "edgekit build -o FOLDER")
    assert found.state is State.WRONG
    assert found.found.startswith(place)
    assert "edgekit build -o FOLDER" in found.remedy


def test_a_driver_that_answers_nothing_is_wrong_and_an_absent_one_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert named(nvidia.findings(tmp_path), "GPU").state is State.MISSING
    tool(tmp_path, "nvidia-smi", "echo NVIDIA-SMI has failed; exit 9")
    assert named(nvidia.findings(tmp_path), "GPU").state is State.WRONG
    tool(tmp_path, "nvidia-smi", "echo 'Tesla T4, 7.5, 550.54.14'")
    found = named(nvidia.findings(tmp_path), "GPU")
    assert found.state is State.GOOD
    assert found.found == "Tesla T4, compute capability 7.5, driver 550.54.14"


def test_a_jetsons_lines_are_read_from_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool(tmp_path / "bin", "nvpmodel", "printf 'NV Power Mode: 15W\\n0\\n'")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    root = orin(tmp_path / "root")
    tool(root / "usr" / "src" / "tensorrt" / "bin", "trtexec", "")
    found = nvidia.findings(root)
    assert {one.name: one.found for one in found}.items() >= {
        "JetPack": "6.2 (L4T 36.4.3)",
        "TensorRT libraries": "10.3.0.30",
        "power mode": "15W",
        "trtexec": str(root / "usr" / "src" / "tensorrt" / "bin" / "trtexec"),
    }.items()
    assert named(found, "GPU").found.endswith("compute capability 8.7")
    assert named(nvidia.findings(orin(tmp_path / "2", l4t="# R99")), "JetPack").state is State.WRONG


def test_a_jetson_in_the_wrong_mode_is_told_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = orin(tmp_path)
    (root / "etc" / "nvpmodel.conf").write_text("< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n")
    tool(tmp_path / "bin", "nvpmodel", "printf 'NV Power Mode: 15W\\n0\\n'")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")
    found = doctor.examine("jetson-orin-nano-8gb", root=root).findings
    mode, clocks = [finding for finding in found if finding.name == "conditions"]
    assert (mode.state, mode.found) == (State.WRONG, "the power mode: 15W")
    assert mode.remedy == "sudo nvpmodel -m 2"
    assert clocks.state is State.MISSING
    assert "wants root" in clocks.found


def test_the_cpu_can_be_built_for_and_a_jetson_only_on_itself() -> None:
    cpu = run("--target", "cpu", "--json")
    assert cpu.returncode == 0, cpu.stdout
    assert next(one["name"] for one in json.loads(cpu.stdout)["needed"]) == "onnxruntime"
    jetson = run("--target", "jetson-orin-nano-8gb")
    assert jetson.returncode == 5
    assert "Traceback" not in jetson.stderr
    assert "edgekit build --from FOLDER" in jetson.stderr
    assert "cannot be built here" in jetson.stderr


def test_a_target_is_buildable_on_its_own_device_with_its_own_tensorrt(tmp_path: Path) -> None:
    root = orin(tmp_path / "right")
    tool(root / "usr" / "src" / "tensorrt" / "bin", "trtexec", "")
    found = doctor.examine("jetson-orin-nano-8gb", root=root)
    assert (named(found.needed, "device").state, named(found.needed, "TensorRT").state) == (
        State.GOOD, State.GOOD,
    )  # fmt: skip
    assert found.exit_code == 0


def test_another_tensorrt_than_the_targets_is_wrong(tmp_path: Path) -> None:
    root = orin(tmp_path, l4t="# R36 (release), REVISION: 3.0, GCID: 1", tensorrt="8.6.2.3")
    tool(root / "usr" / "src" / "tensorrt" / "bin", "trtexec", "")
    found = doctor.examine("jetson-orin-nano-8gb", root=root)
    line = named(found.needed, "TensorRT")
    assert (line.state, found.exit_code) == (State.WRONG, 5)
    assert "jetson-orin-nano-8gb@6.0" in line.remedy


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(InputError, match="no target called"):
        doctor.examine("jetson-orin-nana")
