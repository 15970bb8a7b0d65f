"""Each rule of the lint: a graph that breaks it, and one beside it that does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qdq_graphs import Sketch

from edgekit.models.model import Model
from edgekit.quantize.dialects import (
    ORT_AVX2,
    ORT_VNNI,
    TENSORRT,
    TENSORRT_8,
    TENSORRT_STRONG,
    Dialect,
)
from edgekit.quantize.lint import RULES, Finding, lint
from edgekit.targets import load_target
from edgekit.values import Array

Draw = Callable[[Sketch], list[str]]


def quantized_conv(
    g: Sketch, x: str = "x", *, behind: str = "", stored: str = "int8", **pair: Any
) -> str:
    """x, a pair, a quantized Conv of 16 channels and perhaps an activation behind it."""
    y = g.op("Conv", g.pair(x, **pair), g.weight((16, 16, 3, 3), dtype=stored), pads=[1] * 4)
    return g.op(behind, y) if behind else y


def good(g: Sketch) -> list[str]:
    return [quantized_conv(g, behind="Relu")]


def conv_of(g: Sketch, weight: str) -> list[str]:
    return [g.op("Conv", g.pair("x"), weight, pads=[1] * 4)]


def dequantized(g: Sketch, array: Array, scales: object, zero: object, *, axis: int) -> str:
    return g.op(
        "DequantizeLinear", g.constant(array, str(array.dtype)), g.constant(scales),
        g.constant(zero, str(array.dtype)), axis=axis,
    )  # fmt: skip


KERNEL = np.full((16, 16, 3, 3), 25, np.int8)


def computed_scale(g: Sketch) -> list[str]:
    scale = g.op("ReduceMax", "x", keepdims=0)
    down = g.op("QuantizeLinear", "x", scale, g.constant(0, "int8"), name="down")
    up = g.op("DequantizeLinear", down, scale, g.constant(0, "int8"))
    return [g.op("Conv", up, g.weight((16, 16, 3, 3)), pads=[1] * 4)]


def no_zero_point(g: Sketch) -> list[str]:
    s = g.constant(0.1)
    kernel = g.op("QuantizeLinear", g.constant(KERNEL), g.constant(0.1), g.constant(0, "int8"))
    weight = g.op("DequantizeLinear", kernel, g.constant(0.1), g.constant(0, "int8"))
    down = g.op("QuantizeLinear", "x", s, g.constant(0, "int8"))
    return [g.op("Conv", g.op("DequantizeLinear", down, s), weight, pads=[1] * 4)]


def computed_zero_point(g: Sketch) -> list[str]:
    zero = g.op("Cast", g.op("ReduceMax", "x", keepdims=0), to=3)
    down = g.op("QuantizeLinear", "x", g.constant(0.1), zero)
    up = g.op("DequantizeLinear", down, g.constant(0.1), zero)
    return [g.op("Conv", up, g.weight((16, 16, 3, 3)), pads=[1] * 4)]


def integer_bias(g: Sketch) -> list[str]:
    bias = g.op("DequantizeLinear", g.constant(np.zeros(16), "int32"), g.constant(0.001))
    return [g.op("Conv", g.pair("x"), g.weight((16, 16, 3, 3)), bias, pads=[1] * 4)]


def float_weights(g: Sketch) -> list[str]:
    weight = g.pair(g.constant(g.noise(16, 16, 3, 3)), np.full(16, 0.01), np.zeros(16), axis=0)
    return [g.op("Conv", g.pair("x"), weight, pads=[1] * 4)]


def transposed(axis: int) -> Draw:
    def draw(g: Sketch) -> list[str]:
        return [g.op("ConvTranspose", g.pair("x"), g.weight((16, 16, 2, 2), axis=axis))]

    return draw


def batchnorm(*, on_conv: bool) -> Draw:
    def draw(g: Sketch) -> list[str]:
        y = quantized_conv(g)
        y = y if on_conv else g.op("MaxPool", y, kernel_shape=[2, 2])
        return [g.op("BatchNormalization", y, *(g.constant(np.ones(16)) for _ in range(4)))]

    return draw


def half(*, activation: bool) -> Draw:
    def draw(g: Sketch) -> list[str]:
        kernel = g.constant(g.noise(16, 16, 3, 3)) if activation else g.weight((16, 16, 3, 3))
        return [g.op("Conv", g.pair("x") if activation else "x", kernel, pads=[1] * 4)]

    return draw


def concat(first: float, second: float) -> Draw:
    def draw(g: Sketch) -> list[str]:
        y = g.op("Concat", g.pair("x", first), g.pair("x", second), axis=1)
        return [g.op("Conv", g.pair(y), g.weight((16, 32, 1, 1)))]

    return draw


def activation(*, pair_first: bool) -> Draw:
    def draw(g: Sketch) -> list[str]:
        y = quantized_conv(g)
        y = g.op("Relu", g.pair(y)) if pair_first else g.pair(g.op("Relu", y))
        return [g.op("Conv", y if not pair_first else g.pair(y), g.weight((16, 16, 1, 1)))]

    return draw


def residual(left: bool, right: bool) -> Draw:
    """x + conv(conv(x)), with a pair on the convolution's side, on the skip's, or on none."""

    def draw(g: Sketch) -> list[str]:
        stem = g.op("Relu", quantized_conv(g))
        branch = quantized_conv(g, stem)
        total = g.op("Add", g.pair(branch) if left else branch, g.pair(stem) if right else stem)
        return [g.op("Conv", g.pair(g.op("Relu", total)), g.weight((16, 16, 1, 1)))]

    return draw


def narrow(channels: int) -> Draw:
    def draw(g: Sketch) -> list[str]:
        return [g.op("Conv", g.pair("x"), g.weight((channels, 16, 1, 1)))]

    return draw


def product(rows: int) -> Draw:
    def draw(g: Sketch) -> list[str]:
        flat = g.op("Reshape", "x", g.constant([rows, 1024 // rows], "int64"))
        return [g.op("MatMul", g.pair(flat), g.weight((1024 // rows, 16), axis=1))]

    return draw


def affine_conv(out: str, *, kernel: str = "uint8", zero: int = 0) -> Draw:
    """A Conv for ONNX Runtime: what stands behind it, and the zero point behind that."""

    def draw(g: Sketch) -> list[str]:
        y = quantized_conv(g, stored=kernel, dtype="uint8", zero=128)
        if out == "relu":
            y = g.op("Relu", y)
        if out != "nothing":
            y = g.pair(y, 0.1, zero, "uint8")
        return [y]

    return draw


def qoperator(g: Sketch) -> list[str]:
    x = g.op("QuantizeLinear", "x", g.constant(0.1), g.constant(0, "int8"))
    w = g.constant(KERNEL, "int8")
    y = g.op(
        "QLinearConv", x, g.constant(0.1), g.constant(0, "int8"), w, g.constant(0.1),
        g.constant(0, "int8"), g.constant(0.1), g.constant(0, "int8"), pads=[1] * 4,
    )  # fmt: skip
    return [g.op("DequantizeLinear", y, g.constant(0.1), g.constant(0, "int8"))]


def small_weights(g: Sketch) -> list[str]:
    y = g.op(
        "Conv", g.pair("x", 0.1, 128, "uint8"), g.weight((16, 16, 3, 3), most=64), pads=[1] * 4
    )
    return [g.pair(y, 0.1, 128, "uint8")]


CASES: list[tuple[str, Dialect, Draw, Draw]] = [
    ("computed-scale", TENSORRT, computed_scale, good),
    ("scale-above-zero", TENSORRT, lambda g: [quantized_conv(g, scale=0.0)], good),
    ("scale-above-zero", ORT_VNNI, lambda g: [quantized_conv(g, scale=-0.1)], good),
    ("zero-point-missing", TENSORRT_8, no_zero_point, float_weights),
    ("zero-point-computed", TENSORRT, computed_zero_point, good),
    ("zero-point-zero", TENSORRT, lambda g: [quantized_conv(g, zero=3)], good),
    (
        "zero-point-shape",
        TENSORRT,
        lambda g: conv_of(g, dequantized(g, KERNEL, np.full(16, 0.1), 0, axis=0)),
        good,
    ),
    (
        "channel-scales-of-activation",
        TENSORRT,
        lambda g: [quantized_conv(g, scale=np.full(16, 0.1), zero=np.zeros(16), axis=1)],
        good,
    ),
    (
        "channel-scales-count",
        TENSORRT,
        lambda g: conv_of(g, dequantized(g, KERNEL, np.full(5, 0.1), np.zeros(5), axis=0)),
        good,
    ),
    ("quantized-bias", TENSORRT, integer_bias, good),
    ("integer-type", TENSORRT, lambda g: [quantized_conv(g, zero=0, dtype="uint8")], good),
    ("stored-weights", TENSORRT_8, good, float_weights),
    ("transposed-axis", TENSORRT, transposed(0), transposed(1)),
    ("unfolded-batchnorm", TENSORRT, batchnorm(on_conv=True), batchnorm(on_conv=False)),
    ("half-quantized", TENSORRT, half(activation=True), good),
    ("half-quantized", ORT_VNNI, half(activation=False), good),
    ("concat-scales", TENSORRT, concat(0.1, 0.2), concat(0.1, 0.1)),
    ("before-activation", TENSORRT, activation(pair_first=True), activation(pair_first=False)),
    ("residual-add", TENSORRT, residual(True, True), residual(False, True)),
    ("residual-add", TENSORRT, residual(False, False), residual(False, True)),
    ("least-channels", TENSORRT, narrow(8), narrow(32)),
    ("vector-product", TENSORRT, product(1), product(4)),
    ("qoperator", TENSORRT, qoperator, good),
    ("floating-kernel", ORT_AVX2, affine_conv("nothing"), affine_conv("pair", zero=128)),
    ("floating-kernel", ORT_AVX2, affine_conv("relu", zero=128), affine_conv("relu")),
    ("transposed-kernel", ORT_AVX2, transposed(1), good),
    ("saturating-weights", ORT_AVX2, affine_conv("pair", kernel="int8", zero=128), small_weights),
    ("single-precision", TENSORRT_STRONG, good, lambda g: [g.op("Relu", "x")]),
]


def rules_broken(model: Model, dialect: Dialect) -> set[str]:
    return {finding.rule for finding in lint(model, dialect)}


@pytest.mark.parametrize(
    ("rule", "dialect", "bad", "fine"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)]
)
def test_a_rule_finds_what_breaks_it_and_nothing_else(
    tmp_path: Path, rule: str, dialect: Dialect, bad: Draw, fine: Draw
) -> None:
    g = Sketch()
    assert rule in rules_broken(g.model(tmp_path, bad(g)), dialect)
    g = Sketch()
    assert rule not in rules_broken(g.model(tmp_path, fine(g)), dialect)


def test_every_rule_is_tested_by_a_graph_that_breaks_it() -> None:
    tested = {case[0] for case in CASES} | {"channel-scales-opset", "scale-type"}
    assert {rule.name for rule in RULES} <= tested


def test_channel_scales_before_opset_13_are_found(tmp_path: Path) -> None:
    g = Sketch(opset=12)
    kernel = g.op(
        "DequantizeLinear", g.constant(KERNEL, "int8"), g.constant(np.full(16, 0.1)),
        g.constant(np.zeros(16), "int8"),
    )  # fmt: skip
    model = g.model(tmp_path, [g.op("Conv", g.pair("x"), kernel, pads=[1] * 4)])
    assert "channel-scales-opset" in rules_broken(model, TENSORRT)


def test_half_precision_scales_are_refused_before_tensorrt_10(tmp_path: Path) -> None:
    g = Sketch(opset=19)
    scale, zero = g.constant(0.1, "float16"), g.constant(0, "int8")
    down = g.op("QuantizeLinear", g.op("Cast", "x", to=10), scale, zero)
    up = g.op("DequantizeLinear", down, scale, zero)
    model = g.model(tmp_path, [g.op("Cast", up, to=1)])
    assert "scale-type" in rules_broken(model, TENSORRT_8)
    assert "scale-type" not in rules_broken(model, TENSORRT)


def test_a_finding_names_node_rule_source_and_fix(tmp_path: Path) -> None:
    g = Sketch()
    down = g.op("QuantizeLinear", "x", g.constant(0.1), g.constant(7, "int8"), name="down")
    model = g.model(tmp_path, [g.op("DequantizeLinear", down, g.constant(0.1))])
    found = next(f for f in lint(model, TENSORRT) if f.rule == "zero-point-zero")
    assert found == Finding(
        node="down", rule="zero-point-zero", severity="error", source=found.source,
        said="its zero point is not zero; TensorRT quantizes symmetrically only", fix=found.fix,
    )  # fmt: skip
    assert "onnx-tensorrt" in found.source
    assert found.fix


def test_opsets_out_of_bounds_are_found(tmp_path: Path) -> None:
    g = Sketch(opset=17)
    model = g.model(tmp_path, good(g))
    assert "opset" in rules_broken(model, TENSORRT_8)  # 13 to 16
    assert "opset" not in rules_broken(model, TENSORRT)


def test_a_target_is_linted_by_its_runtime_and_version(tmp_path: Path) -> None:
    g = Sketch()
    model = g.model(tmp_path, [quantized_conv(g, zero=3)])
    orin, cpu = load_target("jetson-orin-nano-8gb"), load_target("cpu")
    assert "zero-point-zero" in {f.rule for f in lint(model, orin)}
    assert "zero-point-zero" not in {f.rule for f in lint(model, cpu)}
