"""`edgekit channels`: limits of three kinds, with data and without; bad input leaves nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from edgekit.cli import app
from edgekit.models.cost import total_cost
from edgekit.models.model import Model
from edgekit.models.source import load
from edgekit.values import Array


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def samples(tmp_path: Path, images: Array) -> str:
    path = tmp_path / "data.npz"
    np.savez(path, image=images)
    return str(path)


def channels(*arguments: str | Path) -> tuple[int, dict[str, object]]:
    done = CliRunner().invoke(app, ["channels", *map(str, arguments), "--json"])
    return done.exit_code, json.loads(done.stdout)


def refused(*arguments: str | Path) -> dict[str, str]:
    """The error of a call that must leave no file behind."""
    code, document = channels(*arguments, "-o", "out/small.onnx")
    assert code == 2
    assert not Path("out").exists()
    error = document["error"]
    assert isinstance(error, dict)
    return error


def test_macs_and_parameters_are_shares_or_counts(residual_path: Path) -> None:
    before = total_cost(load(residual_path))
    for limit in ("0.5", "50%", str(before.macs // 2)):
        code, report = channels(residual_path, "--macs", limit, "-o", "small.onnx")
        assert code == 0
        assert total_cost(load(Path("small.onnx"))).macs == report["macs_after"]
        assert report["macs_after"] <= before.macs / 2
    code, report = channels(residual_path, "--params", "0.6", "-o", "small.onnx")
    assert report["parameters_after"] <= 0.6 * before.parameters
    assert json.loads(Path("small.plan.json").read_text())["kept"]


def test_milliseconds_go_by_a_table_that_is_measured_here(residual_path: Path) -> None:
    """How much a layer gains by being narrower is this machine's affair: no gain is asked for."""
    code, report = channels(
        residual_path, "--latency-ms", "100%", "--target", "cpu", "-o", "small.onnx"
    )
    assert code == 0
    latency = report["latency_ms"]
    assert isinstance(latency, dict)
    assert latency["source"] == "measured"
    assert latency["after"] <= latency["before"]


@pytest.fixture
def table(residual_path: Path) -> str:
    """A table in which a layer takes a microsecond for each pair of channels."""
    done = CliRunner().invoke(
        app, ["table", str(residual_path), "--target", "cpu", "-o", "table.json", "--json"]
    )
    assert done.exit_code == 0
    stored = json.loads(Path("table.json").read_text())
    for row in stored["layers"]:
        row["seconds"] = 1e-6 * row["layer"]["channels_in"] * row["layer"]["channels_out"]
    Path("table.json").write_text(json.dumps({**stored, "scale": 1.0, "bytes_per_s": 1e12}))
    return "table.json"


def test_milliseconds_go_by_a_table_that_is_given(residual_path: Path, table: str) -> None:
    code, report = channels(residual_path, "--latency-ms", "70%", "--table", table, "-o", "s.onnx")
    latency = report.get("latency_ms", report)
    assert isinstance(latency, dict)
    assert code == 0, report
    before = sum(weight_pairs(load(residual_path)))
    after = sum(weight_pairs(load(Path("s.onnx"))))
    assert latency["before"] == pytest.approx(1e-3 * before, rel=1e-2)
    assert latency["after"] == pytest.approx(1e-3 * after, rel=1e-2)
    assert after <= 0.7 * before


def weight_pairs(model: Model) -> list[int]:
    """Of each convolution and matrix, channels read times channels made."""
    return [
        shape[0] * shape[1]
        for value in model.graph.initializers.values()
        for shape in [tuple(int(str(size)) for size in value.shape or ())]
        if len(shape) > 1
    ]


def test_milliseconds_of_another_machine_are_an_estimate_and_say_so(residual_path: Path) -> None:
    code, report = channels(
        residual_path, "--latency-ms", "95%", "-t", "jetson-orin-nano-8gb", "-o", "small.onnx"
    )
    latency = report.get("latency_ms", report)
    assert isinstance(latency, dict)
    assert (code, latency["source"]) == (0, "roofline"), report


@pytest.mark.torch
def test_with_data_what_is_left_is_repaired(residual_path: Path, samples: str) -> None:
    pytest.importorskip("torch", reason="needs the compress extra")
    code, report = channels(
        residual_path, "--macs", "0.5", "--data", samples, "--criterion", "thinet",
        "--budget", "sensitivity", "-o", "small.onnx",
    )  # fmt: skip
    assert code == 0
    repair = report["repair"]
    assert isinstance(repair, dict)
    assert repair["layers"]
    plain = channels(
        residual_path, "--macs", "0.5", "--data", samples, "--no-repair", "-o", "plain.onnx"
    )[1]
    assert "repair" not in plain


def test_a_limit_out_of_reach_names_what_can_be_reached(residual_path: Path) -> None:
    error = refused(residual_path, "--macs", "0.01")
    assert error["what"] == "this budget cannot be met"
    least = error["wanted"].split()[2].rstrip(",")
    code, _ = channels(residual_path, "--macs", least, "-o", "small.onnx")
    assert code == 0


@pytest.mark.parametrize("limit", ["1.5", "0", "-1", "nan", "inf", "150%", "half"])
def test_a_limit_that_is_none_is_refused(residual_path: Path, limit: str) -> None:
    error = refused(residual_path, f"--macs={limit}")
    assert "between 0 and 1" in error["what"] or "no limit" in error["what"]


def test_no_limit_at_all_is_refused(residual_path: Path) -> None:
    assert "no limit is given" in refused(residual_path)["what"]


def test_names_that_are_not_known_name_the_nearest(residual_path: Path) -> None:
    error = refused(residual_path, "--macs", "0.5", "--criterion", "thinnet")
    assert "thinet" in error["hint"]
    error = refused(residual_path, "--macs", "0.5", "--budget", "unifrom")
    assert "uniform" in error["hint"]


def test_a_criterion_that_looks_at_data_asks_for_them(residual_path: Path) -> None:
    assert "--data" in refused(residual_path, "--macs", "0.5", "--criterion", "thinet")["hint"]
    assert "--data" in refused(residual_path, "--macs", "0.5", "--budget", "sensitivity")["hint"]


def test_data_that_do_not_fit_are_refused(residual_path: Path, tmp_path: Path) -> None:
    path = tmp_path / "wrong.npz"
    np.savez(path, image=np.zeros((8, 3, 5, 5), np.float32))
    assert refused(residual_path, "--macs", "0.5", "--data", path)["what"]


@pytest.mark.torch
def test_nan_in_the_data_is_refused(residual_path: Path, images: Array, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the compress extra")
    images = images.copy()
    images[3, 0, 0, 0] = np.nan
    path = tmp_path / "nan.npz"
    np.savez(path, image=images)
    error = refused(residual_path, "--macs", "0.5", "--data", path)
    assert "NaN" in error["what"] + error["got"]


def test_nan_weights_are_refused(residual_path: Path) -> None:
    proto = onnx.load(residual_path)
    tensor = next(
        t for t in proto.graph.initializer if t.name.endswith("weight") and len(t.dims) == 4
    )
    weight = numpy_helper.to_array(tensor).copy()
    weight.flat[0] = np.nan
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    onnx.save(proto, "broken.onnx")
    for criterion in ("l2", "random"):
        error = refused("broken.onnx", "--macs", "0.5", "--criterion", criterion)
        assert "NaN" in error["what"]


def test_a_model_with_nothing_to_cut_is_refused_with_the_reason() -> None:
    weight = numpy_helper.from_array(np.ones((4, 3, 1, 1), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="only")], "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 8, 8])], [weight],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
              "one.onnx")  # fmt: skip
    error = refused("one.onnx", "--macs", "0.5")
    assert error["what"] == "no channel of this model can be removed"
    assert "graph output" in error["got"]


def test_a_table_of_another_network_is_refused(residual_path: Path) -> None:
    Path("table.json").write_text("{}")
    error = refused(residual_path, "--latency-ms", "50%", "--table", "table.json")
    assert "no table of layers" in error["what"]


def test_a_model_that_cannot_be_written_leaves_no_plan(residual_path: Path) -> None:
    Path("small.onnx").mkdir()
    code, document = channels(residual_path, "--macs", "0.5", "-o", "small.onnx")
    assert code in (2, 6), document
    assert not Path("small.plan.json").exists()


@pytest.mark.torch
def test_the_defaults_with_data_are_taylor_and_repair(residual_path: Path, samples: str) -> None:
    pytest.importorskip("torch", reason="needs the compress extra")
    _, report = channels(residual_path, "--macs", "0.5", "--data", samples, "-o", "small.onnx")
    assert (report["criterion"], report["budget"]) == ("taylor", "global")
    _, report = channels(residual_path, "--macs", "0.5", "-o", "small.onnx")
    assert (report["criterion"], report["budget"]) == ("l2", "global")


@pytest.mark.torch
def test_milliseconds_with_data_keep_the_best_of_several_ways(
    residual_path: Path, samples: str, table: str
) -> None:
    pytest.importorskip("torch", reason="needs the compress extra")
    common = (residual_path, "--latency-ms", "70%", "--table", table, "--data", samples)
    code, report = channels(*common, "-o", "small.onnx")
    assert (code, report["budget"]) == (0, "latency")
    tried = report["tried"]
    assert isinstance(tried, dict)
    assert set(tried) == {"latency", "global", "uniform", "search"}
    best = max(tried, key=lambda how: tried[how])
    time = report["latency_ms"]
    assert isinstance(time, dict)
    assert time["after"] <= 0.7 * time["before"]
    alone = channels(*common, "--budget", "uniform", "-o", "uniform.onnx")[1]
    assert "tried" not in alone
    assert (report["groups"] == alone["groups"]) or best != "uniform"
