"""The noise floor on disk: it comes back only for the machine that it was measured on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.bench.noise_floor import NEVER, NoiseFloor, floor_file, read, store, stored
from edgekit.values import Unknown

CONDITIONS = {"host": "a", "cpu": "c", "cpus": "2", "governor": "performance", "batch": "1"}
FLOOR = NoiseFloor(
    target="cpu", share=0.021, taken_at=5.0, plan="p", engine="e",
    machine={"host": "a", "cpu": "c", "cpus": "2", "governor": "performance"}, doubts=("busy",),
)  # fmt: skip


@pytest.fixture(autouse=True)
def _own_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))


def test_what_was_stored_comes_back_whole() -> None:
    assert stored("cpu", CONDITIONS) == Unknown(NEVER)
    store(FLOOR)
    assert read("cpu") == FLOOR
    assert stored("cpu", CONDITIONS) == 0.021


@pytest.mark.parametrize("name", ["host", "cpu", "cpus", "governor"])
def test_another_machine_or_mode_has_no_floor(name: str) -> None:
    store(FLOOR)
    found = stored("cpu", {**CONDITIONS, name: "other"})
    assert isinstance(found, Unknown)
    assert name in found.reason


def test_a_floor_of_another_target_is_not_taken() -> None:
    store(replace(FLOOR, target="other"))
    floor_file("other").rename(floor_file("cpu"))
    assert isinstance(stored("cpu", CONDITIONS), Unknown)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"format": 2}', '{"format": 1}', "\x00"])
def test_a_damaged_file_is_unknown_and_stays(content: str) -> None:
    place = floor_file("cpu")
    place.parent.mkdir(parents=True)
    place.write_text(content)
    assert isinstance(stored("cpu", CONDITIONS), Unknown)
    assert place.read_text() == content
