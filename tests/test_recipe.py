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
from edgekit.targets import load_target
from edgekit.values import Preprocessing

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
    assert shown["quantize"]["ranges"] == "best"
    assert shown["quantize"]["refine"] == "auto"
    assert shown["bench"]["max_age"] == 12 * 3600


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"compress__channels__macs": 1.5}, "compress.channels.macs: 1.5 is not between 0 and 1"),
        ({"compress__channels__macs": 0}, "compress.channels.macs: 0 is not between 0 and 1"),
        ({"compress__channels__macs": "half"},
         "compress.channels.macs: wanted a number, got 'half'"),
        ({"model__path": None}, "model: wanted one of path and factory"),
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
        ({"target__cpu__gates": {}},
         'target.cpu: "gates" cannot be overridden for a target; did you mean "gate"?'),
        ({"target__cpu__engine": {"batch": {"min": 8}}},
         "target.cpu.engine.batch: min 8, opt 2, max 4 are not in order"),
        ({"target__cpu__compress": {"channels": {"macs": 2.5}}},
         "target.cpu.compress.channels.macs: 2.5 is not between 0 and 1"),
        ({"target__cpu": 3}, "target.cpu: wanted a table, got 3"),
        ({"model__path": ""}, "model.path: is empty"),
        ({"model__path": "a\0b"}, "model.path: holds a NUL character"),
        ({"model__name": ".."},
         "model.name: '..' names a folder too: want letters, digits, _, - and ."),
        ({"evaluate__metric": "mine:"},
         'evaluate.metric: "mine:" is not one of top1, fidelity or package.module:function'),
        ({"engine__precision": None, "engine__shapes": {"x": {"min": [1, 3], "opt": [1]}}},
         "engine.shapes.x.max: is missing"),
        ({"engine__shapes": {"x": {"min": [2, 3], "opt": [1, 3], "max": [4, 3]}}},
         "engine.shapes.x: min, opt and max are not in order"),
        ({"engine__shapes": {"x": {"min": [1], "opt": [1, 3], "max": [4, 3]}}},
         "engine.shapes.x: min, opt and max do not have as many axes"),
        ({"data__preprocessing__mean": [0.1, 0.2]},
         "data.preprocessing: mean has 2 numbers and std has 1; want as many"),
        ({"data__preprocessing__resize": "letterbx"},
         'data.preprocessing.resize: \'letterbx\' is not one of "stretch", "letterbox" or "crop"; '
         'did you mean "letterbox"?'),
        ({"data__preprocessing__size": [224]},
         "data.preprocessing.size: wanted [height, width], got [224]"),
        ({"data__preprocessing__size": 224}, "data.preprocessing.size: wanted a list, got 224"),
        ({"data__preprocessing__size": [224, 0]},
         "data.preprocessing.size.1: 0 is not at least 1"),
        ({"data__preprocessing__size": [224, 224.5]},
         "data.preprocessing.size.1: wanted a whole number, got 224.5"),
        ({"data__preprocessing__size": [224, 10**6]},
         "data.preprocessing.size.1: 1000000 is not at most 32768"),
        ({"data__preprocessing": {"resize": "crop", "crop_share": 1.2}},
         "data.preprocessing.crop_share: 1.2 is not between 0 and 1"),
        ({"data__preprocessing__crop_share": 0.875},
         'data.preprocessing: crop_share is for resize = "crop", and resize is "stretch"'),
        ({"data__preprocessing": {"resize": "crop", "fill": 0}},
         'data.preprocessing: fill is for resize = "letterbox", and resize is "crop"'),
        ({"data__preprocessing": {"resize": "letterbox", "fill": 256}},
         "data.preprocessing.fill: 256 is not at most 255"),
        ({"data__preprocessing__layout": "NCHW"},
         'data.preprocessing.layout: \'NCHW\' is not one of "nchw" or "nhwc"'),
        ({"data__preprocessing__ordre": "bgr"},
         'data.preprocessing.ordre: unknown key; did you mean "order"?'),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)  # fmt: skip
def test_a_fault_has_its_line_of_sight(changes: dict[str, Any], said: str) -> None:
    assert faults(**changes) == [said]


def test_the_preprocessing_of_pictures_comes_as_a_value() -> None:
    assert parse().preprocessing == Preprocessing(mean=(0.5,), std=(0.25,))
    written = {
        "scale": 1.0, "mean": [1, 2, 3], "std": [4, 5, 6], "size": [240, 320], "resize": "crop",
        "crop_share": 0.875, "interpolation": "bicubic", "order": "bgr", "layout": "nhwc",
    }  # fmt: skip
    assert parse(data__preprocessing=written).preprocessing == Preprocessing(
        scale=1.0, mean=(1.0, 2.0, 3.0), std=(4.0, 5.0, 6.0), size=(240, 320), resize="crop",
        crop_share=0.875, interpolation="bicubic", order="bgr", layout="nhwc",
    )  # fmt: skip
    boxed = parse(data__preprocessing={"resize": "letterbox", "fill": 0}).preprocessing
    assert boxed == Preprocessing(resize="letterbox", fill=0)
    shown = json.loads(json.dumps(resolved(parse(data__preprocessing=written))))
    assert shown["data"]["preprocessing"]["size"] == [240, 320]


@pytest.mark.parametrize("value", [True, 10**400], ids=["boolean", "too long for a float"])
def test_what_is_no_number_is_refused_as_one(value: object) -> None:
    (said,) = faults(compress__channels__macs=value)
    assert said.startswith("compress.channels.macs: wanted a number, got ")


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


@pytest.mark.parametrize(
    ("written", "seconds"),
    [("90s", 90), ("30m", 1800), ("1.5 h", 5400), ("1d", 86400)],
)
def test_a_duration_is_read_in_its_unit(written: str, seconds: float) -> None:
    assert parse(bench__max_age=written).bench.max_age == seconds


@pytest.mark.parametrize(
    "written", ["", "1", "d", "1y", "-1d", "1d\n", "0s", "nan d", "1e3s", "9" * 400 + "d"]
)
def test_a_duration_that_says_nothing_is_refused(written: str) -> None:
    assert len(faults(bench__max_age=written)) == 1


def test_faults_in_an_override_are_told_together_with_all_others() -> None:
    found = faults(
        quantize__rnages="minmax",
        target__cpu__gate={"min_fps": 0},
        target__jetson__bench={"rounds": 1},
        build__targets=["cpuu"],
    )
    assert [fault.split(": ")[0] for fault in found] == [
        "quantize.rnages", "build.targets", "target.jetson.bench.rounds", "target.cpu.gate.min_fps",
    ]  # fmt: skip


def test_a_fault_of_the_recipe_is_not_repeated_for_each_override() -> None:
    assert faults(gate__max_drop="x") == ["gate.max_drop: wanted a number, got 'x'"]


def test_a_mistake_that_an_override_repeats_is_told_in_both_places() -> None:
    assert faults(gate__max_drop="x", target__cpu__gate={"max_drop": "x"}) == [
        "gate.max_drop: wanted a number, got 'x'",
        "target.cpu.gate.max_drop: wanted a number, got 'x'",
    ]


def test_overrides_that_only_fit_apart_are_refused_when_the_recipe_is_read() -> None:
    family = {"batch": {"min": 4, "opt": 4}}
    member = {"engine": {"batch": {"max": 2}}}
    assert parse(target__jetson__engine=family)
    assert parse(**{"target__jetson-orin-nano-8gb": member})
    found = faults(target__jetson__engine=family, **{"target__jetson-orin-nano-8gb": member})
    assert found == [
        "target.jetson-orin-nano-8gb.engine.batch: min 4, opt 4, max 2 are not in order"
    ]


def test_an_absent_table_is_a_step_that_is_not_done() -> None:
    assert parse(compress=None).compress.channels is None
    assert parse(compress__recover=None).compress.recover is None
    assert parse(compress__recover={}).compress.recover is not None


@pytest.mark.parametrize(
    ("keys", "said"),
    [({}, "wanted a limit"), ({"latency_ms": 3.0}, "latency_ms goes with a table"),
     ({"macs": 0.5, "budget": "latency"}, "needs latency_ms"),
     ({"macs": "150%"}, "150% is not between 0 and 1"),
     ({"macs": 0.5, "budget": "unifrom"}, 'did you mean "uniform"?')],
)  # fmt: skip
def test_a_budget_that_cannot_be_is_refused(keys: dict[str, object], said: str) -> None:
    assert any(said in fault for fault in faults(compress={"channels": keys}))


@pytest.mark.parametrize("limit", [0.5, "50%", 3_000_000, "3e6"])
def test_a_limit_is_a_share_or_a_number(limit: object) -> None:
    recipe = parse(compress={"channels": {"macs": limit}})
    assert recipe.compress.channels is not None
    assert recipe.compress.channels.macs == str(limit)


def test_an_override_can_add_a_step_for_one_device() -> None:
    recipe = parse(compress=None, target__cpu__compress={"channels": {"macs": 0.25}})
    own = for_target(recipe, "cpu").compress.channels
    assert own is not None
    assert own.macs == "0.25"
    assert for_target(recipe, "rtx-3060").compress.channels is None


def test_a_recipe_for_one_device_has_no_overrides_left() -> None:
    own = for_target(parse(), "cpu")
    assert own.target == {}
    assert for_target(own, "cpu") == own


def test_a_recipe_does_not_change_with_the_document_it_came_from() -> None:
    document = copy.deepcopy(DOCUMENT)
    recipe = parse_recipe(document, Path("edgekit.toml"))
    document["target"]["cpu"]["engine"]["precision"] = "fp16"
    assert for_target(recipe, "cpu").engine.precision == "auto"


def test_paths_are_shown_as_written_and_overrides_too() -> None:
    shown = resolved(parse())
    assert shown["model"] == {"path": "m.onnx", "name": "m"}
    assert shown["target"] == {
        "jetson": {"gate": {"min_fps": 30}}, "cpu": {"engine": {"precision": "auto"}},
    }  # fmt: skip
    assert "target" not in resolved(parse(target=None))


BOARD = """
name = "my-board"
title = "A Jetson of ours"
family = "jetson"
compute_capability = "8.7"
precisions = ["fp16"]
multiple = { fp16 = 8 }
[runtime]
name = "tensorrt"
version = "10.3"
dialect = "tensorrt"
build = "device"
opset = 20
"""


def with_board(tmp_path: Path, board: str, **target: Any) -> Recipe:
    """A recipe in a folder of its own that lists a board beside it."""
    (tmp_path / "my.toml").write_text(board)
    document = {**copy.deepcopy(DOCUMENT), "build": {"targets": ["cpu", "my.toml"]}}
    document["target"].update(target)
    return parse_recipe(document, tmp_path / "edgekit.toml")


def test_a_board_of_ones_own_lies_beside_the_recipe_and_may_be_overridden(tmp_path: Path) -> None:
    recipe = with_board(tmp_path, BOARD, **{"my-board": {"gate": {"max_size_mb": 2}}})
    assert recipe.targets == ("cpu", str(tmp_path / "my.toml"))
    expected = {"max_drop": 0.01, "min_fps": 30, "max_size_mb": 2}
    assert for_target(recipe, "my-board").gate.limits() == expected
    assert for_target(recipe, load_target(recipe.targets[1])).gate.limits() == expected


def test_a_board_that_no_recipe_lists_still_belongs_to_its_family(tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text(BOARD)
    assert for_target(parse(), load_target(str(path))).gate.limits()["min_fps"] == 30


def test_a_board_s_faults_are_the_recipe_s_too(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        with_board(tmp_path, BOARD.replace("opset = 20", "opset = 0"))
    assert caught.value.got == "build.targets: my.toml: runtime.opset: 0 is not more than 0"
    assert faults(build__targets=["gone.toml"]) == [
        "build.targets: gone.toml: there is no such target file"
    ]


def test_a_board_that_is_not_listed_has_no_overrides() -> None:
    (said,) = faults(**{"target__zzz": {}})
    assert said.endswith("a board of your own is listed in build.targets, as the path of its file")


def test_a_missing_recipe_and_a_broken_one_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such recipe file"):
        load_recipe(tmp_path / "edgekit.toml")
    (tmp_path / "edgekit.toml").write_text("[model\npath = 3")
    with pytest.raises(InputError, match="is no TOML") as caught:
        load_recipe(tmp_path / "edgekit.toml")
    assert "line 1" in caught.value.got


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.integers(min_value=10**300), st.floats(),
        st.text(max_size=5), st.dates(), st.sampled_from(["cpu", "jetson", "x.toml", "\0.toml"]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(st.text(max_size=3), st.sampled_from(["batch", "engine", "min", "cpu"])),
            inner, max_size=3,
        ),
    ),
    max_leaves=4,
)  # fmt: skip


def places(table: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, value in table.items():
        found += [(*path, key), (*path, f"{key}x")]
        if isinstance(value, dict):
            found += places(value, (*path, key))
    return found


@given(
    changes=st.lists(
        st.tuples(st.sampled_from(places(DOCUMENT)), st.one_of(VALUES, st.just(...))),
        min_size=1, max_size=4,
    )
)  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_any_document_gives_a_recipe_for_every_device_or_an_input_error(
    changes: list[tuple[tuple[str, ...], object]],
) -> None:
    document = copy.deepcopy(DOCUMENT)
    for place, value in changes:
        table: Any = document
        for part in place[:-1]:
            table = table.get(part) if isinstance(table, dict) else None
        if not isinstance(table, dict):
            continue
        if value is ...:
            table.pop(place[-1], None)
        else:
            table[place[-1]] = value
    try:
        recipe = parse_recipe(document, Path("edgekit.toml"))
    except InputError:
        return
    json.dumps(resolved(recipe), allow_nan=False)
    for name in ("cpu", "rtx-3060", "jetson-orin-nano-8gb"):
        assert isinstance(for_target(recipe, name), Recipe)
