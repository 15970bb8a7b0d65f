"""Measurements on disk."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from edgekit.bench.measurement import (
    age_s,
    changed_conditions,
    load_measurements,
    pooled,
    same_conditions,
    save_measurements,
)
from edgekit.errors import InputError
from edgekit.values import Measurement, Unknown

ONE = Measurement(
    arm="int8", quantity="latency", unit="s", samples=(0.001, 0.0020000000000000005, 0.0015),
    rounds=(0, 2), batch=4, taken_at=1000.5,
    figures={"peak_memory_bytes": 5e6, "power_w": Unknown("no sensor")},
    conditions={"cpu": "a", "threads": "2", "other_load": "0.01"}, doubts=("a doubt",),
)  # fmt: skip


def test_a_measurement_comes_back_whole(tmp_path: Path) -> None:
    save_measurements([ONE, replace(ONE, arm="fp32")], tmp_path / "m.json")
    assert load_measurements(tmp_path / "m.json") == (ONE, replace(ONE, arm="fp32"))


def test_another_format_is_refused(tmp_path: Path) -> None:
    save_measurements([ONE], tmp_path / "m.json")
    stored = json.loads((tmp_path / "m.json").read_text())
    (tmp_path / "m.json").write_text(json.dumps({**stored, "format": 2}))
    with pytest.raises(InputError, match="format 2"):
        load_measurements(tmp_path / "m.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1, "measurements": [{}]}', "null"])
def test_a_broken_file_is_an_input_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text)
    with pytest.raises(InputError, match="cannot be read"):
        load_measurements(tmp_path / "m.json")


def test_a_missing_file_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        load_measurements(tmp_path / "m.json")


def test_age_is_counted_from_when_it_was_taken() -> None:
    assert age_s(ONE, 1060.5) == 60
    assert age_s(ONE, 990.5) == -10


def test_what_passes_does_not_make_conditions_differ() -> None:
    then = {"cpu": "a", "threads": "2", "other_load": "0.01"}
    assert same_conditions(then, {"cpu": "a", "threads": "2", "other_load": "0.50"})
    assert same_conditions(then, {"cpu": "a", "threads": "2"})
    assert changed_conditions(then, {"cpu": "b", "threads": "2"}) == ("cpu",)
    assert changed_conditions(then, {"cpu": "a"}) == ("threads",)
    assert changed_conditions(then, {"cpu": "a", "threads": "2", "new": "x"}) == ("new",)


def test_two_runs_pool_into_one_measurement() -> None:
    later = replace(
        ONE, samples=(0.4, 0.5), rounds=(0, 1), taken_at=2000.0, doubts=("another",),
        figures={"peak_memory_bytes": 7e6, "power_w": Unknown("no sensor")},
        conditions={**ONE.conditions, "other_load": "0.30"},
    )  # fmt: skip
    both = pooled(ONE, later)
    assert both.samples == (*ONE.samples, 0.4, 0.5)
    assert both.rounds == (0, 2, 3, 4)
    assert both.figures["peak_memory_bytes"] == 7e6
    assert both.taken_at == ONE.taken_at
    assert both.doubts == ("a doubt", "another")
    with pytest.raises(ValueError, match="not runs of the same thing"):
        pooled(ONE, replace(ONE, conditions={**ONE.conditions, "threads": "1"}))
