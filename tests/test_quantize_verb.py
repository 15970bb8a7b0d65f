"""`edgekit quantize`: what it writes, what it says, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from edgekit.cli import app
from edgekit.compress.channels.budgeting.layers import network_of
from edgekit.engines import onnxruntime as reference_runtime
from edgekit.models.model import save
from edgekit.models.simplify import clean
from edgekit.models.source import load
from edgekit.quantize.prepare import prepared
from edgekit.targets import Precision
from edgekit.values import Array, run

NANO = """
name = "my-nano"
title = "Jetson Nano"
family = "jetson"
compute_capability = "5.3"
precisions = ["fp32", "fp16"]
multiple = { fp32 = 1, fp16 = 8 }

[runtime]
name = "tensorrt"
version = "8.2"
dialect = "tensorrt"
build = "device"
opset = 13
"""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def samples(tmp_path: Path, images: Array) -> str:
    path = tmp_path / "data.npz"
    np.savez(path, image=np.concatenate([images, images[::-1] * 0.5]))
    return str(path)


def quantize(*arguments: str | Path) -> tuple[int, dict[str, Any]]:
    done = CliRunner().invoke(app, ["quantize", *map(str, arguments), "--json"])
    return done.exit_code, json.loads(done.stdout)


def refused(*arguments: str | Path) -> dict[str, str]:
    """The error of a call that must leave no file behind."""
    code, document = quantize(*arguments, "-o", "out/q.onnx")
    assert code == 2, document
    assert not Path("out").exists()
    error: dict[str, str] = document["error"]
    return error


def outputs(path: Path, images: Array, *, optimise: bool) -> Array:
    with reference_runtime.open_model(load(path), optimise=optimise) as session:
        return next(iter(run(session, {"image": images}).values()))


def test_the_file_is_smaller_and_near_the_original(
    residual_path: Path, samples: str, images: Array
) -> None:
    code, found = quantize(residual_path, "--data", samples, "-o", "q.onnx")
    assert code == 0
    assert found["int8_share"] == 1.0
    assert found["kernel_share"] == 1.0
    assert found["bytes_after"] == Path("q.onnx").stat().st_size
    expected = outputs(residual_path, images, optimise=True)
    for optimise, parts in ((False, "parts"), (True, "kernel_parts")):
        made = outputs(Path("q.onnx"), images, optimise=optimise)
        noise = ((made - expected) ** 2).sum() / (expected**2).sum()
        assert -10 * np.log10(noise) > 30
        assert found[parts][0]["sqnr_db"] > 30


def test_every_node_has_its_errors_or_a_reason(residual_path: Path, samples: str) -> None:
    _, found = quantize(residual_path, "--data", samples, "--refine", "none", "-o", "q.onnx")
    assert found["refined"] is None
    for layer in found["layers"]:
        assert layer["reason"] or layer["tensors"], layer
    assert {layer["node"] for layer in found["layers"] if layer["reason"]} == set(found["left"])


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse", "best"])
def test_every_method_is_taken(residual_path: Path, samples: str, method: str) -> None:
    code, found = quantize(
        residual_path, "--data", samples, "--method", method, "--refine", "none", "-o", "q.onnx"
    )
    assert (code, found["method"]) == (0, method)
    assert found["parts"][0]["sqnr_db"] > 25


def test_a_second_target_reuses_the_ranges(residual_path: Path, samples: str) -> None:
    common = (residual_path, "--data", samples, "--refine", "none")
    assert quantize(*common, "-o", "cpu.onnx")[0] == 0
    done = CliRunner().invoke(
        app, ["quantize", *map(str, common), "-t", "jetson-orin-nano-8gb", "-o", "trt.onnx"]
    )
    assert done.exit_code == 0
    lines = [line for line in done.stderr.splitlines() if "observe" in line]
    assert lines, done.stderr
    assert all("=" in line or "cached" in line for line in lines), lines
    zeros = [
        numpy_helper.to_array(one)
        for one in onnx.load("trt.onnx").graph.initializer
        if one.name.endswith("zero_point")
    ]
    assert zeros
    assert not any(zero.any() for zero in zeros)


def test_a_floor_that_cannot_be_met_keeps_the_best_and_exits_1(
    residual_path: Path, samples: str
) -> None:
    code, found = quantize(
        residual_path, "--data", samples, "--max-drop", "0", "--metric", "fidelity",
        "--refine", "none", "-o", "q.onnx",
    )  # fmt: skip
    assert code == 1
    assert not found["met"]
    assert found["search"]["best"]["int8_share"] >= 0.95
    assert Path("q.onnx").is_file()


def test_spared_layers_are_named_and_stay_in_float(residual_path: Path, samples: str) -> None:
    common = (residual_path, "--data", samples, "--refine", "none", "-o", "q.onnx")
    _, whole = quantize(*common)
    code, found = quantize(*common, "--spare", "0.6")
    assert code == 0
    spared = found["spared"]
    assert spared["nodes"]
    assert 0 < spared["share"] <= 0.6
    assert spared["after_db"] > spared["before_db"] + 0.1
    assert {found["left"][node].split(":")[0] for node in spared["nodes"]} == {"spared"}
    assert found["int8_share"] == pytest.approx(whole["int8_share"] - spared["share"])
    assert found["parts"][0]["sqnr_db"] > whole["parts"][0]["sqnr_db"]


def table_of(path: Path, precision: Precision, seconds: float) -> str:
    """A table of the model's layers as `edgekit table` writes one, each taking as long."""
    model = prepared(clean(load(path)))
    network = network_of(model, (), runtime="onnxruntime", batch=1, precision=precision)
    rows = [{"layer": layer.to_json(), "seconds": seconds} for layer in
            {placed.layer for placed in network.layers}]  # fmt: skip
    document = {"format": 1, "runtime": "onnxruntime", "batch": 1, "precision": precision,
                "multiple": 8, "layers": rows, "bytes_per_s": 1e9, "scale": 1.0}  # fmt: skip
    Path(f"{precision}.json").write_text(json.dumps(document))
    return f"{precision}.json"


def test_a_latency_limit_goes_by_measured_tables(residual_path: Path, samples: str) -> None:
    slow, fast = table_of(residual_path, "fp32", 4e-3), table_of(residual_path, "int8", 1e-3)
    common = (residual_path, "--data", samples, "--refine", "none", "--max-ms", "1000")
    code, found = quantize(*common, "--table", fast, "--table", slow, "-o", "q.onnx")
    assert code == 0
    assert found["search"]["source"] == "measured"
    layers = len(json.loads(Path(slow).read_text())["layers"])
    assert found["search"]["saved_ms"] >= 3 * layers
    error = refused(*common, "--table", slow, "--table", slow)
    assert error["wanted"] == "one in fp32 or fp16 and one in int8"


def test_a_floor_that_holds_leaves_everything_in_int8(residual_path: Path, samples: str) -> None:
    code, found = quantize(
        residual_path, "--data", samples, "--max-drop", "0.5", "--metric", "fidelity",
        "--refine", "none", "-o", "q.onnx",
    )  # fmt: skip
    assert code == 0
    assert found["search"]["best"]["excluded"] == []


def test_a_target_without_int8_is_refused_and_fp16_offered(
    residual_path: Path, samples: str
) -> None:
    Path("my-nano.toml").write_text(NANO)
    error = refused(residual_path, "--data", samples, "-t", "./my-nano.toml")
    assert "no INT8 hardware" in error["what"]
    assert "--precision fp16" in error["hint"]
    code, found = quantize(
        residual_path, "--data", samples, "-t", "./my-nano.toml", "--precision", "fp16",
        "-o", "half.onnx",
    )  # fmt: skip
    assert code == 0
    assert found["half"]["Conv"] == 5
    kinds = {one.data_type for one in onnx.load("half.onnx").graph.initializer}
    assert TensorProto.FLOAT16 in kinds


def test_a_quantized_model_is_refused(residual_path: Path, samples: str) -> None:
    quantize(residual_path, "--data", samples, "--refine", "none", "-o", "q.onnx")
    error = refused("q.onnx", "--data", samples)
    assert error["what"] == "this model is quantized already"
    assert "lint" in error["hint"]


def test_an_old_operator_set_is_raised_first(
    residual_path: Path, samples: str, tmp_path: Path
) -> None:
    from edgekit.models.opset import lowered

    old = lowered(load(residual_path), 12)
    save(old, tmp_path / "old.onnx")
    code, _ = quantize("old.onnx", "--data", samples, "--refine", "none", "-o", "q.onnx")
    assert code == 0
    stored = onnx.load("q.onnx")
    assert stored.opset_import[0].version >= 13
    onnx.checker.check_model(stored, full_check=True)


def test_bad_samples_are_one_error_each(residual_path: Path, images: Array) -> None:
    cases = {
        "nan": np.where(np.arange(images.size).reshape(images.shape) == 7, np.nan, images),
        "zeros": np.zeros_like(images),
        "constant": np.full_like(images, 0.3),
        "shape": images[:, :2],
        "none": images[:0],
    }
    said = {}
    for name, array in cases.items():
        np.savez(f"{name}.npz", image=array.astype(np.float32))
        said[name] = refused(residual_path, "--data", f"{name}.npz")["what"]
    assert "NaN" in said["nan"]
    assert len(set(said.values())) >= 3, said


def test_few_samples_are_doubted(residual_path: Path, images: Array) -> None:
    np.savez("few.npz", image=images[:4])
    code, found = quantize(residual_path, "--data", "few.npz", "--refine", "none", "-o", "q.onnx")
    assert code == 0
    assert any("4" in doubt for doubt in found["doubts"])


def test_unknown_settings_are_named(residual_path: Path, samples: str) -> None:
    common = (residual_path, "--data", samples)
    assert "ranges" in refused(*common, "--method", "median")["got"]
    assert "refine" in refused(*common, "--refine", "polish")["got"]
    assert refused(*common, "--precision", "int4")["wanted"] == "int8, fp16"
    assert "samples" in refused(*common, "--samples", "many")["what"]


def test_a_model_without_anything_to_quantize_is_refused(tmp_path: Path, images: Array) -> None:
    graph = helper.make_graph(
        [helper.make_node("Tanh", ["image"], ["y"], name="tanh")],
        "plain",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", *images.shape[1:]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", *images.shape[1:]])],
    )
    opset = helper.make_opsetid("", 17)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), "plain.onnx")
    np.savez("data.npz", image=images)
    error = refused("plain.onnx", "--data", "data.npz")
    assert error["what"] == "no operator of this model can be quantized"
