"""`edgekit lint`: findings as a document, and the exit code that they mean."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from edgekit.cli import app
from edgekit.models.model import Model, save
from edgekit.models.simplify import fold_batchnorm
from edgekit.pipeline.steps import outputs_of_model
from edgekit.quantize.dialects import ORT_VNNI, TENSORRT
from edgekit.quantize.observe import float_activations, observe
from edgekit.quantize.ranges import minmax
from edgekit.quantize.write import insert_qdq
from edgekit.values import Array, Batch


@pytest.fixture
def paths(residual: Model, images: Array, tmp_path: Path) -> dict[str, Path]:
    from edgekit.engines import onnxruntime

    folded, _ = fold_batchnorm(residual)
    batches = [Batch(inputs={"image": images})]
    ranges = observe(folded, float_activations(folded), batches, onnxruntime.open_model)
    found = {}
    for dialect in (TENSORRT, ORT_VNNI):
        quantized, _ = insert_qdq(folded, ranges, dialect, minmax)
        found[dialect.name] = tmp_path / f"{dialect.name}.onnx"
        save(quantized, found[dialect.name])
        assert np.isfinite(outputs_of_model(quantized, {"image": images})["logits"]).all()
    return found


def linted(*arguments: str | Path) -> tuple[int, dict[str, object]]:
    done = CliRunner().invoke(app, ["lint", *map(str, arguments), "--json"])
    return done.exit_code, json.loads(done.stdout)


def test_a_file_for_its_own_runtime_has_no_error(paths: dict[str, Path]) -> None:
    for target in ("jetson-orin-nano-8gb", "tensorrt-10"):
        code, document = linted(paths["tensorrt-10"], "--target", target)
        assert code == 0
        assert {f["severity"] for f in document["findings"]} <= {"note"}  # type: ignore[attr-defined]


def test_a_file_for_another_runtime_fails_with_the_rules(paths: dict[str, Path]) -> None:
    code, document = linted(paths["ort-vnni"], "--target", "jetson-orin-nano-8gb")
    assert code == 1
    rules = {finding["rule"] for finding in document["findings"]}  # type: ignore[attr-defined]
    assert {"zero-point-zero", "integer-type", "quantized-bias"} <= rules
    assert document["exit_code"] == 1


def test_warnings_alone_do_not_fail(paths: dict[str, Path]) -> None:
    code, document = linted(paths["tensorrt-10"], "--target", "ort-vnni")
    assert code == 0
    assert "warning" in {f["severity"] for f in document["findings"]}  # type: ignore[attr-defined]


def test_people_see_node_fault_and_fix(paths: dict[str, Path]) -> None:
    done = CliRunner().invoke(
        app, ["lint", str(paths["ort-vnni"]), "-t", "tensorrt-8"], env={"COLUMNS": "200"}
    )
    assert done.exit_code == 1
    assert "its zero point is not zero" in done.stderr
    assert "errors" in done.stderr


def test_an_unknown_target_is_bad_input(paths: dict[str, Path]) -> None:
    code, document = linted(paths["tensorrt-10"], "--target", "abacus")
    assert code == 2
    assert "abacus" in document["error"]["what"]  # type: ignore[index]
