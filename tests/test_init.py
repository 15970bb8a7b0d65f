"""A first recipe is a recipe that works; models and engines are compared on the same samples."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from test_cli import RECIPE, assert_one_panel, edgekit

from edgekit.models.model import to_bytes
from edgekit.models.simplify import clean, fold_batchnorm
from edgekit.models.source import load
from edgekit.recipe import load_recipe


@pytest.fixture
def folder(residual_path: Path) -> Path:
    place = residual_path.parent
    images = np.random.default_rng(3).normal(size=(24, 3, 8, 8)).astype(np.float32)
    np.savez(place / "calibration.npz", image=images[:16])
    np.savez(place / "evaluation.npz", image=images[16:], labels=np.arange(8) % 5)
    return place


def test_init_writes_a_recipe_that_builds(folder: Path) -> None:
    done = edgekit(
        "init", "residual.onnx", "--calibration", "calibration.npz", "--evaluation",
        "evaluation.npz", "--target", "cpu", folder=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    recipe = load_recipe(folder / "edgekit.toml")
    assert recipe.model.path == "residual.onnx"
    assert recipe.evaluate.metric == "top1"
    assert recipe.compress.channels is not None
    assert recipe.targets == ("cpu",)
    assert edgekit("build", "--dry-run", folder=folder).returncode == 0


def test_init_keeps_a_recipe_that_is_there(folder: Path) -> None:
    (folder / "edgekit.toml").write_text(RECIPE)
    assert_one_panel(edgekit("init", "residual.onnx", folder=folder), "there is a recipe already")
    assert (folder / "edgekit.toml").read_text() == RECIPE
    assert edgekit("init", "residual.onnx", "--force", folder=folder).returncode == 0
    assert (folder / "edgekit.toml").read_text() != RECIPE


def test_init_names_the_model_from_where_the_recipe_is(folder: Path) -> None:
    (folder / "inner").mkdir()
    assert (
        edgekit("init", "residual.onnx", "-o", "inner/edgekit.toml", folder=folder).returncode == 0
    )
    recipe = load_recipe(folder / "inner" / "edgekit.toml")
    assert recipe.model.path == "../residual.onnx"


@pytest.mark.torch
def test_init_of_a_factory_carries_weights_and_shapes(folder: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the compress extra")
    (folder / "net.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), "
        "nn.Linear(12, 4))\n"
    )
    torch.save({"1.weight": torch.zeros(4, 12), "1.bias": torch.ones(4)}, folder / "net.pt")
    done = edgekit(
        "init", "net.py:make", "--weights", "net.pt", "--input", "image=1,3,2,2", "--json",
        folder=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["largest difference from the source"] < 1e-6
    recipe = load_recipe(folder / "edgekit.toml")
    assert recipe.model.factory == "net.py:make"
    assert recipe.model.weights == "net.pt"
    assert recipe.model.inputs == {"image": (1, 3, 2, 2)}


def test_an_input_without_sizes_is_one_panel(folder: Path) -> None:
    done = edgekit("init", "net.py:make", "--input", "image=1,three", folder=folder)
    assert_one_panel(done, "no input and its shape", "images=1,3,224,224")


def test_verify_gives_metric_agreement_and_error(folder: Path) -> None:
    folded, _ = fold_batchnorm(clean(load(folder / "residual.onnx")))
    (folder / "folded.onnx").write_bytes(to_bytes(folded))
    done = edgekit(
        "verify", "residual.onnx", "folded.onnx", "--data", "evaluation.npz", "--json",
        folder=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["metric"] == "top1"
    assert report["before"] == report["after"]
    assert report["agreement"] == 1.0
    assert 0 < report["relative_error"] < 1e-5
    assert report["samples"] == 8


def test_an_engine_is_verified_against_its_model(folder: Path) -> None:
    (folder / "edgekit.toml").write_text(RECIPE + "[bench]\nseconds = 0.4\nrounds = 2\n")
    built = edgekit("build", "--target", "cpu", folder=folder)
    assert built.returncode == 0, built.stderr
    (engine,) = {path.parent for path in (folder / "build" / "residual").rglob("manifest.json")}
    done = edgekit(
        "verify", "residual.onnx", str(engine), "--data", "evaluation.npz", "--json", folder=folder
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["relative_error"] < 0.1


def test_models_with_other_outputs_are_not_compared(folder: Path) -> None:
    model = load(folder / "residual.onnx")
    model.program.graph.outputs[0].name = "scores"
    (folder / "other.onnx").write_bytes(to_bytes(model))
    done = edgekit(
        "verify", "residual.onnx", "other.onnx", "--data", "evaluation.npz", folder=folder
    )
    assert_one_panel(done, "do not have the same inputs and outputs")


@pytest.mark.torch
def test_inspect_looks_at_a_factory_and_tells_how_near_the_graph_is(folder: Path) -> None:
    pytest.importorskip("torch", reason="needs the compress extra")
    (folder / "net.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), "
        "nn.Linear(12, 4))\n"
    )
    done = edgekit("inspect", "net.py:make", "--input", "image=1,3,2,2", "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["parameters"] == 12 * 4 + 4
    assert found["inputs"][0]["shape"] == ["batch", 3, 2, 2]
    assert "largest difference" in found["history"][-1]
