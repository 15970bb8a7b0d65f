"""`make bench`: every case is measured and gated, and the exit code is the gate's."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import RESIDUAL_RECIPE, write_samples
from junitparser import JUnitXml

ROOT = Path(__file__).resolve().parent.parent
RUN_CASES = ROOT / "benchmarks" / "run_cases.py"
RECIPE = (
    RESIDUAL_RECIPE
    + """
[engine]
precision = "fp32"
[bench]
seconds = 0.2
rounds = 2
warmup_seconds = 0.05
history = "history.sqlite"
[gate]
"""
)


@pytest.fixture
def project(residual_path: Path) -> Path:
    folder = residual_path.parent
    write_samples(folder, 16, np.zeros(8, np.int64))
    return folder


def case(folder: Path, name: str, gate: str) -> Path:
    (folder / f"{name}.edgekit.toml").write_text(RECIPE + gate)
    path = folder / f"{name}.toml"
    path.write_text(f'recipe = "{name}.edgekit.toml"\n')
    return path


def bench(folder: Path, *cases: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RUN_CASES), *map(str, cases), "--target", "cpu", "--out", "out"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


def run_cases() -> ModuleType:
    spec = importlib.util.spec_from_file_location("run_cases", RUN_CASES)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["run_cases"] = module
    spec.loader.exec_module(module)
    return module


def test_a_case_leaves_measurements_and_verdicts_and_exits_as_the_gate(project: Path) -> None:
    done = bench(project, case(project, "fast", "min_fps = 1e9\n"))
    assert done.returncode == 1, done.stderr
    document = json.loads((project / "out/fast.json").read_text())
    assert document["targets"][0]["verdict"] == "fail"
    assert JUnitXml.fromfile(str(project / "out/fast.xml")).failures == 1
    assert "cpu fail" in (project / "out/fast.md").read_text()
    left = {path.name for path in (project / "out" / "fast").rglob("cpu/*")}
    assert {"measurement.json", "evidence.json", "engine"} <= left
    assert "fast: cpu: fail: fail: min_fps" in done.stdout


@pytest.mark.parametrize(
    ("codes", "code"),
    [((0, 0), 0), ((0, 3), 3), ((3, 4), 4), ((4, 1, 3), 1), ((1, 5), 5), ((0, 2, 1), 2),
     ((0, 130), 130)],
)  # fmt: skip
def test_the_worst_of_the_cases_is_the_exit_code(codes: tuple[int, ...], code: int) -> None:
    assert run_cases().worst(codes) == code


def test_a_case_that_is_none_is_refused_before_anything_runs(project: Path) -> None:
    wrong = project / "wrong.toml"
    wrong.write_text('recipe = "x.toml"\nspeed = 3\n')
    done = bench(project, wrong)
    assert done.returncode == 2
    assert "this is no case" in done.stderr
    assert not (project / "out").exists()


def test_a_recipe_that_is_not_there_is_that_cases_error(project: Path) -> None:
    lost = project / "lost.toml"
    lost.write_text('recipe = "nowhere.toml"\n')
    done = bench(project, lost)
    assert done.returncode == 2
    assert "lost: exit code 2" in done.stdout


def test_the_cases_of_the_project_name_recipes_that_exist() -> None:
    module = run_cases()
    cases = [module.read_case(path) for path in sorted(module.CASES.glob("*.toml"))]
    assert cases
    assert all(one.recipe.is_file() for one in cases)
