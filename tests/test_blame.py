"""Which step lost what: the table of a real build, and what it says of steps that lose nothing."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RESIDUAL_RECIPE, write_samples
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekit.engines import onnxruntime
from edgekit.engines.manifest import load_engine
from edgekit.models.source import load
from edgekit.pipeline.blame import (
    Apart,
    PartApart,
    Stage,
    blamed,
    stages_from_json,
    stages_to_json,
)
from edgekit.pipeline.build import BuildRequest, build
from edgekit.report import rows
from edgekit.values import Array, Figure, Unknown, run

RECIPE = (
    RESIDUAL_RECIPE
    + """
[compress.channels]
macs = 0.6
[quantize]
ranges = "percentile"
refine = "none"
[bench]
seconds = 0.2
rounds = 2
warmup_seconds = 0.02
[build]
targets = ["cpu"]
"""
)


@pytest.fixture
def project(residual_path: Path) -> Path:
    """A folder with a recipe, the residual network and seeded data."""
    folder = residual_path.parent
    write_samples(folder, 32, np.arange(16) % 5)
    (folder / "edgekit.toml").write_text(RECIPE)
    return folder


def built(project: Path, *targets: str) -> dict[str, Any]:
    """The report of each target, as it lies on disk."""
    request = BuildRequest(recipe=project / "edgekit.toml", targets=targets)
    result = build(request, on_event=lambda event: None)
    return {
        target.target: json.loads((Path(target.folder) / "report.json").read_text())
        for target in result.targets
    }


def answers(project: Path, path: Path) -> Array:
    """The first output on the evaluation images, by a session of our own."""
    with np.load(project / "evaluation.npz") as stored, onnxruntime.open_model(load(path)) as model:
        return next(iter(run(model, {"image": stored["image"]}).values()))


def error(found: Array, expected: Array) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.torch
def test_a_processor_is_blamed_down_to_its_own_engine(project: Path) -> None:
    report = built(project, "cpu")["cpu"]
    int8 = stages_from_json(report["blame"]["int8"])
    assert [stage.step for stage in int8] == [
        "original", "channels + simplify", "quantize", "engine",
    ]  # fmt: skip
    assert {stage.samples for stage in int8} == {16}
    assert int8[0].last is None
    original = answers(project, project / "residual.onnx")
    engine = load_engine(project / "build" / "residual" / "cpu" / "engine")
    with onnxruntime.open(engine) as session, np.load(project / "evaluation.npz") as stored:
        own = next(iter(run(session, {"image": stored["image"]}).values()))
    last = stages_from_json(report["blame"][report["precision"]])[-1]
    assert last.first is not None
    assert last.first.relative_error == pytest.approx(error(own, original), rel=1e-4)
    labels = np.arange(16) % 5
    assert last.metric == (own.argmax(1) == labels).mean() == report["after"]["metric"]
    same = (own.argmax(1) == original.argmax(1)).mean()
    assert last.first.agreement == pytest.approx(same)
    fp32 = stages_from_json(report["blame"]["fp32"])
    assert [stage.step for stage in fp32] == ["original", "channels + simplify", "engine"]
    cut, engine_row = fp32[1].last, fp32[2].last
    assert cut is not None
    assert engine_row is not None
    assert cut.relative_error > 1e-3 > engine_row.relative_error  # a cut shows, an engine does not


def test_another_device_is_blamed_down_to_the_emulated_graph(project: Path) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the rtx extra")
    found = built(project, "rtx-3060", "jetson-nano@4.6")
    stages = stages_from_json(found["rtx-3060"]["blame"]["int8"])
    assert [stage.step for stage in stages] == ["original", "channels + simplify", "quantize"]
    assert stages[-1].through == "onnxruntime, emulated"
    assert stages[-1].metric == found["rtx-3060"]["after"]["metric"]
    handed = found["jetson-nano"]
    assert list(handed["blame"]) == [handed["precision"]]
    recipe = Path(handed["folder"]) / "device" / "device.json"
    assert json.loads(recipe.read_text())["judging"]["blame"] == handed["blame"]["fp16"]


@pytest.mark.torch
def test_each_model_is_asked_once_and_a_second_build_asks_nobody(project: Path) -> None:
    request = BuildRequest(recipe=project / "edgekit.toml", targets=("cpu",))
    first = build(request, on_event=lambda event: None)
    asked = [step.said for step in first.steps if step.step == "outputs" and not step.cached]
    assert sorted(asked) == [
        "16 samples, emulated",  # INT8, before any kernel rounds
        "16 samples, through the engine",
        "16 samples, through the engine",  # FP32's, INT8's
        "16 samples, through the kernels",
        "16 samples, through the kernels",  # the original, and after the compression
    ]
    assert build(request, on_event=lambda event: None).up_to_date


@pytest.mark.torch
def test_recovery_is_told_apart_from_the_cut(project: Path) -> None:
    pytest.importorskip("torch", reason="needs the compress extra")
    recipe = project / "edgekit.toml"
    recipe.write_text(
        RECIPE.replace("[quantize]\n", "[compress.recover]\nepochs = 3\n[quantize]\n", 1)
    )
    report = built(project, "cpu")["cpu"]
    stages = stages_from_json(report["blame"]["fp32"])
    assert [s.step for s in stages] == ["original", "channels", "recover + simplify", "engine"]
    original = answers(project, project / "residual.onnx")
    for step, made in ((stages[1], "channels"), (stages[2], "recover")):
        (path,) = (project / "build" / ".cache").glob(f"{made}-*/model.onnx")
        assert step.first is not None
        expected = error(answers(project, path), original)
        assert step.first.relative_error == pytest.approx(expected, rel=1e-3)


def test_without_a_compression_only_the_folding_stands_before(project: Path) -> None:
    recipe = project / "edgekit.toml"
    recipe.write_text(RECIPE.replace("[compress.channels]\nmacs = 0.6\n", ""))
    stages = stages_from_json(built(project, "cpu")["cpu"]["blame"]["fp32"])
    assert [stage.step for stage in stages] == ["original", "simplify", "engine"]
    folded = stages[1].last
    assert folded is not None
    assert folded.agreement == 1.0
    assert 0 <= folded.relative_error < 1e-5


def stage(step: str, metric: Figure, sqnr_db: Figure = 40.0) -> Stage:
    part = PartApart(output="scores", part="scores", sqnr_db=sqnr_db)
    apart = Apart(agreement=1.0, relative_error=0.01, parts=(part,))
    return Stage(step=step, through="x", samples=8, metric=metric, last=apart, first=apart)


def first(metric: Figure) -> Stage:
    return Stage(step="original", through="x", samples=8, metric=metric, last=None, first=None)


def test_the_step_after_which_the_metric_falls_most_is_blamed() -> None:
    stages = (first(0.9), stage("channels", 0.7), stage("recover", 0.88), stage("quantize", 0.85))
    assert blamed(stages, "top1") == "top1 falls most by channels: 0.9000 -> 0.7000"
    nothing = (first(0.9), stage("quantize", 0.9, 31.5), stage("engine", 0.92, 60.0))
    assert blamed(nothing, "top1").endswith("the outputs change most by quantize: 31.5 dB")
    same = (first(0.9), stage("simplify", 0.9, Unknown("identical")))
    assert blamed(same, "top1") == "no step lowers top1 or changes the outputs"
    golden = stage("engine on the device", Unknown("golden samples only"), 20.0)
    assert "channels" in blamed((first(0.9), stage("channels", 0.8), golden), "top1")
    assert blamed((), "top1") == ""


def test_the_table_has_a_row_for_each_step_and_a_dash_for_what_is_unknown() -> None:
    unlike = Unknown("no class scores")
    segment = Stage(
        step="quantize", through="onnxruntime, emulated", samples=8, metric=0.97,
        last=Apart(
            agreement=unlike, relative_error=0.2,
            parts=(
                PartApart(output="y", part="boxes", sqnr_db=50.0),
                PartApart(output="y", part="scores", sqnr_db=12.25),
            ),
        ),
        first=None,
    )  # fmt: skip
    table = rows.blame_rows((first(0.99), segment), "fidelity")
    assert table[0] == ("original", "0.99", "", "", "", "", "")
    assert table[1] == (
        "quantize (emulated)", "0.97", "-0.02", "-", "12.2 dB", "0.2", "-",
    )  # fmt: skip
    assert {len(row) for row in table} == {len(rows.BLAME_COLUMNS)}


figures = st.one_of(st.floats(-100, 100), st.builds(Unknown, st.text(min_size=1)))
aparts = st.builds(
    Apart, agreement=figures, relative_error=figures,
    parts=st.lists(
        st.builds(PartApart, output=st.text(), part=st.text(), sqnr_db=figures), max_size=3
    ).map(tuple),
)  # fmt: skip
all_stages = st.lists(
    st.builds(
        Stage, step=st.text(min_size=1), through=st.text(), samples=st.integers(1, 99),
        metric=figures, last=st.none() | aparts, first=st.none() | aparts,
    ),
    max_size=5,
).map(tuple)  # fmt: skip


@settings(deadline=None)
@given(stages=all_stages)
def test_what_is_written_is_read_again_and_a_blamed_fall_is_the_largest(
    stages: tuple[Stage, ...],
) -> None:
    document = json.loads(json.dumps(stages_to_json(stages, "top1")))
    assert stages_from_json(document) == stages
    said = blamed(stages, "top1")
    assert document["said"] == said
    falls = {
        float(before.metric) - float(after.metric): after.step
        for before, after in pairwise(stages)
        if not isinstance(before.metric, Unknown) and not isinstance(after.metric, Unknown)
    }
    if falls and max(falls) > 0:
        assert "falls most by" in said
    elif "falls" in said:
        pytest.fail(f"nothing falls, but: {said}")
