"""The targets that edgekit ships, against NVIDIA's tables: rates, JetPacks, precisions, sources."""

from __future__ import annotations

import pytest

from edgekit import board, machine
from edgekit.engines.here import CAPABILITY_OF_SOC
from edgekit.engines.trtexec.flags import generation_of
from edgekit.quantize.dialects import DIALECTS, dialect_named
from edgekit.targeting import files
from edgekit.targeting.inheritance import figures
from edgekit.targeting.jetpack import jetpack_of_release, settled, version_key
from edgekit.targets import JetPack, Target, load_target, target_names, targets_with_dla

ALL = tuple(map(load_target, target_names()))
JETSONS = tuple(target for target in ALL if target.family == "jetson")
NAMED = pytest.mark.parametrize("target", ALL, ids=lambda target: target.name)

WANTED = {
    "jetson-nano", "jetson-tx2", "jetson-tx2-nx", "jetson-xavier-nx-8gb", "jetson-xavier-nx-16gb",
    "jetson-agx-xavier-32gb", "jetson-agx-xavier-64gb", "jetson-orin-nano-4gb",
    "jetson-orin-nano-8gb", "jetson-orin-nx-8gb", "jetson-orin-nx-16gb", "jetson-agx-orin-32gb",
    "jetson-agx-orin-64gb", "jetson-agx-thor", "jetson-t4000", "t4", "l4", "a2", "rtx-3060",
    "rtx-4060", "rtx-4090", "rtx-a2000", "dgx-spark", "raspberry-pi-4", "raspberry-pi-5",
    "x86-avx2", "x86-vnni", "cpu",
}  # fmt: skip

# JetPack: its TensorRT and CUDA, the first Orin, Xavier or other that it runs on left aside.
TENSORRT_OF = {
    "4.6.1": ("8.2", "10.2"), "5.1": ("8.5", "11.4"), "5.1.1": ("8.5", "11.4"),
    "6.0": ("8.6", "12.2"), "6.1": ("10.3", "12.6"), "6.2": ("10.3", "12.6"),
    "7.0": ("10.13", "13.0"), "7.1": ("10.13", "13.0"), "7.2": ("10.16", "13.2"),
}  # fmt: skip
# What a chip's JetPacks begin with.
RELEASES = {
    "tegra210": {"4"}, "tegra186": {"4"}, "tegra194": {"4", "5"}, "tegra234": {"5", "6", "7"},
    "tegra264": {"7"},
}  # fmt: skip
OPSET_AT_MOST = {"8.2": 13, "8.5": 16, "8.6": 17, "10.3": 20, "10.13": 22, "10.16": 24}
# Operations an SM and clock: dense, by NVIDIA's descriptions of each generation's tensor cores.
PER_CLOCK = {
    "7.2": (1024, 2048), "7.5": (1024, 2048), "8.6": (1024, 2048), "8.9": (1024, 2048),
    "8.7": (2048, 4096),
}  # fmt: skip


PACKS = [(target, name, pack) for target in JETSONS for name, pack in target.jetpacks.items()]


def document_of(target: Target) -> tuple[set[str], set[str], set[str]]:
    """The figures of a target's files together, those with a source, and those with a mark."""
    layer, _ = files.read_file(files.shipped_files()[target.name])
    found = settled(layer)
    return set(figures(found.values)), set(found.sources), set(found.unverified)


def test_every_device_of_the_tables_has_a_file() -> None:
    assert set(target_names()) >= WANTED


@NAMED
def test_every_figure_has_a_source_and_no_source_is_of_nothing(target: Target) -> None:
    given, sourced, marked = document_of(target)
    assert given - sourced == set()
    assert sourced - given == set()
    assert marked - given == set()
    assert set(target.sources) == sourced
    assert set(target.unverified) == marked


@NAMED
def test_what_a_source_calls_unverified_is_marked(target: Target) -> None:
    for place, said in target.sources.items():
        if said.lower().startswith("unverified"):
            assert place in target.unverified, place


@NAMED
def test_a_targets_rates_are_those_of_its_units_and_its_clock(target: Target) -> None:
    clock = target.gpu.hz
    if target.power_mode:
        clock = target.power_modes[target.power_mode].gpu_hz
    if not target.peak:
        return
    assert clock is not None
    assert target.gpu.sms is not None
    assert target.gpu.cores is not None
    wanted = {"fp32": 2 * target.gpu.cores * clock}
    if target.compute_capability in PER_CLOCK:
        fp16, int8 = PER_CLOCK[target.compute_capability]
        wanted |= {"fp16": fp16 * target.gpu.sms * clock, "int8": int8 * target.gpu.sms * clock}
    elif target.compute_capability in ("5.3", "6.2"):
        wanted["fp16"] = 4 * target.gpu.cores * clock  # twice FP32: there are no tensor cores
    for precision, rate in target.peak.items():
        if precision in wanted:
            assert rate == pytest.approx(wanted[precision], rel=0.02), precision
        else:
            assert f"peak.{precision}" in target.unverified


@pytest.mark.parametrize(
    ("name", "mode", "tops"),
    # NVIDIA's datasheets, dense INT8 of the GPU alone.
    [
        ("jetson-orin-nano-8gb", "MAXN_SUPER", 33), ("jetson-orin-nano-8gb", "15W", 20.5),
        ("jetson-orin-nano-4gb", "MAXN_SUPER", 17), ("jetson-orin-nx-16gb", "MAXN", 30.1),
        ("jetson-orin-nx-8gb", "MAXN", 25.1), ("jetson-orin-nx-16gb", "MAXN_SUPER", 38.4),
        ("jetson-agx-orin-64gb", "MAXN", 85), ("jetson-agx-orin-64gb", "50W", 54.5),
        ("jetson-agx-orin-32gb", "MAXN", 54),
    ],
)  # fmt: skip
def test_a_power_modes_rate_is_the_datasheets(name: str, mode: str, tops: float) -> None:
    assert load_target(name).power_modes[mode].peak["int8"] == pytest.approx(tops * 1e12, rel=0.02)


def test_no_mode_of_a_device_is_faster_than_the_one_that_its_peak_is_of() -> None:
    for target in JETSONS:
        for mode in target.power_modes.values():
            for precision, rate in mode.peak.items():
                assert rate <= target.peak[precision]


@pytest.mark.parametrize(
    ("target", "name", "pack"), PACKS, ids=[f"{target.name}@{name}" for target, name, _ in PACKS]
)
def test_a_jetpack_brings_the_tensorrt_that_it_brings(
    target: Target, name: str, pack: JetPack
) -> None:
    assert (pack.version, pack.cuda) == TENSORRT_OF[name]
    assert name.partition(".")[0] in RELEASES[target.identity.soc]
    assert pack.opset <= OPSET_AT_MOST[pack.version]
    assert pack.drives_dla == generation_of(pack.version).has_dla
    assert pack.dialect == dialect_named("tensorrt", version=pack.version).name
    chosen = load_target(f"{target.name}@{name}")
    assert (chosen.runtime.version, chosen.runtime.opset) == (pack.version, pack.opset)
    assert (chosen.runtime.jetpack, chosen.runtime.build) == (name, "device")
    assert chosen.profile == target.name


def test_every_release_of_a_jetpack_that_devices_report_is_known_or_too_old() -> None:
    known = {name for target in JETSONS for name in target.jetpacks}
    without = {j for j in board.JETPACK_OF_L4T.values() if not jetpack_of_release(known, j)}
    # TensorRT 8.0 is too old, and which one 5.0.2 has is unverified.
    assert without == {"4.6", "5.0.2"}


def test_super_modes_come_with_jetpack_6_2() -> None:
    for target in JETSONS:
        for name, mode in target.power_modes.items():
            if "SUPER" in name:
                assert mode.since == "6.2"
        for name in target.jetpacks:
            chosen = load_target(f"{target.name}@{name}")
            mode_of = target.power_modes.get(chosen.power_mode)
            if mode_of is not None and mode_of.since:
                assert version_key(name) >= version_key(mode_of.since)


def test_without_super_an_orin_nano_has_the_slower_modes_figures() -> None:
    slow = load_target("jetson-orin-nano-8gb@6.0")
    assert slow.power_mode == "15W"
    assert slow.peak["int8"] == pytest.approx(20.5e12, rel=0.02)
    assert slow.memory is not None
    assert slow.memory.bandwidth_bytes_per_s == 68e9
    assert "peak.int8" in slow.unverified
    assert "625" not in slow.sources["peak.int8"]
    assert load_target("jetson-orin-nano-8gb@6.2") == load_target("jetson-orin-nano-8gb")


def test_only_chips_with_int8_units_have_int8() -> None:
    for target in JETSONS:
        assert ("int8" in target.precisions) == (target.compute_capability not in ("5.3", "6.2"))
        assert target.compute_capability == CAPABILITY_OF_SOC[target.identity.soc]


def test_dlas_are_in_xavier_and_in_orin_nx_and_agx() -> None:
    assert set(targets_with_dla()) == {
        "jetson-xavier-nx-8gb", "jetson-xavier-nx-16gb", "jetson-agx-xavier-32gb",
        "jetson-agx-xavier-64gb", "jetson-orin-nx-8gb", "jetson-orin-nx-16gb",
        "jetson-agx-orin-32gb", "jetson-agx-orin-64gb", "jetson-agx-orin-devkit",
    }  # fmt: skip
    assert load_target("jetson-orin-nx-8gb").dla.cores == 1


@NAMED
def test_a_targets_dialect_and_flags_are_ones_that_exist(target: Target) -> None:
    assert target.runtime.dialect in {*DIALECTS, "onnxruntime"}
    assert {*target.identity.cpu_flags, *target.identity.missing_flags} <= set(machine.FLAGS)
    assert set(target.multiple) >= set(target.precisions)
    assert set(target.peak) <= set(target.precisions)


def test_no_two_devices_are_recognised_by_the_same_thing() -> None:
    for what in ("p_numbers", "gpu_names", "models"):
        known = [text for target in ALL for text in getattr(target.identity, what)]
        assert len(known) == len(set(known)), what


def test_a_devices_memory_is_at_most_what_its_name_says() -> None:
    for target in ALL:
        size = target.name.rpartition("-")[2]
        if size.endswith("gb"):
            assert target.memory is not None
            assert target.memory.bytes is not None
            assert 0.8 < target.memory.bytes / (int(size[:-2]) << 30) <= 1
