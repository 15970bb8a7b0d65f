"""A model's opset follows the target: lowered for an old runtime, raised where INT8 needs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
from conftest import residual_graph

from edgekit.pipeline.build import BuildRequest, build
from edgekit.pipeline.result import StepEvent

RECIPE = """
[model]
path = "net.onnx"
[data]
calibration = "calibration.npz"
evaluation = "evaluation.npz"
[engine]
precision = "int8"
[bench]
seconds = 0.3
rounds = 2
[build]
targets = ["TARGET"]
"""


def project(folder: Path, proto: onnx.ModelProto, target: str) -> BuildRequest:
    onnx.save(proto, folder / "net.onnx")
    images = np.random.default_rng(3).normal(size=(48, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "calibration.npz", image=images[:32])
    np.savez(folder / "evaluation.npz", image=images[32:], labels=np.arange(16) % 5)
    (folder / "edgekit.toml").write_text(RECIPE.replace("TARGET", target))
    return BuildRequest(recipe=folder / "edgekit.toml")


def test_a_board_of_an_older_opset_gets_its_graph_lowered(tmp_path: Path) -> None:
    (tmp_path / "old.toml").write_text(
        'name = "old-board"\ntitle = "An old board"\nextends = "jetson-orin-nano-8gb"\n'
        '[runtime]\nversion = "8.2"\nopset = 13\ndialect = "tensorrt-8"\n'
    )
    events: list[StepEvent] = []
    request = project(tmp_path, residual_graph(opset=18), "./old.toml")
    built = build(request, on_event=events.append)
    assert ("opset", "old-board") in {(e.step, e.target) for e in events if e.state == "done"}
    place = tmp_path / "build" / "net" / "old-board"
    lowered = onnx.load(place / "model.onnx")
    assert {entry.domain: entry.version for entry in lowered.opset_import}[""] == 13
    onnx.checker.check_model(lowered, full_check=True)
    flight = json.loads((place / "preflight.json").read_text())
    assert "opset" not in json.dumps(flight.get("refused", ""))
    assert built.targets[0].target == "old-board"


@pytest.mark.parametrize("opset", [9, 11])
def test_an_old_model_is_raised_to_be_quantized(opset: int, tmp_path: Path) -> None:
    request = project(tmp_path, residual_graph(opset=opset), "cpu")
    built = build(request, on_event=lambda event: None)
    (target,) = built.targets
    assert target.precision == "int8"
    written = onnx.load(tmp_path / "build" / "net" / "cpu" / "model.onnx")
    assert {entry.domain: entry.version for entry in written.opset_import}[""] >= 13
