"""How target files extend one another, and which one of several of a name is meant."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.errors import InputError
from edgekit.targeting import files
from edgekit.targeting.inheritance import Layer, extended, figures, layer_of
from edgekit.targeting.jetpack import jetpack_among, jetpack_of_release
from edgekit.targets import (
    _validated,
    all_profiles,
    load_profile,
    load_target,
    resolve_target,
    target_names,
)

MINE = 'name = "{name}"\ntitle = "Mine"\nextends = "{extends}"\n{more}'


def write(folder: Path, name: str, extends: str, more: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.toml"
    path.write_text(MINE.format(name=name, extends=extends, more=more))
    return path


# Documents of one shape: a key is a table in all of them, or in none.
KEYS = ("memory", "peak", "dla")
TABLES = st.dictionaries(
    st.sampled_from(KEYS),
    st.dictionaries(st.sampled_from("ab"), st.integers(0, 3), max_size=2),
    max_size=3,
)
PLACES = [f"{table}.{key}" for table in KEYS for key in "ab"]


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    document: dict[str, Any] = dict(draw(TABLES))
    if draw(st.booleans()):
        document["name"] = draw(st.sampled_from(["x", "y"]))
    document["sources"] = draw(
        st.dictionaries(st.sampled_from([*PLACES, *KEYS]), st.sampled_from(["s", "t"]), max_size=3)
    )
    document["unverified"] = draw(st.lists(st.sampled_from([*PLACES, *KEYS]), max_size=2))
    return layer_of(document)


@given(layers(), layers(), layers())
def test_which_two_of_three_files_are_merged_first_makes_no_difference(
    a: Layer, b: Layer, c: Layer
) -> None:
    assert extended(extended(a, b), c) == extended(a, extended(b, c))


@given(layers())
def test_a_file_that_says_nothing_changes_nothing_but_the_name(a: Layer) -> None:
    unnamed = extended(a, Layer(values={}))
    assert {k: v for k, v in a.values.items() if k != "name"} == unnamed.values
    assert (a.sources, a.unverified) == (unnamed.sources, unnamed.unverified)
    assert extended(Layer(values={}), a) == a


@given(layers(), layers())
def test_a_figure_never_gets_the_source_of_another_files_figure(a: Layer, b: Layer) -> None:
    merged = extended(a, b)
    for place in figures(b.values):
        assert merged.sources.get(place) == b.sources.get(place)
        assert (place in merged.unverified) == (place in b.unverified)


def test_a_source_of_a_table_is_of_its_own_figures_and_a_nearer_one_wins() -> None:
    layer = layer_of({
        "memory": {"bytes": 1, "bandwidth_bytes_per_s": 2.0},
        "sources": {"memory": "all", "memory.bytes": "one"},
        "unverified": ["memory"],
    })  # fmt: skip
    assert layer.sources == {"memory.bytes": "one", "memory.bandwidth_bytes_per_s": "all"}
    assert layer.unverified == {"memory.bytes", "memory.bandwidth_bytes_per_s"}


def test_a_board_on_a_shipped_module_differs_where_it_says_so(tmp_path: Path) -> None:
    path = write(
        tmp_path, "my-board", "jetson-orin-nx-16gb",
        "[builder]\nworkspace_bytes = 5\n[sources]\nbuilder = 'measured'\n",
    )  # fmt: skip
    mine, theirs = load_target(str(path)), load_target("jetson-orin-nx-16gb")
    assert (mine.name, mine.title) == ("my-board", "Mine")
    assert mine.builder.workspace_bytes == 5
    assert mine.sources["builder.workspace_bytes"] == "measured"
    assert mine.peak == theirs.peak
    assert mine.jetpacks == theirs.jetpacks
    assert not mine.family_default
    assert load_profile(str(path)).files[1] == "targets/jetson-orin-nx-16gb.toml"


def test_name_and_title_are_never_inherited(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "cpu"\n')
    with pytest.raises(InputError) as caught:
        load_target(str(path))
    assert caught.value.got.splitlines() == ["name: is missing", "title: is missing"]
    assert "which extends" in caught.value.where


def test_a_circle_is_refused_with_all_its_files(tmp_path: Path) -> None:
    write(tmp_path, "one", "two")
    write(tmp_path, "two", "three")
    write(tmp_path, "three", "one")
    with pytest.raises(InputError, match="in a circle") as caught:
        load_target(str(tmp_path / "one.toml"))
    assert caught.value.got == "one.toml -> two.toml -> three.toml -> one.toml"


def test_a_file_that_extends_itself_is_a_circle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="in a circle"):
        load_target(str(write(tmp_path, "mine", "mine")))


@pytest.mark.parametrize("extends", ["jetson-orin-nx-16g", "", "../nowhere", "gone.toml"])
def test_a_base_that_is_not_there_is_refused(tmp_path: Path, extends: str) -> None:
    with pytest.raises(InputError) as caught:
        load_target(str(write(tmp_path, "mine", extends)))
    if extends.startswith("jetson"):
        assert '"jetson-orin-nx-16gb"' in caught.value.hint


def test_a_base_that_is_no_name_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('name = "mine"\ntitle = "t"\nextends = 3\n')
    with pytest.raises(InputError) as caught:
        load_target(str(path))
    assert caught.value.got == "extends: wanted the name of a target, got 3"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ('sources = ["a page"]\n', "sources: wanted a table"),
        ("unverified = 3\n", "unverified: wanted a list"),
        ('power_mode = "TURBO"\n', 'power_mode is "TURBO", and power_modes: MAXN_SUPER'),
        ('[runtime]\njetpack = "6.9"\n', 'runtime.jetpack is "6.9", and jetpacks: 5.1.1, 6.0'),
        ('[jetpacks."6.2"]\nopset = "20"\n', "jetpacks.6.2.opset: wanted a whole number"),
        ("peak = 3\n", "peak: wanted a table"),
        ('unverified = ["peek.int8"]\n', 'no such figure; did you mean "peak.int8"?'),
        ("[sources]\nmultiple = 's'\n", 'inherits those figures; did you mean "multiple.fp32"?'),
        ("[power_modes.15W]\nwats = 3\n", 'power_modes.15W.wats: unknown key; did you mean "wat'),
    ],
)
def test_a_fault_in_a_file_that_extends_is_said(tmp_path: Path, more: str, said: str) -> None:
    path = write(tmp_path, "mine", "jetson-orin-nano-8gb", more)
    with pytest.raises(InputError) as caught:
        load_target(str(path))
    assert said in caught.value.got


def test_a_files_own_runtime_goes_before_the_default_jetpacks(tmp_path: Path) -> None:
    path = write(
        tmp_path, "mine", "jetson-orin-nano-8gb", '[runtime]\nversion = "10.7"\nopset = 19\n'
    )
    mine = load_target(str(path))
    assert (mine.runtime.version, mine.runtime.opset, mine.runtime.cuda) == ("10.7", 19, "12.6")
    assert "runtime.version" not in mine.sources
    assert "runtime.cuda" in mine.sources
    assert load_target(f"{path}@6.0").runtime.version == "8.6"


def test_a_files_own_peak_goes_before_its_power_modes(tmp_path: Path) -> None:
    path = write(tmp_path, "mine", "jetson-orin-nano-8gb", "peak = { int8 = 5e12 }\n")
    mine = load_target(str(path))
    assert mine.peak["int8"] == 5e12
    assert mine.peak["fp16"] == load_target("jetson-orin-nano-8gb").peak["fp16"]


def mutated(draw: st.DrawFn, document: dict[str, Any]) -> dict[str, Any]:
    """The document with something else in one place, at any depth."""
    key = draw(st.sampled_from(sorted(document)))
    inner = document[key]
    if isinstance(inner, dict) and inner and draw(st.booleans()):
        return {**document, key: mutated(draw, inner)}
    odd = st.one_of(
        st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=3),
        st.lists(st.integers(0, 2), max_size=2), st.just({}), st.just({"x": [1]}),
    )  # fmt: skip
    return {**document, draw(st.sampled_from([key, "other"])): draw(odd)}


@given(st.data())
@settings(max_examples=100)
def test_whatever_a_file_says_it_is_a_target_or_an_input_error(data: st.DataObject) -> None:
    orin, paths = files.read_file(files.shipped_files()["jetson-orin-nano-8gb"])
    document = mutated(data.draw, dict(orin.values) | {"sources": dict(orin.sources)})
    with contextlib.suppress(InputError):
        assert _validated(layer_of(document), paths).runtime.version


SHIPPED = set(files.shipped_files())
KNOWN = ("4.6.1", "5.1", "6.0", "6.2", "7.2")


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("6.0", "6.0"), ("6.2.1", "6.2"), ("4.6.4", "4.6.1"), ("4.6", "4.6.1"), ("6", "6.2"),
        ("5", "5.1"), ("5.0.2", ""), ("6.1", ""), ("8", ""), ("", ""), ("x", ""), ("6.x", "6.2"),
        ("4.6.0", ""),
    ],
)  # fmt: skip
def test_a_jetpack_is_found_by_the_start_of_its_name_or_by_its_release(
    asked: str, meant: str
) -> None:
    assert jetpack_among(KNOWN, asked) == meant


@pytest.mark.parametrize(
    ("release", "meant"),
    [("6.2.2", "6.2"), ("4.6", ""), ("4.6.6", "4.6.1"), ("6.0DP", "6.0"), ("7.2EA", "7.2")],
)
def test_a_release_older_than_the_first_known_is_none_of_them(release: str, meant: str) -> None:
    assert jetpack_of_release(KNOWN, release) == meant


@pytest.mark.parametrize("name", ["jetson-nano@6.2", "cpu@6.2", "jetson-nano@", "jetson-nano@x"])
def test_a_jetpack_that_a_device_does_not_have_is_refused(name: str) -> None:
    with pytest.raises(InputError) as caught:
        load_target(name)
    assert caught.value.wanted


def test_a_family_with_a_jetpack_is_its_default_with_that_jetpack(tmp_path: Path) -> None:
    found = resolve_target("jetson@5", root=tmp_path).target
    assert (found.name, found.profile) == ("jetson-orin-nano-8gb@5.1.1", "jetson-orin-nano-8gb")


# ---------------------------------------------------------------- the user's own folder


def test_a_users_own_target_is_found_by_name_beside_the_recipe_and_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "project" / "targets", "mine", "cpu")
    monkeypatch.chdir(tmp_path)
    assert "mine" not in target_names()
    assert "mine" in target_names(tmp_path / "project")
    assert load_profile("mine", tmp_path / "project").own
    monkeypatch.chdir(tmp_path / "project")
    assert load_target("mine").title == "Mine"
    assert resolve_target("mine").note == ""


def test_a_users_own_target_goes_before_ours_of_the_same_name_and_may_extend_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "targets", "jetson-nano", "jetson-nano", "[builder]\nworkspace_bytes = 7\n")
    found = resolve_target("jetson-nano")
    assert found.target.builder.workspace_bytes == 7
    assert found.target.compute_capability == "5.3"
    assert found.note == f'"jetson-nano" is your own: {Path("targets/jetson-nano.toml")}'
    assert load_target("targets/jetson-nano.toml") == found.target
    (mine,) = [profile for profile in all_profiles() if profile.own]
    assert mine.target == found.target


def test_the_folder_beside_the_recipe_goes_before_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, size in (("here", 1), ("there", 2)):
        more = f"[builder]\nworkspace_bytes = {size}\n"
        write(tmp_path / folder / "targets", "mine", "jetson-nano", more)
    monkeypatch.chdir(tmp_path / "here")
    assert load_target("mine").builder.workspace_bytes == 1
    assert load_target("mine", tmp_path / "there").builder.workspace_bytes == 2
    assert load_target("mine", tmp_path / "nowhere").builder.workspace_bytes == 1


def test_a_file_whose_target_has_another_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "targets", "mine", "cpu").rename(tmp_path / "targets" / "yours.toml")
    with pytest.raises(InputError) as caught:
        load_target("yours")
    assert '"mine" is not what the file is called' in caught.value.got


def test_a_folder_that_cannot_be_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "targets"
    folder.mkdir(mode=0)
    if os.access(folder, os.R_OK):
        pytest.skip("this user may read everything")
    with pytest.raises(InputError, match="cannot be read"):
        target_names()


def test_a_name_with_a_jetpack_in_it_is_a_fault(tmp_path: Path) -> None:
    path = write(tmp_path, "x@6.0", "cpu").rename(tmp_path / "x.toml")
    with pytest.raises(InputError) as caught:
        load_target(str(path))
    assert "has an @" in caught.value.got


def test_the_faults_of_all_of_a_users_files_are_listed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "targets", "one", "cpu", 'family = "gpu"\nspeed = 3\n')
    (tmp_path / "targets" / "two.toml").write_text("name = ")
    with pytest.raises(InputError) as caught:
        all_profiles()
    first, second, third = caught.value.got.splitlines()
    assert "one.toml" in first
    assert "family" in first
    assert "speed: unknown key" in second
    assert "two.toml" in third


def test_the_readmes_device_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    (block,) = re.findall(r"```toml\n# (targets/\S+)\n(.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "targets").mkdir()
    (tmp_path / block[0]).write_text(block[1])
    name = Path(block[0]).stem
    mine, theirs = load_target(name), load_target("jetson-orin-nx-16gb@6.0")
    assert mine.name == name
    assert mine.runtime == theirs.runtime
    assert mine.peak == {"int8": 20e12}
    assert (mine.memory and mine.memory.bandwidth_bytes_per_s) == 68e9
    assert (mine.memory and mine.memory.bytes) == (theirs.memory and theirs.memory.bytes)
    assert mine.unverified == ("peak.int8",)
    assert mine.sources["peak.int8"].startswith("half of a trtexec run")
    for module in re.findall(r"`(bases/[a-z-]+)`", readme):
        assert (files.shipped_folder() / f"{module}.toml").is_file()


def test_the_readmes_table_has_every_shipped_target() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text()
    rows = re.findall(r"^\| (`.*?) \|", readme[readme.index("## Targets") :], re.MULTILINE)
    named = set()
    for row in rows:
        last = ""
        for name in re.findall(r"`([a-z0-9-]+)`", row):
            words = last.split("-")
            stems = ["-".join(words[:count]) for count in range(len(words), 0, -1)]
            full = [f"{stem}{name}" for stem in stems if f"{stem}{name}" in SHIPPED]
            last = full[0] if name.startswith("-") and full else name
            named.add(last)
    assert named - {"jetson"} == SHIPPED
