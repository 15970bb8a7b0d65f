"""A target's conditions against stand-ins of devices, and a whole build in the wrong power mode."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RESIDUAL_RECIPE, write_samples
from device_stand_in import FREE, MODES, PINNED, Device, NvmlLibrary, stand_in

from edgekit.bench.attended import Site, attended, site_of
from edgekit.bench.conditions import Judged, check_conditions, check_start, mode_command
from edgekit.bench.device_state import read_state
from edgekit.bench.measurement import continued, from_json, load_measurements, to_json
from edgekit.bench.telemetry import Watch
from edgekit.bench.telemetry_report import Part, Series, TelemetryReport
from edgekit.pipeline.build import BuildRequest, build
from edgekit.targets import Target, load_target
from edgekit.values import Measurement, Unknown, Verdict


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Device:
    return stand_in(tmp_path, monkeypatch)


def declaring(tmp_path: Path, conditions: str) -> Target:
    """A target of its own that declares these conditions."""
    path = tmp_path / "board.toml"
    path.write_text(
        f'name = "board"\ntitle = "a board"\nextends = "cpu"\n[conditions]\n{conditions}'
    )
    return load_target(str(path))


def watched(
    device: Device, during: Callable[[], None] = lambda: None, **seen: Any
) -> TelemetryReport:
    with Watch(root=device.root, interval_s=0.02, gpu_library=NvmlLibrary()) as watch:
        during()
    return replace(watch.finished(), **seen)


def broken(judged: Judged) -> list[tuple[str, str, str]]:
    return [(one.when, one.what, one.got) for one in judged.broken]


# By what a device shows.


def test_the_right_mode_by_another_spelling_is_kept(device: Device, tmp_path: Path) -> None:
    device.says("nvpmodel", "NV Power Mode: MODE_15W\n1\n")
    assert check_conditions(declaring(tmp_path, 'power_mode = "15W"'), watched(device)) == Judged()


def test_the_wrong_mode_is_named_with_the_command_that_mends_it(
    device: Device, tmp_path: Path
) -> None:
    device.write("etc/nvpmodel.conf", MODES)
    device.write("var/lib/nvpmodel/status", "pmode:0001")
    judged = check_conditions(declaring(tmp_path, 'power_mode = "30W"'), watched(device))
    (found,) = judged.broken
    assert (found.when, found.got, found.wanted) == ("before", "MODE_15W", "30W")
    assert found.mend == "sudo nvpmodel -m 2"
    assert str(found) == (
        "the power mode before the run: MODE_15W, wanted 30W; sudo nvpmodel -m 2"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "modes", "command"),
    [
        ("MAXN_SUPER", {"15W": 0, "25W": 1, "MAXN_SUPER": 2}, "sudo nvpmodel -m 2"),
        ("15W", {"MAXN": 0, "MODE_15W": 1}, "sudo nvpmodel -m 1"),
        ("40W", {"MAXN": 0, "MODE_15W": 1}, "this device knows MAXN, MODE_15W only: name one"),
        ("40W", {}, "sudo nvpmodel -m ID, with the mode's ID from /etc/nvpmodel.conf"),
    ],
)
def test_an_id_is_looked_up_by_name(wanted: str, modes: dict[str, int], command: str) -> None:
    assert mode_command(wanted, modes).startswith(command)


def test_a_mode_that_changes_meanwhile_is_broken_after(device: Device, tmp_path: Path) -> None:
    device.write("etc/nvpmodel.conf", MODES)
    device.write("var/lib/nvpmodel/status", "pmode:0002")

    def changes() -> None:
        device.write("var/lib/nvpmodel/status", "pmode:0000")

    judged = check_conditions(declaring(tmp_path, 'power_mode = "30W"'), watched(device, changes))
    assert broken(judged) == [("after", "the power mode", "MAXN")]


def test_a_mode_that_nobody_tells_is_neither_kept_nor_broken(
    device: Device, tmp_path: Path
) -> None:
    judged = check_conditions(declaring(tmp_path, 'power_mode = "30W"'), watched(device))
    assert judged.broken == ()
    assert [str(one) for one in judged.unread] == [
        "the power mode before the run is not known: neither nvpmodel nor its files name a power "
        "mode"
    ]


@pytest.mark.parametrize(
    ("said", "expected"), [(PINNED, 0), (FREE, 1), (PINNED.replace("FreqOverride=1", ""), None)]
)
def test_clocks_are_pinned_or_not_or_not_known(
    device: Device, tmp_path: Path, said: str, expected: int | None
) -> None:
    device.says("jetson_clocks", said)
    judged = check_conditions(declaring(tmp_path, "clocks_pinned = true"), watched(device))
    if expected is None:
        assert len(judged.unread) == 1
        assert judged.broken == ()
        return
    assert judged.unread == ()
    assert [one.mend for one in judged.broken] == ["sudo jetson_clocks"] * expected


def clock(*hz: float) -> dict[str, Series]:
    at = tuple(map(float, range(len(hz))))
    return {"gpu_hz": Series(unit="Hz", source="tegrastats", at_s=at, values=hz)}


@pytest.mark.parametrize(
    ("hz", "fell"),
    [((1300e6, 1300e6), False), ((0.0, 1300e6, 0.0), False), ((1300e6, 1122e6), True)],
)
def test_a_pinned_clock_that_falls_is_broken(
    device: Device, tmp_path: Path, hz: tuple[float, ...], fell: bool
) -> None:
    device.says("jetson_clocks", PINNED)
    report = watched(device, series=clock(*hz))
    judged = check_conditions(declaring(tmp_path, "clocks_pinned = true"), report)
    assert broken(judged) == (
        [("during", "the GPU's clock", "1122 MHz at its lowest")] if fell else []
    )


def test_the_governor_is_that_of_every_cpu(device: Device, tmp_path: Path) -> None:
    target = declaring(tmp_path, 'governor = "performance"')
    assert check_conditions(target, watched(device)).unread[0].reason.endswith("no cpufreq")
    device.cpu(0, "performance")
    assert check_conditions(target, watched(device)) == Judged()
    device.cpu(1, "powersave")
    judged = check_conditions(target, watched(device))
    assert broken(judged) == [("before", "the CPUs' governor", "powersave")]
    assert judged.broken[0].mend.startswith("echo performance | sudo tee ")


def test_a_hot_start_is_broken_and_what_warms_up_is_not(device: Device, tmp_path: Path) -> None:
    target = declaring(tmp_path, "max_start_temperature_c = 50")
    assert len(check_conditions(target, watched(device)).unread) == 1
    device.zone(0, "cpu-thermal", "49900")
    judged = check_conditions(target, watched(device, lambda: device.zone(0, "cpu-thermal", "80")))
    assert judged == Judged()
    device.zone(1, "gpu-thermal", "50100")
    judged = check_start(target, read_state(device.root))
    assert broken(judged) == [("before", "the temperature", "50.1 C")]


@pytest.mark.parametrize(("load", "kept"), [(0.04, True), (0.05, True), (0.2, False)])
def test_the_load_of_others_has_a_limit(
    device: Device, tmp_path: Path, load: float, kept: bool
) -> None:
    target = declaring(tmp_path, "max_other_load = 0.05")
    judged = check_conditions(target, watched(device, other_load=load))
    assert (judged == Judged()) is kept
    unknown = check_conditions(target, watched(device, other_load=Unknown("why")))
    assert [one.reason for one in unknown.unread] == ["why"]


@pytest.mark.parametrize(
    ("slowed", "count", "unread"),
    [((), 0, 0), (("the CPU is throttled", "under-voltage"), 2, 0), (Unknown("no"), 0, 1)],
)
def test_a_device_that_was_slowed_down(
    device: Device, tmp_path: Path, slowed: tuple[str, ...] | Unknown, count: int, unread: int
) -> None:
    judged = check_conditions(
        declaring(tmp_path, "not_throttled = true"), watched(device, slowed=slowed)
    )
    assert (len(judged.broken), len(judged.unread)) == (count, unread)


def test_what_nothing_is_declared_of_is_as_it_likes(device: Device) -> None:
    device.says("nvpmodel", "NV Power Mode: MODE_15W\n1\n")
    device.says("jetson_clocks", FREE)
    device.zone(0, "cpu-thermal", "99000")
    report = watched(device, slowed=("the CPU is throttled",), other_load=1.0)
    assert check_conditions(load_target("cpu"), report) == Judged()


def test_a_broken_condition_is_in_the_measurement_and_on_the_disk(
    device: Device, tmp_path: Path
) -> None:
    device.says("nvpmodel", "NV Power Mode: MODE_15W\n1\n")
    target = declaring(tmp_path, 'power_mode = "MAXN"\nclocks_pinned = true')
    bare = Measurement(
        arm="a", quantity="latency", unit="s", samples=(0.01,) * 20, rounds=(0, 10), batch=1,
        taken_at=time.time(),
    )  # fmt: skip
    report = watched(device, slowed=("the CPU is throttled",))
    found = attended(bare, report, Site(target=target, root=device.root), Part(windows=[]))
    assert len(found.broken) == len(found.unchecked) == 1
    assert "the CPU is throttled" in found.doubts
    (readings,) = found.readings
    assert readings["before"]["power_mode"] == "MODE_15W"
    assert from_json(json.loads(json.dumps(to_json(found)))) == found


# What the shipped targets declare.


def test_orin_wants_its_profiles_mode_and_pinned_clocks() -> None:
    target = load_target("jetson-orin-nano-8gb")
    assert target.demanded_power_mode == target.power_mode == "MAXN_SUPER"
    assert target.conditions.clocks_pinned
    older = load_target("jetson-orin-nano-8gb@6.0")  # before Super
    assert older.demanded_power_mode == older.power_mode == "15W"


@pytest.mark.parametrize("name", ["jetson-xavier-nx-8gb", "jetson-tx2", "jetson-nano"])
def test_a_mode_whose_name_is_unverified_decides_nothing(name: str) -> None:
    assert load_target(name).demanded_power_mode == ""


def test_a_card_may_not_be_slowed_down() -> None:
    assert load_target("rtx-4060").conditions.not_throttled


def test_engines_do_not_depend_on_conditions(tmp_path: Path) -> None:
    with_some = declaring(tmp_path, "max_other_load = 0.05")
    assert "conditions" not in with_some.decides()


# A whole build.

RECIPE = (
    RESIDUAL_RECIPE
    + """
[engine]
precision = "fp32"
[gate]
min_fps = 1
[bench]
seconds = 0.2
rounds = 2
warmup_seconds = 0.02
[build]
targets = ["my-board"]
"""
)
BOARD = """
name = "my-board"
title = "my board"
extends = "cpu"
[conditions]
power_mode = "MAXN"
"""


@pytest.fixture
def project(residual_path: Path) -> Path:
    folder = residual_path.parent
    write_samples(folder, 16, np.arange(16) % 5)
    (folder / "targets").mkdir()
    (folder / "targets" / "my-board.toml").write_text(BOARD)
    (folder / "edgekit.toml").write_text(RECIPE)
    return folder


def test_a_build_in_the_wrong_power_mode_is_invalid_until_it_is_mended(
    project: Path, device: Device
) -> None:
    request = BuildRequest(recipe=project / "edgekit.toml")
    device.says("nvpmodel", "NV Power Mode: MODE_15W\n1\n")
    wrong = build(request, on_event=lambda event: None)
    (target,) = wrong.targets
    assert wrong.exit_code == 4
    assert target.verdict is Verdict.INVALID
    assert any("MODE_15W, wanted MAXN; sudo nvpmodel -m" in note for note in target.notes)
    (stored, *_) = load_measurements(Path(target.folder) / "measurement.json")
    assert stored.broken
    assert stored.conditions["power_mode"] == "MODE_15W"
    device.says("nvpmodel", "NV Power Mode: MAXN\n0\n")
    right = build(request, on_event=lambda event: None)
    assert (right.exit_code, right.targets[0].verdict) == (0, Verdict.PASS)


def test_a_servers_energy_is_by_what_it_answered(device: Device) -> None:
    at = tuple(float(second) for second in range(10))
    power = {"power_w": Series(unit="W", source="tegrastats VDD_IN", at_s=at, values=(12.0,) * 10)}
    waited = Measurement(
        arm="a", quantity="latency", unit="s", samples=(1.0,) * 20, rounds=(0, 10), batch=1,
        taken_at=time.time(), figures={"answered_per_s": 60.0},
    )  # fmt: skip
    turns = Part(windows=[(0.0, 9.0)])
    found = attended(waited, watched(device, series=power), Site(root=device.root), turns)
    assert found.figures["joules_per_sample"] == pytest.approx(0.2)
    in_turn = replace(waited, samples=(0.01,) * 20, figures={})
    found = attended(in_turn, watched(device, series=power), Site(root=device.root), turns)
    assert found.figures["joules_per_sample"] == pytest.approx(0.12)


@pytest.mark.parametrize(("watts", "known"), [((12.0, 10.0, 14.0), True), ((12.0, 10.0), False)])
def test_the_ends_of_an_energy_are_from_its_turns(
    device: Device, watts: tuple[float, ...], known: bool
) -> None:
    """12 W, 10 W and 14 W at 100 samples a second: 0.12 J -+ t s / sqrt(n), t = 9.925."""
    power = {
        "power_w": Series(unit="W", source="x", at_s=(0.5, 1.5, 2.5)[: len(watts)], values=watts)
    }
    measured = Measurement(
        arm="a", quantity="latency", unit="s", samples=(0.01,) * 30, rounds=(0, 10, 20), batch=1,
        taken_at=time.time(),
    )  # fmt: skip
    turns = Part(windows=[(0.0, 1.0), (1.0, 2.0), (2.0, 3.0)])
    figures = attended(measured, watched(device, series=power), Site(root=device.root), turns)
    ends = [figures.figures[f"joules_per_sample_{end}"] for end in ("low", "high")]
    if not known:
        assert "no reading of the power fell into a turn" in str(ends[0])
        return
    half = 9.925 * 0.02 / 3**0.5
    assert ends == pytest.approx([0.12 - half, 0.12 + half], rel=1e-3)


def test_engines_bring_their_targets_conditions_along() -> None:
    assert site_of(["cpu", "cpu"]).target == load_target("cpu")
    assert site_of(["cpu", "rtx-4060"]).doubts == (
        "the engines are for cpu, rtx-4060: no conditions were checked",
    )
    elsewhere = site_of(["conveyor-camera"])
    assert elsewhere.target is None
    assert "not known here" in elsewhere.doubts[0]


def test_runs_between_which_the_mode_changed_are_not_one_measurement() -> None:
    first = Measurement(
        arm="a", quantity="latency", unit="s", samples=(0.01,) * 20, rounds=(0, 10), batch=1,
        taken_at=time.time(), conditions={"power_mode": "MAXN", "load_average": "1"},
    )  # fmt: skip
    again = replace(first, conditions={"power_mode": "MAXN", "load_average": "7"})
    assert len(continued(first, again).samples) == 40
    slower = replace(first, conditions={"power_mode": "15W"})
    found = continued(first, slower)
    assert len(found.samples) == 20
    assert found.broken == ("between two runs this changed: power_mode (MAXN -> 15W)",)
