"""What a machine is recognised as, from the files that several boards have."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edgekit.board import Gpu
from edgekit.cli import app
from edgekit.report import profiles
from edgekit.targets import detect_machine, load_target, resolve_target

R36_4_3 = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: x\n"
R32_7_1 = "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64, DATE: x\n"
R32_6_1 = R32_7_1.replace("7.1", "6.1")
R38_2_0 = R36_4_3.replace("R36", "R38").replace("4.3", "2.0")
DPKG_36_3 = (
    "Package: nvidia-l4t-core\nStatus: install ok installed\nArchitecture: arm64\n"
    "Version: 36.3.0-20240506102626\n\n"
)
PI_5 = (
    "processor\t: 0\nFeatures\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp "
    "cpuid asimdrdm lrcpc dcpop asimddp\nCPU part\t: 0xd0b\n"
)
EPYC = "processor\t: 0\nmodel name\t: AMD EPYC 7B13\nflags\t\t: fpu sse2 avx avx2 fma {more}\n"


def tree(root: Path, release: str = "", dpkg: str = "", cpuinfo: str = "", **files: str) -> Path:
    """A machine's files: of its device tree, its release, its packages and its processor."""
    folder = root / "proc" / "device-tree"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name.replace("__", ",")).write_bytes(content.encode() + b"\0")
    if cpuinfo:
        (root / "proc" / "cpuinfo").write_text(cpuinfo)
    if release:
        (root / "etc").mkdir()
        (root / "etc" / "nv_tegra_release").write_text(release)
    if dpkg:
        (root / "var" / "lib" / "dpkg").mkdir(parents=True)
        (root / "var" / "lib" / "dpkg" / "status").write_text(dpkg)
    return root


@pytest.mark.parametrize(
    ("files", "target", "jetpack"),
    [
        (
            {"model": "NVIDIA Jetson Nano Developer Kit", "release": R32_7_1,
             "compatible": "nvidia,p3449-0000-b00\0nvidia,p3448-0000-b00\0nvidia,jetson-nano\0"
             "nvidia,tegra210"},
            "jetson-nano", "4.6.1",
        ),
        (
            {"model": "quill", "compatible": "nvidia,quill\0nvidia,tegra186",
             "nvidia__dtsfilename": "/dvs/dts/tegra186-quill-p3310-1000-c03-00-base.dts"},
            "jetson-tx2", "",
        ),
        (
            {"model": "NVIDIA Jetson Xavier NX Developer Kit",
             "compatible": "nvidia,p3509-0000+p3668-0001\0nvidia,tegra194",
             "nvidia__boardids": "p3668-0003"},
            "jetson-xavier-nx-16gb", "",
        ),
        (
            {"model": "Jetson AGX Xavier", "compatible": "nvidia,p2972-0000\0nvidia,tegra194",
             "nvidia__dtsfilename": "/dts/tegra194-p2888-0004-p2822-0000.dts"},
            "jetson-agx-xavier-32gb", "",
        ),
        (
            {"model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
             "compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0"
             "nvidia,tegra234", "release": R36_4_3},
            "jetson-orin-nano-8gb", "6.2",
        ),
        (
            {"model": "NVIDIA Jetson Orin Nano Developer Kit", "dpkg": DPKG_36_3,
             "compatible": "nvidia,p3768-0000+p3767-0004\0nvidia,tegra234"},
            "jetson-orin-nano-4gb", "6.0",
        ),
        (
            {"model": "NVIDIA Jetson AGX Orin Developer Kit",
             "compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234"},
            "jetson-agx-orin-64gb", "",
        ),
        (
            {"model": "NVIDIA Jetson AGX Thor Developer Kit", "release": R38_2_0,
             "compatible": "nvidia,p4071-0000+p3834-0008\0nvidia,tegra264"},
            "jetson-agx-thor", "7.0",
        ),
    ],
    ids=["nano", "tx2", "xavier-nx", "agx-xavier", "orin-nano-8", "orin-nano-4", "orin", "thor"],
)  # fmt: skip
def test_a_jetson_is_known_by_its_modules_number(
    tmp_path: Path, files: dict[str, str], target: str, jetpack: str
) -> None:
    machine = detect_machine(root=tree(tmp_path, **files))
    assert (machine.target, machine.family, machine.jetpack) == (target, "jetson", jetpack)
    assert files["model"] in machine.evidence
    assert [seen.target for seen in machine.seen] == [target, "cpu"]


ORIN_NANO = "nvidia,p3768-0000+p3767-0003\0nvidia,tegra234"


def test_the_familys_name_means_the_jetpack_that_the_device_has(tmp_path: Path) -> None:
    root = tree(tmp_path, model="Orin Nano", compatible=ORIN_NANO, dpkg=DPKG_36_3)
    found = resolve_target("jetson", root=root)
    assert found.target == load_target("jetson-orin-nano-8gb@6.0")
    assert "JetPack 6.0" in found.note
    assert resolve_target("jetson@6.2", root=root).target.runtime.jetpack == "6.2"


def test_a_jetpack_that_the_file_does_not_know_is_said(tmp_path: Path) -> None:
    root = tree(tmp_path, model="Nano", compatible="nvidia,p3448-0000\0nvidia,tegra210",
                release=R32_6_1)  # fmt: skip
    found = resolve_target("jetson", root=root)
    assert found.target.runtime.jetpack == "4.6.1"
    assert "JetPack 4.6)" in found.note
    assert "knows no such JetPack" in found.note


def test_an_unknown_module_says_what_was_seen_and_how_to_write_its_profile(
    tmp_path: Path,
) -> None:
    root = tree(tmp_path, model="Jetson AGX Xavier Industrial", release=R36_4_3,
                compatible="nvidia,p2888-0008\0nvidia,tegra194")  # fmt: skip
    listing = profiles.listing(root=root)
    assert listing.machine.target == ""
    said = "\n".join(listing.notes())
    for part in ("Jetson AGX Xavier Industrial", "p2888-0008", "JetPack 6.2", "extends",
                 "p_numbers", "jetson-agx-xavier-32gb"):  # fmt: skip
        assert part in said
    assert "jetson-orin" not in said


def test_a_raspberry_pi_is_known_by_its_model(tmp_path: Path) -> None:
    root = tree(tmp_path, model="Raspberry Pi 5 Model B Rev 1.0", cpuinfo=PI_5,
                compatible="raspberrypi,5-model-b\0brcm,bcm2712")  # fmt: skip
    machine = detect_machine(root=root, gpus=())
    assert [seen.target for seen in machine.seen] == ["cpu", "raspberry-pi-5"]
    assert resolve_target("raspberry-pi-5", root=root).target.runtime.build == "here"
    assert resolve_target("raspberry-pi-4", root=root).target.runtime.build == "device"


@pytest.mark.parametrize(
    ("more", "target"),
    [("", "x86-avx2"), ("avx512f avx512_vnni", "x86-vnni"), ("avx_vnni", "x86-vnni")],
)
def test_a_processor_is_known_by_its_flags(tmp_path: Path, more: str, target: str) -> None:
    root = tree(tmp_path, cpuinfo=EPYC.format(more=more))
    machine = detect_machine(root=root, gpus=())
    assert [seen.target for seen in machine.seen] == ["cpu", target]
    assert "AMD EPYC 7B13" in machine.evidence
    there = resolve_target(target, root=root).target
    assert there.runtime.build == "here"
    other = ({"x86-avx2", "x86-vnni"} - {target}).pop()
    assert resolve_target(other, root=root).target.runtime.build == "device"


def test_a_processor_without_avx2_is_none_of_the_profiles(tmp_path: Path) -> None:
    root = tree(tmp_path, cpuinfo=EPYC.format(more="").replace(" avx2", ""))
    assert [seen.target for seen in detect_machine(root=root, gpus=()).seen] == ["cpu"]


def gpu(name: str, capability: str) -> Gpu:
    return Gpu(name=name, compute_capability=capability, driver="535.183.01")


def test_graphics_cards_are_known_by_name_and_compute_capability(tmp_path: Path) -> None:
    cards = (gpu("NVIDIA GeForce RTX 4090", "8.9"), gpu("NVIDIA H100 PCIe", "9.0"))
    machine = detect_machine(root=tmp_path, gpus=cards)
    assert [seen.target for seen in machine.seen] == ["cpu", "rtx-4090"]
    assert len(machine.unknown) == 1
    assert "H100" in machine.unknown[0]
    assert machine.target == "cpu"


def test_a_name_with_another_compute_capability_is_another_card(tmp_path: Path) -> None:
    machine = detect_machine(root=tmp_path, gpus=[gpu("NVIDIA GeForce RTX 4090", "8.6")])
    assert [seen.target for seen in machine.seen] == ["cpu"]


def test_the_listing_marks_the_card_that_nvidia_smi_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        '#!/bin/sh\ntest "$1 $2" = "--query-gpu=name,compute_cap,driver_version '
        '--format=csv,noheader" || exit 9\necho "NVIDIA GeForce RTX 3060, 8.6, 550.54.14"\n'
    )
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    done = CliRunner().invoke(app, ["targets", "--json"])
    assert done.exit_code == 0
    found = json.loads(done.stdout)
    evidence = {seen["target"]: seen["evidence"] for seen in found["seen"]}
    assert evidence["rtx-3060"] == "NVIDIA GeForce RTX 3060, compute capability 8.6, " + (
        "driver 550.54.14"
    )
    assert found["here"] == "cpu"
    assert len(found["targets"]) >= 30
