"""A quantized graph is trained as it will be run: straight-through gradients, integers after."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent))
from test_place import S8S8, TENSORRT, U8U8, observed

from edgekit.models.model import Model
from edgekit.models.simplify import fold_batchnorm
from edgekit.quantize.dialects import Dialect, tensorrt_dialect
from edgekit.quantize.ranges import minmax
from edgekit.quantize.write import insert_qdq
from edgekit.values import Array

torch = pytest.importorskip("torch", reason="needs the compress extra")
pytestmark = pytest.mark.torch

Reference = Callable[..., list[Array]]
DIALECTS = {"trt-10": TENSORRT, "trt-8": tensorrt_dialect("8.5"), "u8u8": U8U8, "s8s8": S8S8}


@pytest.fixture(params=DIALECTS.values(), ids=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    found: Dialect = request.param
    return found


def quantized_of(residual: Model, images: Array, dialect: Dialect) -> Model:
    folded, _ = fold_batchnorm(residual)
    return insert_qdq(folded, observed(folded, images), dialect, minmax)[0]


def test_the_executor_computes_the_quantized_graph(
    residual: Model, images: Array, reference: Reference, dialect: Dialect
) -> None:
    from edgekit.models.torch_module import torch_module

    quantized = quantized_of(residual, images, dialect)
    (expected,) = reference(quantized, {"image": images})
    with torch.no_grad():
        (found,) = torch_module(quantized)(torch.from_numpy(images))
    # A sum in another order may round to the neighbouring level here and there.
    assert np.abs(found.numpy() - expected).max() < 0.03 * np.abs(expected).max()
    assert np.abs(found.numpy() - expected).mean() < 0.003 * np.abs(expected).max()


def test_a_quantized_graph_learns_something_else_and_stays_in_integers(
    residual: Model, images: Array, reference: Reference, dialect: Dialect
) -> None:
    from edgekit.models.torch_module import torch_module, write_back

    quantized = quantized_of(residual, images, dialect)
    wanted = 1.3 * torch.from_numpy(reference(residual, {"image": images})[0]) + 0.2
    module = torch_module(quantized)
    x = torch.from_numpy(images)

    def loss() -> torch.Tensor:
        return (module(x)[0] - wanted).square().mean()

    with torch.no_grad():
        before = float(loss())
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        step = loss()
        step.backward()
        optimizer.step()
    with torch.no_grad():
        after = float(loss())
        (trained,) = module(x)
    assert after < 0.1 * before
    written = write_back(module, quantized, "finetune")
    changed = 0
    for name, value in quantized.graph.initializers.items():
        old, new = value.const_value, written.graph.initializers[name].const_value
        assert old is not None
        assert new is not None
        assert (old.dtype, list(old.shape)) == (new.dtype, list(new.shape))
        is_integer = old.dtype in (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT32)
        changed += is_integer and not np.array_equal(old.numpy(), new.numpy())
    if dialect is not DIALECTS["trt-8"]:  # there the weights are stored as floats
        assert changed >= 5
    (again,) = reference(written, {"image": images})
    assert np.abs(again - trained.numpy()).mean() < 0.003 * np.abs(again).max()


def test_an_untrained_quantized_graph_goes_back_as_it_was(
    residual: Model, images: Array, dialect: Dialect
) -> None:
    from edgekit.models.torch_module import torch_module, write_back

    quantized = quantized_of(residual, images, dialect)
    written = write_back(torch_module(quantized), quantized, "nothing")
    for name, value in quantized.graph.initializers.items():
        after = written.graph.initializers[name].const_value
        assert value.const_value is not None
        assert after is not None
        assert np.array_equal(value.const_value.numpy(), after.numpy()), name


def test_the_gradient_passes_inside_the_range_and_stops_outside() -> None:
    from edgekit.models.torch_module import torch_module

    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"]),
        ],
        "fake",
        [helper.make_tensor_value_info("x", 1, [6])],
        [helper.make_tensor_value_info("y", 1, [6])],
        [
            numpy_helper.from_array(np.float32(0.5), "scale"),
            numpy_helper.from_array(np.uint8(3), "zero"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    module = torch_module(Model(name="fake", program=ir.from_proto(proto)))
    # The range is -1.5 (level 0) to 126 (level 255); 1.25 lies between levels 5 and 6: to even.
    x = torch.tensor([-9.0, -1.5, 0.1, 1.25, 126.0, 500.0], requires_grad=True)
    (y,) = module(x)
    assert y.tolist() == [-1.5, -1.5, 0.0, 1.0, 126.0, 126.0]
    (y * torch.arange(1.0, 7.0)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 5.0, 0.0]
    with torch.no_grad():
        assert torch.equal(module(x)[0], y)
