"""`edgekit history`: the list, the bars, the chart, and a baseline taken by hand."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from measurements import made
from typer.testing import CliRunner

from edgekit.cli import app
from edgekit.errors import InputError
from edgekit.history import Revision, open_history
from edgekit.report.history import HistoryAsked, bars, chart, look_up
from edgekit.values import Verdict


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Three runs of a net on two targets, the last slower and failed."""
    path = tmp_path / "history.sqlite"
    with open_history(path) as history:
        for index, (target, seconds, verdict) in enumerate((
            ("cpu", 0.002, Verdict.PASS), ("orin", 0.001, Verdict.PASS),
            ("cpu", 0.004, Verdict.FAIL),
        )):  # fmt: skip
            arms = [made(0.008, arm="original", taken_at=1e9 + index, engine="b" * 64),
                    made(seconds, taken_at=1e9 + index)]  # fmt: skip
            revision = Revision(commit=str(index) * 40, tags=("v1",) if not index else ())
            run = history.record(arms, model="net", target=target, revision=revision)
            history.judge(run, "int8", verdict, verdict.value)
    return path


def run(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["history", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_a_model_is_listed_with_its_verdicts_and_commits(place: Path) -> None:
    code, out, _ = run("net", "--target", "cpu", "--history", place, "--json")
    entries = json.loads(out)["entries"]
    assert code == 0
    assert [(e["arm"], e["verdict"]) for e in entries] == [
        ("original", None), ("int8", "pass"), ("original", None), ("int8", "fail"),
    ]  # fmt: skip
    assert entries[1]["commit"] == "0" * 40
    assert entries[1]["tags"] == ["v1"]
    _, _, shown = run("net", "--history", place)
    for word in ("orin", "v1", "fail", "2001-09-09 01:46"):
        assert word in shown


def test_bars_are_on_one_scale(place: Path) -> None:
    told = look_up(HistoryAsked(model="net", target="cpu", place=str(place)))
    first, second = bars(told)
    assert first.count("█") == 40
    assert second.count("█") in (19, 20)  # half of the rate


def test_the_chart_has_a_mark_for_each_measurement(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "net.svg"
    assert run("net", "--history", place, "-o", out)[0] == 0
    root = ElementTree.parse(out).getroot()
    marks = [e for e in root.iter() if "mark" in e.get("class", "").split()]
    assert len(marks) == 6 + 4  # a point each, and one beside each line's name
    assert chart(look_up(HistoryAsked(model="net", place=str(place)))) == out.read_text()


def test_a_baseline_is_taken_by_hand(place: Path) -> None:
    code, out, _ = run("net", "--history", place, "--accept", 6, "--json")
    assert code == 0
    assert [e["id"] for e in json.loads(out)["entries"] if e["accepted"]] == [6]
    assert run("net", "--history", place, "--accept", 77)[0] == 2
    with pytest.raises(InputError, match="no such measurement of other"):
        look_up(HistoryAsked(model="other", place=str(place), accept=1))
    _, out, _ = run("net", "--history", place, "--json")
    assert [e["id"] for e in json.loads(out)["entries"] if e["accepted"]] == [6]


def test_what_was_never_measured_is_an_error_that_names_what_was(
    place: Path, tmp_path: Path
) -> None:
    code, _, err = run("nte", "--history", place)
    assert code == 2
    assert "net" in err
    assert run("net", "--target", "nano", "--history", place)[0] == 2
    assert run("net", "--history", tmp_path / "none.sqlite")[0] == 2
    assert not (tmp_path / "none.sqlite").exists()
