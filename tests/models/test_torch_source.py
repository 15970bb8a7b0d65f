"""Models from torch: the same numbers, the same names, and one sentence for each bad file."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgekit.errors import InputError
from edgekit.models.model import Model, parameters, save
from edgekit.models.simplify import clean
from edgekit.models.source import load
from edgekit.values import Array

torch = pytest.importorskip("torch", reason="needs the compress extra")
pytestmark = pytest.mark.torch

Reference = Callable[..., list[Array]]
SHAPES = {"images": (1, 3, 8, 8)}


def nets() -> dict[str, Any]:
    from torch import nn

    class Convolutional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
            self.depthwise = nn.Conv2d(8, 8, 3, groups=8, padding=1)
            self.norm = nn.BatchNorm2d(8)
            self.dropout = nn.Dropout(0.3)
            self.head = nn.Linear(8, 5)

        def forward(self, images: Any) -> Any:
            x = torch.relu(self.stem(images))
            x = x + nn.functional.hardswish(self.norm(self.depthwise(x)))
            return self.head(self.dropout(x.mean((2, 3))))

    class Transformer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch = nn.Conv2d(3, 16, 4, 4)
            self.position = nn.Parameter(torch.randn(1, 4, 16))
            self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
            self.norm = nn.LayerNorm(16)
            self.head = nn.Linear(16, 5)

        def forward(self, images: Any) -> Any:
            x = self.patch(images).flatten(2).transpose(1, 2) + self.position
            return self.head(self.norm(self.block(x))[:, 0])

    torch.manual_seed(0)
    found = {"convolutional": Convolutional(), "transformer": Transformer()}
    for net in found.values():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.2, 0.2)
                module.running_var.uniform_(0.5, 1.5)
    return found


@pytest.mark.parametrize("kind", ["convolutional", "transformer"])
def test_a_module_keeps_its_names_its_batch_and_its_numbers(
    kind: str, reference: Reference
) -> None:
    from edgekit.models.torch_source import export_module

    net = nets()[kind]
    exported = export_module(net, SHAPES, name=kind)
    assert exported.notes == ()
    assert 0 <= exported.difference < 1e-5
    (given,) = exported.model.inputs
    assert (given.name, given.shape) == ("images", ("batch", 3, 8, 8))
    assert [spec.name for spec in exported.model.outputs] == ["output"]
    stored = dict(parameters(exported.model))
    for name, tensor in net.named_parameters():
        assert np.array_equal(stored[name], tensor.detach().numpy()), name
    images = np.random.default_rng(1).normal(size=(5, 3, 8, 8)).astype(np.float32)
    (found,) = reference(exported.model, {"images": images})
    with torch.no_grad():
        expected = net(torch.from_numpy(images)).numpy()
    assert np.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["convolutional", "transformer"])
def test_names_live_through_load_clean_up_a_training_step_and_a_save(
    kind: str, tmp_path: Path
) -> None:
    from edgekit.models.torch_module import torch_module, write_back
    from edgekit.models.torch_source import export_module

    net = nets()[kind]
    save(export_module(net, SHAPES, name=kind).model, tmp_path / "net.onnx")
    model = clean(load(tmp_path / "net.onnx"))
    module = torch_module(model).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    (scores,) = module(torch.randn(4, 3, 8, 8))
    torch.nn.functional.cross_entropy(scores, torch.arange(4)).backward()
    optimizer.step()
    save(write_back(module, model, "step"), tmp_path / "trained.onnx")
    after = dict(parameters(load(tmp_path / "trained.onnx")))
    trained = {n for n, t in module.parameters_by_name().items() if t.requires_grad}
    for name, tensor in net.named_parameters():
        assert after[name].shape == tuple(tensor.shape)
        if name in trained:
            assert not np.array_equal(after[name], tensor.detach().numpy()), name
    assert {n for n, _ in net.named_parameters()} - trained <= {"position"}
    biases = [n for n in trained if n not in dict(net.named_parameters())]
    assert biases == []


def test_nodes_are_named_by_the_module_that_they_come_from() -> None:
    from edgekit.models.torch_source import export_module

    model = export_module(nets()["convolutional"], SHAPES, name="net").model
    names = {node.name: node.op_type for node in model.graph}
    assert names["stem.0/Conv"] == "Conv"
    assert names["norm/BatchNormalization"] == "BatchNormalization"
    assert len(names) == model.graph.num_nodes()
    assert all(not node.metadata_props and not node.doc_string for node in model.graph)


def test_a_network_of_one_batch_size_says_so() -> None:
    from torch import nn

    from edgekit.models.torch_source import export_module

    class Fixed(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.reshape(2, 12) * 2

    exported = export_module(Fixed(), {"x": (2, 3, 4)}, name="fixed")
    assert exported.model.inputs[0].shape == (2, 3, 4)
    assert "the batch is fixed at 2" in exported.notes[0]


def test_several_outputs_take_the_names_of_a_dictionary() -> None:
    from torch import nn

    from edgekit.models.torch_source import export_module

    class Named(nn.Module):
        def forward(self, x: Any) -> Any:
            return {"boxes": x * 2, "scores": x.sum(1)}

    class Listed(nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 2, [x + 1]

    named = export_module(Named(), {"x": (1, 4)}, name="named").model
    assert [spec.name for spec in named.outputs] == ["boxes", "scores"]
    listed = export_module(Listed(), {"x": (1, 4)}, name="listed").model
    assert [spec.name for spec in listed.outputs] == ["output_0", "output_1"]


def test_a_module_that_cannot_be_exported_is_one_error() -> None:
    from torch import nn

    from edgekit.models.torch_source import export_module

    class Branching(nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 2 if float(x.sum()) > 0 else x

    with pytest.raises(InputError, match="torch could not export"):
        export_module(Branching(), {"x": (1, 4)}, name="branching")
    with pytest.raises(InputError, match="does not take these inputs") as caught:
        export_module(nets()["convolutional"], {"images": (1, 4, 8, 8)}, name="net")
    assert "images (1, 4, 8, 8)" in caught.value.where
    with pytest.raises(InputError, match="do not say what they are given"):
        export_module(nets()["convolutional"], {}, name="net")


def test_a_random_module_is_refused_because_it_is_not_its_graph() -> None:
    from torch import nn

    from edgekit.models.torch_source import export_module

    class Random(nn.Module):
        def forward(self, x: Any) -> Any:
            return x + torch.rand_like(x)

    with pytest.raises(InputError):
        export_module(Random(), {"x": (2, 4)}, name="random")


def test_a_torch_export_file_is_loaded_with_its_own_sizes(tmp_path: Path) -> None:
    from edgekit.models.torch_files import kind_of
    from edgekit.models.torch_source import export_pt2

    net = nets()["convolutional"].eval()
    dynamic = ({0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=4)},)
    exported = torch.export.export(net, (torch.randn(2, 3, 8, 8),), dynamic_shapes=dynamic)
    torch.export.save(exported, tmp_path / "net.pt2")
    assert kind_of(tmp_path / "net.pt2") == "pt2"
    found = export_pt2(tmp_path / "net.pt2", name="net")
    assert found.difference < 1e-5
    # The file does not keep the names that the sizes were given.
    assert found.model.inputs[0].shape == ("batch", 3, "height", 8)
    assert found.model.outputs[0].shape[0] == "batch"
    stored = dict(parameters(found.model))
    assert {name for name, _ in net.named_parameters()} <= set(stored)


def test_a_program_in_training_mode_is_refused(tmp_path: Path) -> None:
    from edgekit.models.torch_source import export_pt2

    net = nets()["convolutional"].train()
    torch.export.save(torch.export.export(net, (torch.randn(2, 3, 8, 8),)), tmp_path / "net.pt2")
    with pytest.raises(InputError, match="training mode"):
        export_pt2(tmp_path / "net.pt2", name="net")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchscript_keeps_names_even_of_equal_parameters(tmp_path: Path) -> None:
    from edgekit.models.torch_files import kind_of
    from edgekit.models.torch_source import export_torchscript

    net = nets()["convolutional"].eval()
    with torch.no_grad():  # equal numbers are merged by torch's exporter
        net.norm.running_var.fill_(1)
        net.norm.weight.fill_(1)
    torch.jit.trace(net, torch.randn(2, 3, 8, 8)).save(tmp_path / "net.pt")
    assert kind_of(tmp_path / "net.pt") == "torchscript"
    found = export_torchscript(tmp_path / "net.pt", SHAPES, name="net")
    assert found.difference < 1e-5
    assert {name for name, _ in net.named_parameters()} <= set(dict(parameters(found.model)))
    assert "BatchNormalization" in {node.op_type for node in found.model.graph}
    assert found.model.inputs[0].shape[0] == "batch"


class Attack:
    """A pickle that leaves a file behind when it is opened."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.place),)


def test_nothing_is_unpickled_unless_it_is_trusted(tmp_path: Path) -> None:
    from edgekit.models.torch_files import kind_of, load_pickle, load_weights

    net, place = nets()["convolutional"], tmp_path / "attacked"
    torch.save({"model": torch.nn.ReLU(), "more": Attack(place)}, tmp_path / "net.pt")
    assert kind_of(tmp_path / "net.pt") == "pickle"
    with pytest.raises(InputError, match="pickled module") as caught:
        load_pickle(tmp_path / "net.pt", trusted=False)
    assert "--trust-pickle" in caught.value.hint
    with pytest.raises(InputError, match="does not unpickle"):
        load_weights(net, tmp_path / "net.pt")
    assert not place.exists()


def test_a_torch_export_file_cannot_smuggle_a_pickle(tmp_path: Path) -> None:
    from edgekit.models.torch_source import export_pt2

    place = tmp_path / "attacked"
    net = torch.nn.Linear(3, 2)
    torch.export.save(torch.export.export(net, (torch.randn(2, 3),)), tmp_path / "net.pt2")
    content = io.BytesIO()
    torch.save(Attack(place), content)
    with (
        zipfile.ZipFile(tmp_path / "net.pt2") as old,
        zipfile.ZipFile(tmp_path / "evil.pt2", "w") as new,
    ):
        for entry in old.infolist():
            inner = entry.filename.endswith("sample_inputs/model.pt")
            new.writestr(entry.filename, content.getvalue() if inner else old.read(entry))
    with pytest.raises(InputError, match="cannot be read"):
        export_pt2(tmp_path / "evil.pt2", name="evil")
    assert not place.exists()


def test_a_trusted_pickle_is_opened(tmp_path: Path) -> None:
    from edgekit.models.torch_files import load_pickle

    torch.save(torch.nn.Sequential(torch.nn.Linear(3, 2)), tmp_path / "net.pt")
    assert isinstance(load_pickle(tmp_path / "net.pt", trusted=True), torch.nn.Module)
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="holds no module"):
        load_pickle(tmp_path / "list.pt", trusted=True)


@pytest.mark.parametrize("form", ["plain", "under a key", "parallel", "safetensors"])
def test_weights_find_their_places(form: str, tmp_path: Path) -> None:
    from edgekit.models.torch_files import kind_of, load_weights

    trained, fresh = nets()["convolutional"], nets()["convolutional"]
    with torch.no_grad():
        for tensor in trained.parameters():
            tensor.normal_()
    state = trained.state_dict()
    path = tmp_path / ("net.safetensors" if form == "safetensors" else "net.pt")
    if form == "safetensors":
        from safetensors.torch import save_file

        save_file(state, str(path))
    else:
        wrapped = {"module." + k: v for k, v in state.items()} if form == "parallel" else state
        torch.save({"epoch": 3, "state_dict": state} if form == "under a key" else wrapped, path)
        assert kind_of(path) == "state_dict"
    notes = load_weights(fresh, path)
    assert bool(notes) == (form in ("under a key", "parallel"))
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_every_key_that_does_not_fit_is_named(tmp_path: Path) -> None:
    from edgekit.models.torch_files import load_weights

    net = nets()["convolutional"]
    state = dict(net.state_dict())
    state["head.extra"] = state.pop("head.bias")
    state["depthwise.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "net.pt")
    with pytest.raises(InputError) as caught:
        load_weights(net, tmp_path / "net.pt")
    assert caught.value.got == (
        "1 missing: head.bias; 1 unexpected: head.extra; "
        "1 of another shape: depthwise.bias (7,) instead of (8,)"
    )


@pytest.mark.parametrize("content", [b"", b"not a zip", b"PK\x03\x04 half", b"\x80\x02}q\x00."])
def test_a_damaged_file_is_one_error(content: bytes, tmp_path: Path) -> None:
    from edgekit.models.torch_files import kind_of, load_pickle, load_weights

    path = tmp_path / "net.pt"
    path.write_bytes(content)
    net = nets()["convolutional"]
    with pytest.raises(InputError):
        load_weights(net, path)
    with pytest.raises(InputError):
        load_pickle(path, trusted=False) if kind_of(path) == "pickle" else None


def test_the_graph_of_a_module_survives_the_file(tmp_path: Path, reference: Reference) -> None:
    from edgekit.models.torch_source import export_module

    model: Model = export_module(nets()["transformer"], SHAPES, name="net").model
    save(model, tmp_path / "net.onnx")
    images = np.random.default_rng(1).normal(size=(3, 3, 8, 8)).astype(np.float32)
    again = load(tmp_path / "net.onnx")
    assert again.history[0].startswith("torch ")
    feeds = {"images": images}
    (before,), (after,) = reference(model, feeds), reference(again, feeds)
    assert np.array_equal(before, after)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["state_dict", "safetensors", "torchscript", "pt2"])
def test_a_changed_file_is_a_model_or_one_error(kind: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    from edgekit.models.torch_files import kind_of, load_weights
    from edgekit.models.torch_source import export_pt2, export_torchscript

    net, path = nets()["convolutional"].eval(), tmp_path / f"net.{kind}"
    if kind == "state_dict":
        torch.save(net.state_dict(), path)
    elif kind == "safetensors":
        path = tmp_path / "net.safetensors"
        save_file(net.state_dict(), str(path))
    elif kind == "torchscript":
        torch.jit.trace(net, torch.randn(2, 3, 8, 8)).save(path)
    else:
        torch.export.save(torch.export.export(net, (torch.randn(2, 3, 8, 8),)), path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    errors = 0
    for _ in range(25):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), 4):
            content[place] = rng.integers(0, 256)
        cut = int(rng.integers(1, len(content))) if rng.random() < 0.3 else len(content)
        path.write_bytes(content[:cut])
        try:
            if kind in ("state_dict", "safetensors"):
                load_weights(net, path)
            elif kind_of(path) == "torchscript":
                export_torchscript(path, SHAPES, name="net")
            else:
                export_pt2(path, name="net")
        except InputError:
            errors += 1
    assert errors > 5
