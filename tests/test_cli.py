"""The command as a user types it: exit codes, one panel, no traceback, JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import RESIDUAL_RECIPE, write_samples

RECIPE = RESIDUAL_RECIPE


def edgekit(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edgekit.cli", *arguments], cwd=folder, capture_output=True,
        text=True, check=False,
    )  # fmt: skip


@pytest.fixture
def project(residual_path: Path) -> Path:
    folder = residual_path.parent
    write_samples(folder, 16, np.zeros(8, np.int64))
    (folder / "edgekit.toml").write_text(RECIPE)
    return folder


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def assert_one_panel(done: subprocess.CompletedProcess[str], *said: str) -> None:
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stderr.count("╭") == 1
    flat = " ".join(done.stderr.replace("│", " ").split())
    for words in said:
        assert words in flat


def npz(folder: Path, **arrays: np.ndarray) -> None:
    np.savez(folder / "evaluation.npz", **arrays)


GOOD = np.zeros((4, 3, 8, 8), np.float32)
LABELS = np.zeros(4, np.int64)


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"picture": GOOD}, 'no array for the input "image"'),
        ({"image": GOOD[:, :1]}, "wrong shape"),
        ({"image": GOOD[0]}, "wrong number of axes"),
        ({"image": GOOD.astype(np.uint8)}, "holds pixels"),
        ({"image": GOOD.astype(np.float64)}, "wrong type"),
        ({"image": np.full_like(GOOD, np.nan)}, "NaN or infinity"),
        ({"image": np.full_like(GOOD, np.inf)}, "NaN or infinity"),
        ({"image": GOOD[:0]}, "no sample"),
        ({"image": GOOD, "labels": LABELS[:3]}, "same number of samples"),
    ],
    ids=["name", "shape", "axes", "uint8", "float64", "nan", "infinity", "empty", "labels"],
)
def test_bad_data_is_one_panel_and_changes_nothing(
    project: Path, arrays: dict[str, np.ndarray], said: str
) -> None:
    npz(project, **arrays)
    before = files(project)
    assert_one_panel(edgekit("build", "--target", "cpu", folder=project), said)
    assert files(project) == before


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "empty"), (b"nonsense" * 40, "not an ONNX model"), (None, "no such model file")],
    ids=["empty", "nonsense", "missing"],
)
def test_a_bad_model_is_one_panel(project: Path, content: bytes | None, said: str) -> None:
    path = project / "residual.onnx"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    before = files(project)
    assert_one_panel(edgekit("build", "--target", "cpu", folder=project), said)
    assert files(project) == before


def test_a_truncated_model_is_one_panel(project: Path) -> None:
    path = project / "residual.onnx"
    path.write_bytes(path.read_bytes()[:5000])
    assert_one_panel(edgekit("build", "--target", "cpu", folder=project), "not an ONNX model")


def test_an_unknown_target_names_the_nearest(project: Path) -> None:
    done = edgekit("build", "--target", "jetson-orin-nano", folder=project)
    assert_one_panel(done, 'no target called "jetson-orin-nano"', "jetson-orin-nano-8gb")


@pytest.mark.parametrize("macs", ["1.5", "0", "-0.1"])
def test_a_budget_outside_0_to_1_is_refused_with_its_line_of_sight(
    project: Path, macs: str
) -> None:
    recipe = project / "edgekit.toml"
    recipe.write_text(f"{RECIPE}[compress.channels]\nmacs = {macs}\n[engine]\nprecison = 'int8'\n")
    done = edgekit("build", "--target", "cpu", folder=project)
    assert_one_panel(
        done,
        f"compress.channels.macs: {float(macs):g} is not between 0 and 1",
        'engine.precison: unknown key; did you mean "precision"?',
    )


def test_an_error_with_json_is_one_document(project: Path) -> None:
    done = edgekit("build", "--target", "nothing-like-it", "--json", folder=project)
    document = json.loads(done.stdout)
    assert document["exit_code"] == done.returncode == 2
    assert "no target" in document["error"]["what"]


def test_a_build_with_json_prints_one_document(project: Path) -> None:
    (project / "edgekit.toml").write_text(
        f"{RECIPE}[bench]\nseconds = 0.2\nrounds = 2\n[gate]\nmax_drop = 1.0\n"
    )
    done = edgekit("build", "--target", "cpu", "--json", folder=project)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["targets"][0]["verdict"] == "pass"
    gated = edgekit("gate", "build/residual/cpu", "--json", folder=project)
    assert (gated.returncode, json.loads(gated.stdout)["verdict"]) == (0, "pass")


def test_bench_refuses_to_invent_inputs(project: Path) -> None:
    (project / "edgekit.toml").write_text(f"{RECIPE}[bench]\nseconds = 0.2\nrounds = 2\n")
    edgekit("build", "--target", "cpu", folder=project)
    done = edgekit("bench", "build/residual/cpu/engine", folder=project)
    assert_one_panel(done, "needs real inputs")
    done = edgekit(
        "bench", "build/residual/cpu/engine", "--data", "evaluation.npz", "--seconds", "0.3",
        "--json", folder=project,
    )  # fmt: skip
    assert json.loads(done.stdout)["fps"] > 0


def test_channels_alone_writes_the_model_and_its_plan(project: Path) -> None:
    done = edgekit(
        "channels", "residual.onnx", "--macs", "0.5", "-o", "small.onnx", "--json", folder=project
    )
    report = json.loads(done.stdout)
    assert report["macs_after"] <= 0.5 * report["macs_before"]
    assert {"small.onnx", "small.plan.json"} <= files(project)
    done = edgekit("channels", "residual.onnx", "--macs", "1.5", "-o", "x.onnx", folder=project)
    assert_one_panel(done, "is not between 0 and 1")


def test_verify_compares_a_model_with_itself(project: Path) -> None:
    done = edgekit(
        "verify", "residual.onnx", "residual.onnx", "--data", "evaluation.npz", "--json",
        folder=project,
    )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["before"] == report["after"]
    assert report["agreement"] == 1
    assert report["sqnr_db"] == {"unknown": "the outputs are identical"}


@pytest.mark.parametrize(
    "arguments",
    [("targets",), ("targets", "jetson"), ("doctor",), ("inspect", "residual.onnx")],
    ids=" ".join,
)
def test_what_only_looks_prints_json_and_text(project: Path, arguments: tuple[str, ...]) -> None:
    before = files(project)
    document = json.loads(edgekit(*arguments, "--json", folder=project).stdout)
    assert document
    plain = edgekit(*arguments, folder=project)
    assert plain.returncode == 0
    assert plain.stderr.strip()
    assert files(project) == before


def test_gate_without_evidence_says_where_to_look(project: Path) -> None:
    assert_one_panel(edgekit("gate", "nowhere", folder=project), "no evidence here")
