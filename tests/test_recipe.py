"""Recipes: typed, strict, every fault at once with its line of sight."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import InputError
from edgekit.recipe import Recipe, for_target, load_recipe, parse_recipe, resolved

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "fashion" / "edgekit.toml"

DOCUMENT: dict[str, Any] = {
    "model": {"path": "m.onnx"},
    "data": {
        "calibration": "c.npz",
        "evaluation": "e.npz",
        "preprocessing": {"mean": [0.5], "std": [0.25]},
    },
    "evaluate": {"metric": "top1"},
    "compress": {"channels": {"macs": 0.5}, "recover": {"epochs": 2}},
    "engine": {"precision": "int8", "batch": {"min": 1, "opt": 2, "max": 4}},
    "gate": {"max_drop": 0.01},
    "bench": {"max_age": "12h"},
    "build": {"targets": ["cpu"]},
    "target": {"jetson": {"gate": {"min_fps": 30}}, "cpu": {"engine": {"precision": "auto"}}},
}


def parse(**changes: Any) -> Recipe:
    """The document with `section__key=value` put in (None takes the key out)."""
    document = copy.deepcopy(DOCUMENT)
    for place, value in changes.items():
        *path, key = place.split("__")
        table = document
        for part in path:
            table = table.setdefault(part, {})
        if value is None:
            del table[key]
        else:
            table[key] = value
    return parse_recipe(document, Path("folder/edgekit.toml"))


def faults(**changes: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        parse(**changes)
    assert caught.value.exit_code == 2
    return caught.value.got.splitlines()


def test_the_example_is_a_valid_recipe() -> None:
    recipe = load_recipe(EXAMPLE)
    assert recipe.name == "fashion"
    assert recipe.build.targets == ("cpu", "rtx-3060", "jetson-orin-nano-8gb")


def test_defaults_are_filled_in_and_shown() -> None:
    shown = json.loads(json.dumps(resolved(parse())))
    assert shown["quantize"]["ranges"] == "percentile"
    assert shown["bench"]["max_age"] == 12 * 3600


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"compress__channels__macs": 1.5}, "compress.channels.macs: 1.5 is not between 0 and 1"),
        ({"compress__channels__macs": 0}, "compress.channels.macs: 0 is not between 0 and 1"),
        ({"compress__channels__macs": "half"},
         "compress.channels.macs: wanted a number, got 'half'"),
        ({"model__path": None}, "model.path: is missing"),
        ({"quantize__rnages": "minmax"}, 'quantize.rnages: unknown key; did you mean "ranges"?'),
        ({"engnie": {}}, 'engnie: unknown key; did you mean "engine"?'),
        ({"evaluate__metric": "topp1"},
         'evaluate.metric: "topp1" is not one of top1, fidelity or package.module:function; '
         'did you mean "top1"?'),
        ({"engine__precision": "int4"},
         "engine.precision: 'int4' is not one of \"auto\", \"fp32\", \"fp16\" or \"int8\"; "
         'did you mean "int8"?'),
        ({"engine__batch": {"min": 4, "opt": 2, "max": 8}},
         "engine.batch: min 4, opt 2, max 8 are not in order"),
        ({"bench__max_age": "soon"},
         'bench.max_age: "soon" is no duration such as "30m", "12h" or "1d"'),
        ({"data__preprocessing__std": [0.0]}, "data.preprocessing.std.0: 0 is not more than 0"),
        ({"gate__min_fps": float("nan")}, "gate.min_fps: nan is not a finite number"),
        ({"build__targets": ["cpuu"]},
         'build.targets: there is no target called "cpuu"; did you mean "cpu"?'),
        ({"target__jetsn": {}},
         'target: there is no target called "jetsn"; did you mean "jetson"?'),
        ({"target__cpu__engine__bacth": {}},
         'target.cpu.engine.bacth: unknown key; did you mean "batch"?'),
        ({"target__cpu__gate": {"max_drop": "x"}},
         "target.cpu.gate.max_drop: wanted a number, got 'x'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_fault_has_its_line_of_sight(changes: dict[str, Any], said: str) -> None:
    assert faults(**changes) == [said]


def test_all_faults_are_told_at_once() -> None:
    found = faults(
        compress__channels__macs=2, gate__min_fps=-1, quantize__percentile=10, bench__rounds=1
    )
    assert len(found) == 4


def test_a_family_s_override_applies_to_its_members_and_theirs_on_top() -> None:
    recipe = parse(target__jetson__engine={"streams": 2, "batch": {"max": 8}},
                   **{"target__jetson-orin-nano-8gb": {"engine": {"streams": 3}}})  # fmt: skip
    own = for_target(recipe, "jetson-orin-nano-8gb")
    assert own.engine.streams == 3
    assert (own.engine.batch.opt, own.engine.batch.max) == (2, 8)
    assert own.gate.limits() == {"max_drop": 0.01, "min_fps": 30}
    assert own.bench.max_age == 12 * 3600
    assert for_target(recipe, "cpu").gate.limits() == {"max_drop": 0.01}
    assert for_target(recipe, "cpu").engine.precision == "auto"


def test_a_missing_recipe_and_a_broken_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such recipe file"):
        load_recipe(tmp_path / "edgekit.toml")
    (tmp_path / "edgekit.toml").write_text("[model\npath = 3")
    with pytest.raises(InputError, match="is no TOML") as caught:
        load_recipe(tmp_path / "edgekit.toml")
    assert "line 1" in caught.value.got


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)  # fmt: skip


def places(table: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in table.items():
        found.append((*path, key))
        if isinstance(value, dict):
            found += places(value, (*path, key))
    return found


@given(place=st.sampled_from(places(DOCUMENT)), value=VALUES)
@settings(max_examples=300, deadline=None)
def test_any_value_anywhere_gives_a_recipe_or_an_input_error(
    place: tuple[str, ...], value: object
) -> None:
    document = copy.deepcopy(DOCUMENT)
    table = document
    for part in place[:-1]:
        table = table[part]
    table[place[-1]] = value
    try:
        outcome: object = parse_recipe(document, Path("edgekit.toml"))
    except InputError as error:
        outcome = error
    assert isinstance(outcome, (Recipe, InputError))
