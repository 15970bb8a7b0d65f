"""Well-known networks through the executor: ONNX Runtime's numbers, and a step that trains."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgekit.models.model import Model
from edgekit.models.simplify import clean
from edgekit.models.source import load
from edgekit.values import Array

torch = pytest.importorskip("torch", reason="needs the compress extra")
pytestmark = [pytest.mark.torch, pytest.mark.shared_data]

Reference = Callable[..., list[Array]]
# Between them: every kind of convolution, gates, splits, shuffles, attention, Resize, Pad.
NAMES = (
    "mobilenet_v3_large", "shufflenet_v2_x1_0", "ghostnet_100", "mobilevit_s",
    "vit_tiny_patch16_224", "lraspp_mobilenet_v3_large", "squeezenet1_1", "lcnet_050",
)  # fmt: skip


@pytest.fixture(params=NAMES)
def model(request: pytest.FixtureRequest, shared_data: Path, tmp_path: Path) -> Model:
    folder = shared_data / "graphs"
    spec = importlib.util.spec_from_file_location("fill", folder / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.fill(folder / f"{request.param}.onnx", tmp_path / "net.onnx")
    return clean(load(tmp_path / "net.onnx"))


def test_the_executor_computes_the_network_and_trains_it(
    model: Model, reference: Reference
) -> None:
    from edgekit.models.torch_module import torch_module, write_back

    (spec,) = model.inputs
    shape = [size if isinstance(size, int) else 1 for size in spec.shape]
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    module = torch_module(model)
    with torch.no_grad():
        found = module(torch.from_numpy(x))
    for one, other in zip(found, reference(model, {spec.name: x}), strict=True):
        error = np.abs(one.numpy().astype(np.float64) - other).max() / np.abs(other).max()
        assert error < 1e-4
    # Small gradients count as much as large ones: what has one must change.
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, eps=1e-30)
    sum(y.square().mean() for y in module(torch.from_numpy(x))).backward()  # type: ignore[union-attr]
    optimizer.step()
    trained = [n for n, t in module.parameters_by_name().items() if t.requires_grad]
    assert len(trained) > 20
    after = write_back(module, model, "step").graph.initializers
    changed = [
        name
        for name in trained
        if not np.array_equal(
            after[name].const_value.numpy(),  # type: ignore[union-attr]
            model.graph.initializers[name].const_value.numpy(),  # type: ignore[union-attr]
        )
    ]
    # A unit that never fires has no gradient.
    assert len(changed) > 0.8 * len(trained)
