"""`edgekit inspect`: everything that can be known, the reason where it cannot, JSON and text."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from edgekit.cli import app
from edgekit.errors import InputError
from edgekit.pipeline.origin import parse_inputs
from edgekit.report import inspection, inspection_rows
from edgekit.report.inspection import inspect
from edgekit.values import Unknown

C = 16
MACS = 64 * (3 * 9 * C + 9 * C * C + 9 * C * C + C * C + 9 * C * C) + 2 * C * 5


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["inspect", *arguments], env={"COLUMNS": "80"})


def document(*arguments: str) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def odd_model(path: Path) -> Path:
    """A convolution, an operator of nobody's domain, and sizes that nobody gave."""
    nodes = [
        helper.make_node("Conv", ["image", "w"], ["a"], name="conv"),
        helper.make_node("Magic", ["a"], ["b"], name="magic", domain="acme"),
        helper.make_node("Relu", ["b"], ["y"], name="relu"),
    ]
    graph = helper.make_graph(
        nodes,
        "odd",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "height", "width"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "c", "p", "q"])],
        [numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), "w")],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("acme", 2)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def test_the_document_of_the_residual_network(residual_path: Path) -> None:
    found = document(str(residual_path))
    parameters = 3 * 9 * C + 3 * 9 * C * C + C * C + 5 * 2 * C + 2 * C * 5 + 5
    assert found["macs"] == found["macs_at_least"] == MACS
    assert (found["parameters"], found["statistics"]) == (parameters, 5 * 2 * C)
    assert found["weight_bytes_by_type"]["float"] == 4 * (parameters + 5 * 2 * C)
    assert found["inputs"] == [
        {"name": "image", "dtype": "float32", "shape": ["batch", 3, 8, 8]}
    ]  # fmt: skip
    assert (found["opset"], found["ir_version"], found["opsets"]) == (17, 9, {"": 17})
    assert found["operators"]["Conv"] == 5
    assert found["activations"]["peak_bytes"] == 768 + 4096 + 4096 + 8192
    assert found["activations"]["live"][0] == {"name": "both", "nbytes": 8192}
    assert found["target"] is None
    best = found["costliest"]["by_macs"][0]
    assert best["macs"] == 64 * 9 * C * C
    assert best["weights"][0].endswith(".weight")
    assert set(found["channels"]["groups"].values()) == {C}
    assert "logits" in found["channels"]["frozen"]["fc.weight"]


def test_a_batch_is_taken_where_it_is_dynamic(residual_path: Path) -> None:
    found = document(str(residual_path), "--batch", "4")
    assert (found["batch"], found["macs"]) == (4, 4 * MACS)
    found = document(str(residual_path), "--shape", "image=2,3,8,8")
    assert (found["batch"], found["macs"]) == (2, 2 * MACS)


def test_top_limits_what_is_listed(residual_path: Path) -> None:
    found = document(str(residual_path), "--top", "2")
    assert [len(found["costliest"][key]) for key in ("by_macs", "by_bytes")] == [2, 2]


def test_what_is_only_partly_known_gives_everything_else(tmp_path: Path) -> None:
    path = odd_model(tmp_path / "odd.onnx")
    found = document(str(path))
    assert "height, width open" in found["macs"]["unknown"]
    assert found["parameters"] == 8 * 27
    assert found["operators"] == {"Conv": 1, "acme::Magic": 1, "Relu": 1}
    assert found["opsets"] == {"": 17, "acme": 2}
    assert "unknown" in found["activations"]["peak_bytes"]
    done = run(str(path))
    assert done.exit_code == 0
    said = " ".join(done.stderr.split())
    assert "unknown (" in said
    assert "height" in said


def test_given_sizes_make_known_what_can_be(tmp_path: Path) -> None:
    path = odd_model(tmp_path / "odd.onnx")
    found = document(str(path), "--shape", "image=1,3,10,10")
    assert found["macs_at_least"] == 64 * 8 * 27
    assert 'the domain "acme"' in found["macs"]["unknown"]
    assert found["shapes"] == {"image": "(1, 3, 10, 10)"}


def test_a_function_in_the_file_is_counted_as_its_body(tmp_path: Path) -> None:
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mine", 1)]
    body = [helper.make_node("MatMul", ["p", "q"], ["r"])]
    function = helper.make_function("mine", "Product", ["p", "q"], ["r"], body, opsets[:1])
    graph = helper.make_graph(
        [helper.make_node("Product", ["x", "w"], ["y"], domain="mine")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 5])],
        [numpy_helper.from_array(np.ones((4, 5), np.float32), "w")],
    )
    path = tmp_path / "function.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=opsets, functions=[function], ir_version=9), path
    )
    found = document(str(path))
    assert (found["macs"], found["parameters"]) == (3 * 4 * 5, 20)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--shape", "image"), "this is no input and its shape"),
        (("--shape", "image=1,3,0,8"), "this is no input and its shape"),
        (("--shape", "picture=1,3,8,8"), 'no input "picture"'),
        (("--shape", "image=1,3,9,9"), "does not take this shape"),
        (("--batch", "0"), "at least one sample"),
        (("--top", "0"), "at least one layer"),
        (("--target", "nobody"), 'no target called "nobody"'),
    ],
)
def test_what_cannot_be_asked_is_refused(
    residual_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = run(str(residual_path), *arguments)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())


def test_without_torch_what_can_be_trained_is_unknown(
    residual_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        inspection.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == "torch" else real(name, *rest),
    )
    found = inspect(residual_path).untrainable
    assert isinstance(found, Unknown)
    assert "torch is not installed" in found.reason


@pytest.mark.torch
def test_operators_that_the_executor_lacks_are_named(tmp_path: Path) -> None:
    assert document(str(odd_model(tmp_path / "odd.onnx")))["untrainable"] == {
        "acme::Magic": ["magic"]
    }


@pytest.mark.torch
def test_a_network_that_can_be_trained_has_nothing_listed(residual_path: Path) -> None:
    assert document(str(residual_path))["untrainable"] == {}


def test_this_machine_is_estimated_and_every_time_is_called_an_estimate(
    residual_path: Path,
) -> None:
    found = document(str(residual_path), "--target", "cpu")["target"]
    assert found["preflight"]["verdict"] == "passed"
    (fp32, _) = found["estimates"]
    assert fp32["is_estimate"] is True
    assert fp32["latency_s"] >= fp32["at_least_s"] > 0
    assert fp32["fps"] == pytest.approx(1 / fp32["latency_s"])
    assert sum(kernel["seconds"] for kernel in fp32["kernels"]) == pytest.approx(fp32["latency_s"])
    assert {kernel["bound"] for kernel in fp32["kernels"]} <= {"arithmetic", "bytes"}
    assert any("measured just now" in line for line in found["estimates_rest_on"])
    said = run(str(residual_path), "--target", "cpu").stderr
    assert "estimate, not measured" in said


def test_a_device_from_its_file_by_hand(residual_path: Path) -> None:
    found = document(str(residual_path), "--target", "jetson-orin-nano-8gb")["target"]
    by_precision = {one["precision"]: one for one in found["estimates"]}
    assert set(by_precision) == {"fp32", "fp16", "int8"}
    stem = by_precision["fp32"]["kernels"][0]
    moved = 4 * (3 * 64 + 16 * 27 + 4 * 16 + 16 * 64)
    assert stem["arithmetic_s"] == pytest.approx(2 * 64 * 16 * 27 / 2.09e12)
    assert stem["bytes_s"] == pytest.approx(moved / 102e9)
    assert found["memory_bytes"] == 7_990_149_120


def test_figures_that_a_target_lacks_are_unknown_with_what_to_do(
    residual_path: Path, tmp_path: Path
) -> None:
    board = tmp_path / "board.toml"
    board.write_text(
        'name = "board"\ntitle = "A board"\nfamily = "cpu"\nprecisions = ["fp32"]\n'
        "multiple = { fp32 = 8 }\npeak = { fp32 = 1e9 }\n"
        '[runtime]\nname = "onnxruntime"\nversion = "1.20"\ndialect = "onnxruntime"\n'
        'build = "device"\nopset = 17\n'
    )
    found = document(str(residual_path), "--target", str(board))["target"]
    assert "bandwidth_bytes_per_s" in found["estimates"][0]["latency_s"]["unknown"]
    assert isinstance(found["estimates"][0]["memory_bytes"], int)


def test_a_preflight_that_cannot_be_made_spoils_nothing_else(tmp_path: Path) -> None:
    found = document(str(odd_model(tmp_path / "odd.onnx")), "--target", "jetson-orin-nano-8gb")
    assert found["parameters"] == 8 * 27
    assert "unknown" in found["target"]["preflight"]
    assert "unknown" in found["target"]["estimates"][0]["fps"]


@pytest.mark.parametrize("target", [(), ("--target", "cpu"), ("--target", "rtx-3060")])
def test_the_text_fits_80_columns(residual_path: Path, target: tuple[str, ...]) -> None:
    done = run(str(residual_path), *target)
    assert done.exit_code == 0
    assert max(map(len, done.stderr.splitlines())) <= 80


def test_a_long_name_keeps_both_ends() -> None:
    short = inspection_rows.short("/backbone/stages.3/blocks.11/mlp/fc1/MatMul", 20)
    assert len(short) == 20
    assert short.startswith("/backbone")
    assert short.endswith("c1/MatMul")


@pytest.mark.parametrize("text", ["x", "=1,2", "x=", "x=1,,2", "x=a"])
def test_a_shape_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        parse_inputs([text])


def test_a_shape_may_have_any_name() -> None:
    assert parse_inputs(["a=b=1,3", "c=4x5"]) == {"a=b": (1, 3), "c": (4, 5)}
