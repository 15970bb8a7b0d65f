"""Dialects: which one a name means, and what each makes of the same small network."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from qdq_graphs import Sketch
from test_place import PlainSession, observed

from edgekit.errors import InputError
from edgekit.models.model import Model, to_bytes
from edgekit.models.opset import lowered
from edgekit.models.simplify import fold_batchnorm
from edgekit.quantize.calibration_cache import calibration_cache
from edgekit.quantize.dialects import DIALECTS, ORT_AVX2, ORT_VNNI, Dialect, dialect_named
from edgekit.quantize.lint import lint
from edgekit.quantize.observe import float_activations, observe
from edgekit.quantize.place import place
from edgekit.quantize.prepare import prepared
from edgekit.quantize.ranges import Ranges, minmax
from edgekit.quantize.saturation import largest_sums, least_scale
from edgekit.quantize.scheme import make_scheme
from edgekit.quantize.write import insert_qdq
from edgekit.values import Array, Batch

Reference = Callable[..., list[Array]]


@pytest.fixture
def folded(residual: Model) -> Model:
    return fold_batchnorm(residual)[0]


@pytest.mark.parametrize(
    ("name", "given", "found"),
    [
        ("tensorrt", {"version": "8.6"}, "tensorrt-8"),
        ("tensorrt", {"version": "10.3"}, "tensorrt-10"),
        ("tensorrt", {"version": "11.0"}, "tensorrt-strong"),
        ("onnxruntime", {}, "ort-avx2"),
        ("onnxruntime", {"cpu_flags": frozenset({"avx2", "avx_vnni"})}, "ort-vnni"),
        ("onnxruntime", {"arm": True}, "ort-arm"),
        *((name, {}, name) for name in DIALECTS),
    ],
)
def test_a_name_is_resolved_by_version_and_processor(
    name: str, given: dict[str, object], found: str
) -> None:
    assert dialect_named(name, **given).name == found  # type: ignore[arg-type]


def test_an_unknown_dialect_is_refused_with_all_names() -> None:
    with pytest.raises(InputError, match="no dialect") as caught:
        dialect_named("tensorflow")
    assert "ort-vnni" in caught.value.wanted


@pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda d: d.name)
def test_a_dialect_is_data_with_sources(dialect: Dialect) -> None:
    assert dialect.sources
    assert json.loads(json.dumps(dialect.as_json()))["name"] == dialect.name


@pytest.mark.parametrize(
    "dialect", [d for d in DIALECTS.values() if d.written == "qdq"], ids=lambda d: d.name
)
def test_our_own_files_lint_clean(folded: Model, images: Array, dialect: Dialect) -> None:
    quantized, _ = insert_qdq(folded, observed(folded, images), dialect, minmax)
    quantized = lowered(quantized, min(quantized.opset, dialect.opsets[1]))
    assert [str(f) for f in lint(quantized, dialect) if f.severity != "note"] == []


def test_avx2_kernels_saturate_unless_scales_leave_them_room(tmp_path: Path) -> None:
    """All neighbours at 127 and inputs at 255: 2 * 127 * 255 is beyond 2^15."""
    g = Sketch()
    weight = np.ones((16, 16, 3, 3), np.float32)
    y = g.op("Conv", "x", g.constant(weight), pads=[1] * 4)
    model = prepared(g.model(tmp_path, [g.op("Relu", y)]))
    samples = np.random.default_rng(0).uniform(0, 1, (4, 16, 8, 8)).astype(np.float32)
    samples[0, 0, 0, 0] = 1
    samples[1] = 1
    ranges = observed_x(model, samples)
    errors = {}
    for dialect in (ORT_AVX2, ORT_VNNI):
        quantized, _ = insert_qdq(model, ranges, dialect, minmax)
        errors[dialect.name] = kernel_error(quantized, samples[1:2])
    assert errors["ort-avx2"] < 0.01
    if not has_vnni():
        assert errors["ort-vnni"] > 0.3


def observed_x(model: Model, samples: Array) -> Ranges:
    batches = [Batch(inputs={"x": samples[i : i + 1]}) for i in range(len(samples))]
    return observe(model, float_activations(model), batches, PlainSession)


def kernel_error(model: Model, x: Array) -> float:
    """max|kernels - emulation| / max|emulation|."""
    outputs = []
    for level in ("ORT_ENABLE_ALL", "ORT_DISABLE_ALL"):
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(
            to_bytes(model), options, providers=["CPUExecutionProvider"]
        )
        outputs.append(session.run(None, {"x": x})[0])
    kernels, emulated = outputs
    return float(np.abs(kernels - emulated).max() / np.abs(emulated).max())


def has_vnni() -> bool:
    path = Path("/proc/cpuinfo")
    return not path.exists() or "vnni" in path.read_text() or "asimd" in path.read_text()


def brute_sums(weight: Array) -> Array:
    """The same by hand: rows in the order kernel rows, kernel columns, channels."""
    found = []
    for kernel in weight:
        row = [kernel[c, i, j] for i in range(kernel.shape[1]) for j in range(kernel.shape[2])
               for c in range(kernel.shape[0])]  # fmt: skip
        row += [0.0] * (len(row) % 2)
        sums = [max(max(a, 0) + max(b, 0), max(-a, 0) + max(-b, 0))
                for a, b in zip(row[::2], row[1::2], strict=True)]  # fmt: skip
        found.append(max(sums))
    return np.array(found)


@given(
    channels=st.integers(1, 4), size=st.integers(1, 3), seed=st.integers(0, 2**16),
)  # fmt: skip
def test_the_largest_sums_are_those_of_neighbours(channels: int, size: int, seed: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(3, channels, size, size))
    assert largest_sums(weight, 0, 1) == pytest.approx(brute_sums(weight))


@given(seed=st.integers(0, 2**16), axis=st.integers(0, 1))
def test_rounded_at_the_least_scale_no_two_neighbours_exceed_128(seed: int, axis: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(6, 7))
    scale = least_scale(weight, axis, 1)
    integers = np.rint(weight / (scale[:, None] if axis == 0 else scale))
    assert largest_sums(integers, axis, 1).max() <= 128


def test_a_depthwise_kernel_has_no_neighbours() -> None:
    weight = np.ones((8, 1, 3, 3))
    assert largest_sums(weight, 0, 8).tolist() == [0.0] * 8
    assert largest_sums(weight, 0, 1).tolist() == [2.0] * 8


def test_a_calibration_cache_has_big_endian_scales(folded: Model, images: Array) -> None:
    model = prepared(folded)
    scheme = make_scheme(model, place(model, DIALECTS["dla"]), observed(folded, images), minmax)
    first, *lines = calibration_cache(scheme, "8.5.2").splitlines()
    assert first == "TRT-8502-EntropyCalibration2"
    assert calibration_cache(scheme, "10.3.0").startswith("TRT-100300-")
    scales = dict(line.split(": ") for line in lines)
    amax = float(np.abs(images).max())
    assert struct.unpack(">f", bytes.fromhex(scales["image"]))[0] == pytest.approx(amax / 127)
    assert {"stem.relu", "sum.relu", "both"} <= scales.keys()


def test_what_a_calibration_cache_cannot_hold_is_refused(folded: Model, images: Array) -> None:
    model, ranges = prepared(folded), observed(folded, images)
    symmetric = make_scheme(model, place(model, DIALECTS["dla"]), ranges, minmax)
    affine = make_scheme(model, place(model, ORT_VNNI), ranges, minmax)
    for scheme, version in ((symmetric, "11.0"), (symmetric, "jetpack"), (affine, "8.5")):
        with pytest.raises(InputError):
            calibration_cache(scheme, version)
