"""Models from wherever they come: a recipe with a factory, its errors, its cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import InputError
from edgekit.pipeline.build import BuildRequest, build, plan
from edgekit.pipeline.origin import Origin, open_origin
from edgekit.pipeline.result import StepEvent

torch = pytest.importorskip("torch", reason="needs the compress extra")
pytestmark = pytest.mark.torch

FACTORY = """
import torch
from torch import nn

def make():
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(16, 4),
    )

def broken():
    raise RuntimeError("no such checkpoint")

def number():
    return 3
"""
SHAPES = {"images": (1, 3, 8, 8)}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(FACTORY)
    space: dict[str, object] = {}
    exec(FACTORY, space)
    module = space["make"]()  # type: ignore[operator]
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.mul_(0.5)
    torch.save(module.state_dict(), tmp_path / "net.pt")
    rng = np.random.default_rng(0)
    for name, count in (("calibration", 40), ("evaluation", 30)):
        images = rng.normal(size=(count, 3, 8, 8)).astype(np.float32)
        np.savez(tmp_path / f"{name}.npz", images=images, labels=rng.integers(0, 4, count))
    (tmp_path / "edgekit.toml").write_text(
        """
[model]
factory = "net.py:make"
weights = "net.pt"
[model.inputs]
images = [1, 3, 8, 8]
[data]
calibration = "calibration.npz"
evaluation = "evaluation.npz"
[engine]
precision = "int8"
[bench]
seconds = 0.4
rounds = 2
[build]
targets = ["cpu"]
"""
    )
    return tmp_path


def test_a_factory_and_its_weights_are_built_and_exported_once(project: Path) -> None:
    said: list[StepEvent] = []
    request = BuildRequest(recipe=project / "edgekit.toml")
    assert ("export", "", False) in plan(request).steps
    assert not (project / "build").exists()
    first = build(request, on_event=said.append)
    assert first.model == "make"
    (exported,) = [e for e in said if e.step == "export" and e.state == "done"]
    assert "largest difference from the source" in exported.said
    said.clear()
    build(request, on_event=said.append)
    assert [e.state for e in said if e.step == "export"] == ["cached"]
    (project / "net.py").write_text(FACTORY + "\n# changed\n")
    assert ("export", "", False) in plan(request).steps


def test_the_weights_are_those_of_the_file(project: Path) -> None:
    origin = Origin(place="net.py:make", folder=project, inputs=SHAPES)
    plain = open_origin(origin)
    filled = open_origin(
        Origin(place="net.py:make", folder=project, inputs=SHAPES, weights="net.pt")
    )
    first, second = (
        one.model.graph.initializers["5.weight"].const_value for one in (plain, filled)
    )
    assert first is not None
    assert second is not None
    assert np.allclose(0.5 * first.numpy(), second.numpy())


@pytest.mark.parametrize(
    ("place", "more", "match"),
    [
        ("net.py:broken", {"inputs": SHAPES}, "the factory failed"),
        ("net.py:number", {"inputs": SHAPES}, "did not return a module"),
        ("net.py:none", {"inputs": SHAPES}, 'has no function "none"'),
        ("net.py:make", {}, "do not say what they are given"),
        ("net.py:make", {"inputs": {"images": (1, 4, 8, 8)}}, "does not take these inputs"),
        ("net.py:make", {"inputs": SHAPES, "weights": "no.pt"}, "no such file"),
        ("net.pt", {}, "weights without the network"),
        ("missing.pt2", {}, "no such model file"),
        ("missing.onnx", {}, "no such model file"),
        ("missing.onnx", {"weights": "net.pt"}, "has its own weights"),
    ],
)
def test_what_is_wrong_with_an_origin_is_one_error(
    place: str, more: dict[str, object], match: str, project: Path
) -> None:
    with pytest.raises(InputError, match=match):
        open_origin(Origin(place=place, folder=project, **more))  # type: ignore[arg-type]
