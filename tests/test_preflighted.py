"""What a target is asked about is the graph that a build would bring there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.engines import tensorrt_rtx
from edgekit.engines.preflight.answers import Answer, PreflightReport
from edgekit.models.cost.sizes import forms
from edgekit.models.simplify import clean
from edgekit.models.source import load
from edgekit.report.preflighted import preflight_as_built
from edgekit.targets import load_target
from edgekit.values import Unknown


def graph_file(
    path: Path, node: onnx.NodeProto, shape: list[int], made: list[int], *, opset: int = 17
) -> Path:
    constants = {"s": np.ones(8, np.float32), "b": np.zeros(8, np.float32),
                 "g": np.zeros((1, 4, 4, 2), np.float32)}  # fmt: skip
    used = [numpy_helper.from_array(a, n) for n, a in constants.items() if n in node.input]
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, made)], used,
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def asked(path: Path, target: str) -> PreflightReport:
    model = clean(load(path))
    report = preflight_as_built(path, model, forms(model), load_target(target), "fp16")
    assert not isinstance(report, Unknown), report.reason
    return report


@pytest.fixture(autouse=True)
def without_a_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tested elsewhere, and takes seconds."""
    monkeypatch.setattr(tensorrt_rtx, "is_installed", lambda: False)


def test_a_newer_opset_is_lowered_first_as_a_build_does(tmp_path: Path) -> None:
    node = helper.make_node("LayerNormalization", ["x", "s", "b"], ["y"], name="norm")
    path = graph_file(tmp_path / "norm.onnx", node, [1, 4, 8], [1, 4, 8])
    report = asked(path, "jetson-nano")
    assert report.verdict is Answer.PASSED
    said = {line.check: line.said for line in report.lines}
    assert "opset 13, tensorrt 8.2 reads 13; lowered from 17" in said["opset"]
    assert report.nodes == ()


def test_what_cannot_be_lowered_is_judged_as_it_stands_and_says_why(tmp_path: Path) -> None:
    node = helper.make_node("GridSample", ["x", "g"], ["y"], name="warp")
    path = graph_file(tmp_path / "warp.onnx", node, [1, 3, 8, 8], [1, 3, 4, 4], opset=16)
    report = asked(path, "jetson-nano")
    assert report.verdict is Answer.REFUSED
    said = {line.check: line.said for line in report.lines}
    assert "it cannot be lowered to 13" in said["opset"]
    assert "warp" in said["opset"]
    assert [node.node for node in report.nodes] == ["warp"]


def test_an_opset_that_the_target_reads_is_left_alone(tmp_path: Path) -> None:
    node = helper.make_node("LayerNormalization", ["x", "s", "b"], ["y"], name="norm")
    path = graph_file(tmp_path / "norm.onnx", node, [1, 4, 8], [1, 4, 8])
    report = asked(path, "jetson-orin-nano-8gb")
    said = {line.check: line.said for line in report.lines}
    assert "lowered" not in said["opset"]
    assert report.verdict is Answer.PASSED
