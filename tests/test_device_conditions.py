"""What `edgekit build --from` says of a Jetson that is in another state than its target wants."""

from __future__ import annotations

from pathlib import Path

import device_recipes
import fake_trtexec
import pytest

from edgekit.pipeline.from_recipe import FromRequest, build_from
from edgekit.pipeline.result import TargetResult
from edgekit.targets import load_target
from edgekit.values import Verdict

MODES = "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
PINNED = (
    "GPU MinFreq=1020000000 MaxFreq=1020000000 CurrentFreq=1020000000\n"
    "EMC MinFreq=204000000 MaxFreq=3199000000 CurrentFreq=3199000000 FreqOverride=1\n"
)
FREE = PINNED.replace("MinFreq=1020000000", "MinFreq=306000000").replace("Override=1", "Override=0")


@pytest.fixture
def recipe(residual_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe for an Orin Nano that any machine may be, with what its target demands."""
    monkeypatch.setenv("TRTEXEC", str(fake_trtexec.install(tmp_path / "bin")))
    orin = load_target("jetson-orin-nano-8gb")
    target = orin.model_copy(update={"identity": type(orin.identity)()})
    return device_recipes.write(
        residual_path, tmp_path / "orin", {"image": device_recipes.two_batches()}, target=target
    ).folder


def built(recipe: Path, tools: Path, mode: str, clocks: str) -> TargetResult:
    tools.mkdir(exist_ok=True)
    for name, said in (("nvpmodel", mode), ("jetson_clocks", clocks)):
        (tools / f"{name}.txt").write_text(said)
        (tools / name).write_text(f"#!/bin/sh\ncat '{tools}/{name}.txt'\n")
        (tools / name).chmod(0o755)
    (target,) = build_from(FromRequest(folder=recipe), on_event=lambda event: None).targets
    return target


@pytest.mark.parametrize(
    ("mode", "clocks", "verdict", "said"),
    [
        ("MAXN_SUPER", PINNED, Verdict.PASS, ""),
        ("15W", PINNED, Verdict.INVALID, "the power mode before the run: 15W, wanted MAXN_SUPER"),
        ("MAXN_SUPER", FREE, Verdict.INVALID, "pinned by jetson_clocks; sudo jetson_clocks"),
        ("MAXN_SUPER", "", Verdict.INCONCLUSIVE, "it wants root"),
        ("", PINNED, Verdict.INCONCLUSIVE, "the device did not say it"),
    ],
)
def test_trtexecs_figures_decide_only_in_the_state_that_the_target_demands(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, clocks: str,
    verdict: Verdict, said: str,
) -> None:  # fmt: skip
    tools = tmp_path / "tools"
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    found = built(recipe, tools, f"NV Power Mode: {mode}\n2\n" if mode else "", clocks)
    assert found.verdict is verdict
    (fps,) = [check for check in found.checks if check.name == "min_fps"]
    assert said in fps.because
    assert any(said in note for note in found.notes)
