"""`edgekit sensitivity`: a table, a plot, one JSON document; known the second time."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edgekit.cli import app
from edgekit.compress.channels.groups import find_groups
from edgekit.compress.channels.sensitivity import GroupSensitivity, Sensitivity
from edgekit.models.source import load
from edgekit.pipeline.origin import Origin
from edgekit.pipeline.result import StepEvent
from edgekit.pipeline.sensitivity import SensitivityRequest, sensitivity_of
from edgekit.report import sensitivity as report
from edgekit.values import Array


@pytest.fixture
def samples(tmp_path: Path, images: Array) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, image=images)
    return path


def invoke(*arguments: str) -> tuple[int, str]:
    found = CliRunner().invoke(app, list(arguments))
    return found.exit_code, found.stdout


def test_the_verb_writes_a_plot_and_one_document(
    residual_path: Path, samples: Path, tmp_path: Path
) -> None:
    plot = tmp_path / "plot.svg"
    code, text = invoke(
        "sensitivity", str(residual_path), "--data", str(samples), "-o", str(plot), "--json",
        "--cache", str(tmp_path / "cache"),
    )  # fmt: skip
    assert code == 0
    document = json.loads(text)
    names = [group.name for group in find_groups(load(residual_path)).groups]
    assert [group["group"] for group in document["groups"]] == names
    assert document["shares"] == [0.25, 0.5, 0.75]
    assert all(damage > 0 for group in document["groups"] for damage in group["damage"])
    drawn = [t.text for t in ElementTree.parse(plot).iter("{http://www.w3.org/2000/svg}text")]
    assert set(names) <= set(drawn)


def test_what_was_measured_once_is_known(
    residual_path: Path, samples: Path, tmp_path: Path
) -> None:
    said: list[StepEvent] = []
    request = SensitivityRequest(
        origin=Origin(place=str(residual_path)), data=str(samples), cache=tmp_path / "cache"
    )
    first = sensitivity_of(request, on_event=said.append)
    assert [e.state for e in said if e.state != "progress"] == ["started", "done"]
    said.clear()
    assert sensitivity_of(request, on_event=said.append) == first
    assert [e.state for e in said] == ["cached"]


def test_the_most_sensitive_group_stands_first() -> None:
    groups = tuple(
        GroupSensitivity(group=name, units=8, kept=(4,), damage=(damage,), doubt=(0.0,),
                         samples=(64,), agreement=(0.5,))
        for name, damage in (("a", 0.1), ("b", 0.9), ("c", 0.5))
    )  # fmt: skip
    found = Sensitivity(shares=(0.5,), samples=64, groups=groups)
    assert report.columns(found) == ("group", "units", "50%", "agreement")
    assert list(report.table(found)) == [
        ("b", "8", "0.9000", "0.50"), ("c", "8", "0.5000", "0.50"), ("a", "8", "0.1000", "0.50"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--criterion", "l3"), "l3"),
        (("--metric", "top2"), "top2"),
        (("--metric", "top1"), "needs labels"),
    ],
)
def test_bad_wishes_are_one_error(
    more: tuple[str, ...], said: str, residual_path: Path, samples: Path, tmp_path: Path
) -> None:
    code, text = invoke(
        "sensitivity", str(residual_path), "--data", str(samples), "--json", "--cache",
        str(tmp_path / "cache"), *more,
    )  # fmt: skip
    assert code == 2
    error = json.loads(text)["error"]
    assert said in error["what"] + error["got"]
