"""The steps in Python, as a script would use them: the whole way, and a cut module of one's own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit import api
from edgekit.errors import InputError
from edgekit.models.model import Model
from edgekit.values import Array

needs_torch = pytest.mark.torch


def net() -> Any:
    """A residual network with a depthwise convolution and a head."""
    import torch
    from torch import nn

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 32, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(32)
            self.widen = nn.Conv2d(32, 64, 1)
            self.depthwise = nn.Conv2d(64, 64, 3, padding=1, groups=64)
            self.narrow = nn.Conv2d(64, 32, 1)
            self.slope = nn.PReLU(32)
            self.head = nn.Linear(32, 4)

        def forward(self, images: Any) -> Any:
            x = torch.relu(self.norm(self.stem(images)))
            y = self.narrow(torch.relu(self.depthwise(torch.relu(self.widen(x)))))
            return self.head(self.slope(x + y).mean((2, 3)))

    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "data.npz"
    images = rng.normal(size=(48, 3, 16, 16)).astype(np.float32)
    np.savez(path, images=images, labels=rng.integers(0, 4, 48))
    return path


@needs_torch
def test_a_module_goes_the_whole_way(samples: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the compress extra")
    model = api.load(net(), inputs={"images": (1, 3, 16, 16)})
    data = api.data(samples, model)
    smaller, report = api.channels(model, macs=0.6)
    assert report.after.macs <= 0.6 * report.before.macs
    taught, learnt = api.recover(smaller, model, data, epochs=2)
    assert learnt.after < learnt.before
    quantized, found_int8 = api.quantize(taught, data, target="cpu")
    assert found_int8.placed.quantized["Conv"] == 4
    assert found_int8.int8_share == 1.0
    report_int8 = api.verify(taught, quantized, data)
    assert isinstance(report_int8.sqnr_db, float)
    assert report_int8.sqnr_db > 15
    engine = api.build(quantized, tmp_path / "engine", target="cpu", precision="int8")
    assert engine.file_bytes == engine.path.stat().st_size
    (batch,) = list(data)
    with api.open(engine) as one, api.open(quantized) as other:
        found = [api.run(session, batch.inputs)["output"] for session in (one, other)]
    assert np.abs(found[0] - found[1]).max() < 0.05 * np.abs(found[1]).max()
    (measured,) = api.bench({"int8": tmp_path / "engine"}, data, seconds=0.5, rounds=2)
    assert measured.arm == "int8"
    assert min(measured.samples) > 0


@needs_torch
def test_a_plan_cuts_the_users_own_module_as_it_cut_the_graph(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs the compress extra")
    module = net()
    model = api.load(module, inputs={"images": (1, 3, 16, 16)})
    cut, report = api.channels(model, macs=0.5)
    (tmp_path / "plan.json").write_text(report.plan.to_json())
    own = api.apply_plan(module, tmp_path / "plan.json").eval()
    images = torch.randn(5, 3, 16, 16)
    with torch.no_grad():
        (expected,) = api.torch_module(cut)(images)
        assert torch.allclose(own(images), expected, atol=1e-5)
        assert module(images).shape == expected.shape
    assert module.stem.out_channels == 32
    assert own.stem.out_channels == own.stem.weight.shape[0] < 32
    assert own.depthwise.groups == own.depthwise.weight.shape[0]
    assert own.head.in_features == own.head.weight.shape[1]


@needs_torch
def test_a_plan_of_another_network_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the compress extra")
    model = api.load(net(), inputs={"images": (1, 3, 16, 16)})
    _, report = api.channels(model, macs=0.5)
    (tmp_path / "plan.json").write_text(report.plan.to_json())
    import torch

    with pytest.raises(InputError, match="for another network"):
        api.apply_plan(torch.nn.Linear(3, 2), tmp_path / "plan.json")


def test_sensitivity_has_a_damage_for_each_group_and_share(
    residual_path: Path, images: Array, tmp_path: Path
) -> None:
    np.savez(tmp_path / "data.npz", image=images)
    model = api.load(residual_path)
    found = api.sensitivity(model, api.data(tmp_path / "data.npz", model), samples=16)
    _, report = api.channels(model, macs=0.5)
    assert [group.group for group in found.groups] == list(report.kept)
    assert all(len(damage) == 3 for damage in found.damage)


def test_an_onnx_file_is_loaded_and_run(residual_path: Path, images: Array) -> None:
    model = api.load(residual_path)
    assert isinstance(model, Model)
    with api.open(model) as session:
        assert api.run(session, {"image": images})["logits"].shape == (32, 5)


def test_the_api_is_imported_without_torch_or_onnxruntime() -> None:
    script = (
        "import sys, edgekit.api; print([m for m in ('torch', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
