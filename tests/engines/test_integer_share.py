"""The share of MACs that ONNX Runtime runs on integers, read from its optimised graph."""

from __future__ import annotations

import numpy as np
import pytest

from edgekit.engines import onnxruntime
from edgekit.engines.integer_share import integer_share
from edgekit.models.model import Model
from edgekit.models.simplify import fold_batchnorm
from edgekit.quantize.dialects import ORT_AVX2, TENSORRT
from edgekit.quantize.observe import float_activations, observe
from edgekit.quantize.place import place
from edgekit.quantize.prepare import prepared
from edgekit.quantize.ranges import Ranges, minmax
from edgekit.quantize.scheme import make_scheme
from edgekit.quantize.write import write_qdq
from edgekit.values import Array, Batch


@pytest.fixture
def observed(residual: Model, images: Array) -> tuple[Model, Ranges]:
    model = prepared(fold_batchnorm(residual)[0])
    batches = [Batch(inputs={"image": images})]
    return model, observe(model, float_activations(model), batches, onnxruntime.open_model)


def test_a_float_model_has_no_share(observed: tuple[Model, Ranges]) -> None:
    found = integer_share(observed[0])
    assert found.of_macs == 0
    assert len(found.floating) == 6


def test_a_file_in_its_dialect_runs_on_integers_alone(observed: tuple[Model, Ranges]) -> None:
    model, ranges = observed
    quantized, _ = write_qdq(model, make_scheme(model, place(model, ORT_AVX2), ranges, minmax))
    found = integer_share(quantized)
    assert found.of_macs == 1
    assert found.operators["QLinearConv"] == 5


def test_a_layer_that_was_left_out_counts_with_its_macs(observed: tuple[Model, Ranges]) -> None:
    model, ranges = observed
    placement = place(model, ORT_AVX2, excluded={"second": "a test"})
    quantized, _ = write_qdq(model, make_scheme(model, placement, ranges, minmax))
    found = integer_share(quantized)
    assert set(found.floating) == {"second"}
    c = 16  # channels of the fixture; 8 x 8 places
    assert found.floating["second"] == 64 * c * c * 9
    total = 64 * (c * 3 * 9 + 3 * c * c * 9 + c * c) + 5 * 2 * c
    assert found.of_macs == pytest.approx(1 - 64 * c * c * 9 / total)


def test_a_tensorrt_file_runs_mostly_in_float(observed: tuple[Model, Ranges]) -> None:
    model, ranges = observed
    quantized, _ = write_qdq(model, make_scheme(model, place(model, TENSORRT), ranges, minmax))
    assert integer_share(quantized).of_macs < 0.5
    assert np.isfinite(integer_share(quantized).of_macs)
