"""`edgekit build --target all`: what each target gets, what is made once, and the exit code."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RESIDUAL_RECIPE, write_samples

from edgekit.errors import EdgekitError, InputError, MissingPackageError
from edgekit.pipeline import build as pipeline
from edgekit.pipeline.cache import Cache, Step
from edgekit.pipeline.quantization import dialect_of
from edgekit.pipeline.result import BuildResult, Facts, Refusal, TargetResult
from edgekit.pipeline.workshop import Workshop
from edgekit.report import rows
from edgekit.targets import load_target, resolve_target, target_names
from edgekit.values import Unknown, Verdict

RECIPE = (
    RESIDUAL_RECIPE
    + """
[quantize]
ranges = "percentile"
refine = "none"
[engine]
precision = "int8"
[bench]
seconds = 0.2
rounds = 2
warmup_seconds = 0.02
"""
)
OWN = """
name = "own-board"
title = "A board of one's own"
extends = "rtx-3060"
"""
SHARED = ("outputs", "verify", "simplify", "observe")


@pytest.fixture
def project(residual_path: Path) -> Path:
    """A folder with a recipe, the residual network, seeded data and a target of its own."""
    folder = residual_path.parent
    write_samples(folder, 16, np.arange(16) % 5)
    (folder / "edgekit.toml").write_text(RECIPE)
    (folder / "targets").mkdir()
    (folder / "targets" / "own-board.toml").write_text(OWN)
    return folder


def request(project: Path, **options: Any) -> pipeline.BuildRequest:
    return pipeline.BuildRequest(recipe=project / "edgekit.toml", targets=("all",), **options)


def test_all_is_every_profile_and_each_refusal_is_named(project: Path) -> None:
    found = pipeline.plan(request(project))
    refused = {name for name in target_names() if "int8" not in load_target(name).precisions}
    assert {"jetson-nano", "jetson-tx2", "jetson-tx2-nx"} <= refused
    notes = [note for note in found.notes if " is refused: " in note]
    assert {note.partition(" is refused: ")[0] for note in notes} == refused
    assert all("no INT8 hardware" in note for note in notes)
    named = {target for _, target, _ in found.steps if target}
    assert named == {*target_names(project)} - refused
    assert "own-board" in named
    dialects = {json.dumps(dialect_of(resolve_target(name).target).as_json()) for name in named
                if name in target_names()}  # fmt: skip
    assert [step for step, _, _ in found.steps].count("quantize") == len(dialects) < len(named)
    shared = Counter(step for step, target, _ in found.steps if not target)
    assert all(shared[step] <= 2 for step in SHARED)  # the original's outputs, the folded one's


def test_all_takes_the_recipes_own_too(project: Path) -> None:
    with (project / "edgekit.toml").open("a") as recipe:
        recipe.write('[build]\ntargets = ["jetson-orin-nano-8gb@6.0"]\n')
    named = {target for _, target, _ in pipeline.plan(request(project)).steps}
    assert {"jetson-orin-nano-8gb@6.0", "jetson-orin-nano-8gb", "own-board"} <= named


@pytest.mark.rtx
def test_each_gets_an_engine_a_recipe_or_a_reason(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="needs the rtx extra")
    few = ("jetson-nano", "cpu", "own-board", "rtx-3060", "jetson-orin-nx-8gb", "x86-openvino")
    monkeypatch.setattr(pipeline, "target_names", lambda beside: few)
    monkeypatch.setattr("edgekit.engines.openvino.package", _absent)
    result = pipeline.build(request(project), on_event=lambda event: None)
    assert {target.target: target.made for target in result.targets} == {
        "cpu": "engine", "own-board": "engine", "rtx-3060": "engine",
        "jetson-orin-nx-8gb": "device recipe",
    }  # fmt: skip
    refused = {one.target: one.error.exit_code for one in result.refused}
    assert refused == {"jetson-nano": 2, "x86-openvino": 5}
    assert result.exit_code == 0
    table = {row[0]: row for row in rows.summary_rows(result)}
    assert list(table) == [*(target.target for target in result.targets), *refused]
    assert {len(row) for row in table.values()} == {len(rows.SUMMARY_COLUMNS)}
    assert "no INT8 hardware" in table["jetson-nano"][-1]
    done = Counter((step.step, step.target) for step in result.steps)
    assert max(done[step, ""] for step in ("simplify", "observe")) == 1
    quantized = [step.target for step in result.steps if step.step == "quantize"]
    assert "rtx-3060" not in quantized  # the same dialect as own-board's, made once
    stored = json.loads(Path(result.summary).read_text())
    assert [one["made"] for one in stored["targets"]] == [one.made for one in result.targets]
    strict = pipeline.build(request(project, strict=True), on_event=lambda event: None)
    assert strict.exit_code == 2


def _absent() -> None:
    raise MissingPackageError("the package openvino is not on this machine")


def test_where_all_refuse_alike_the_build_does_too(project: Path) -> None:
    with pytest.raises(InputError, match="one stream"):
        pipeline.build(
            request(project, engine={"streams": 2}), on_event=lambda event: None
        )  # fmt: skip
    assert not (project / "build").exists()


def test_what_a_shared_step_refuses_is_not_tried_for_each_target(tmp_path: Path) -> None:
    tried = []

    def make(folder: Path, partial: Path) -> None:
        tried.append(folder)
        raise InputError("it cannot be cut so far")

    workshop = Workshop(cache=Cache(tmp_path), on_event=lambda event: None)
    step = Step(name="channels", key="k", make=make)
    for _ in range(3):
        with pytest.raises(InputError, match="cannot be cut"):
            workshop.do(step)
    assert len(tried) == 1


def facts() -> Facts:
    unknown = Unknown("not measured here")
    return Facts(
        what="x", metric=0.5, macs=1.0, parameters=1.0, file_bytes=1.0, fps=unknown, p50_ms=unknown,
        p99_ms=unknown, memory_bytes=unknown, memory_is="the plan's",
    )  # fmt: skip


def target_of(verdict: Verdict) -> TargetResult:
    return TargetResult(
        target=verdict.value, title="x", metric_name="top1", precision="int8", before=facts(),
        after=facts(), verdict=verdict, checks=(), because="", notes=(), folder="x", files=(),
        measured_age_s=0.0,
    )  # fmt: skip


REFUSED = InputError("no INT8 hardware")
ABSENT = MissingPackageError("no openvino")


@pytest.mark.parametrize(
    ("verdicts", "errors", "all_targets", "strict", "code"),
    [
        ((Verdict.PASS,), (REFUSED,), True, False, 0),
        ((Verdict.PENDING,), (REFUSED, ABSENT), True, False, 0),
        ((Verdict.PASS,), (REFUSED,), True, True, 2),
        ((Verdict.PASS,), (ABSENT,), True, True, 5),
        ((Verdict.PENDING,), (), True, True, 3),
        ((Verdict.PASS,), (REFUSED,), False, False, 2),  # who names a target is owed it
        ((Verdict.FAIL,), (REFUSED,), True, False, 1),
        ((Verdict.FAIL,), (REFUSED,), False, True, 1),
        ((Verdict.INVALID,), (REFUSED,), False, False, 4),
        ((Verdict.INCONCLUSIVE,), (REFUSED,), True, False, 3),
        ((), (REFUSED, ABSENT), True, False, 2),
        ((), (ABSENT,), True, False, 5),
        ((), (), True, False, 0),
    ],
)
def test_the_exit_code_is_the_worst_of_those_that_count(
    verdicts: tuple[Verdict, ...], errors: tuple[EdgekitError, ...], all_targets: bool,
    strict: bool, code: int,
) -> None:  # fmt: skip
    result = BuildResult(
        model="x", targets=tuple(map(target_of, verdicts)), steps=(), seconds=0.0, summary="",
        strict=strict, all_targets=all_targets,
        refused=tuple(Refusal(target="t", title="T", error=error) for error in errors),
    )  # fmt: skip
    assert result.exit_code == code
