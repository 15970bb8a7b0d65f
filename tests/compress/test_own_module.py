"""A plan on a user's own module: what it computes, what stays tied, which line is to blame."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the compress extra")

from torch import Tensor, nn  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from edgekit import api  # noqa: E402
from edgekit.cli import app  # noqa: E402
from edgekit.compress.channels.groups import find_groups  # noqa: E402
from edgekit.compress.channels.own.check import run_cut, verify_module  # noqa: E402
from edgekit.compress.channels.own.module import cut_module, take_weights  # noqa: E402
from edgekit.compress.channels.plan import Plan  # noqa: E402
from edgekit.compress.channels.remove import remove_channels  # noqa: E402
from edgekit.errors import InputError  # noqa: E402
from edgekit.models.model import Model  # noqa: E402
from edgekit.models.torch_module import torch_module, write_back  # noqa: E402
from edgekit.pipeline.draft import Wishes, draft_recipe  # noqa: E402
from edgekit.pipeline.origin import Origin, export_step, open_origin  # noqa: E402
from edgekit.pipeline.steps import outputs_of_model  # noqa: E402
from edgekit.recipe import load_recipe  # noqa: E402
from edgekit.values import Array  # noqa: E402

pytestmark = pytest.mark.torch


def norm(channels: int) -> nn.BatchNorm2d:
    found = nn.BatchNorm2d(channels)
    for tensor, low, high in (
        (found.weight, 0.5, 1.5), (found.bias, -0.3, 0.3),
        (found.running_mean, -0.3, 0.3), (found.running_var, 0.5, 1.5),
    ):  # fmt: skip
        nn.init.uniform_(tensor, low, high)
    return found


class Residual(nn.Module):
    """A stem, a block with a widening shortcut, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), norm(16), nn.ReLU())
        self.first = nn.Sequential(nn.Conv2d(16, 32, 3, 2, 1, bias=False), norm(32), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, bias=False), norm(32))
        self.shortcut = nn.Sequential(nn.Conv2d(16, 32, 1, 2, bias=False), norm(32))
        self.slope = nn.PReLU(32)
        self.head = nn.Linear(32, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        x = self.slope(self.second(self.first(x)) + self.shortcut(x))
        return self.head(x.mean((2, 3)))


class Mobile(nn.Module):
    """Depthwise and grouped convolutions, a transposed one, a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.widen = nn.Conv2d(3, 32, 1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32, bias=False)
        self.norm = norm(32)
        self.gamma = nn.Parameter(torch.rand(32, 1, 1) + 0.5)
        self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.upper = nn.ConvTranspose2d(32, 24, 2, 2)
        self.last = nn.Conv2d(24, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.depthwise(self.widen(images)))) * self.gamma
        return self.last(torch.relu(self.upper(torch.relu(self.grouped(x)))))


class Flat(nn.Module):
    """Three Linear layers after a flatten; the two inner ones share a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 16, 3, padding=1)
        self.enter = nn.Linear(16 * 16, 48)
        self.inner = nn.Linear(48, 48)
        self.again = nn.Linear(48, 48)
        self.again.weight = self.inner.weight
        self.head = nn.Linear(48, 5)

    def forward(self, images: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(torch.relu(self.features(images)), 2).flatten(1)
        x = torch.relu(self.enter(x))
        return self.head(torch.relu(self.again(torch.relu(self.inner(x)))))


def made(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


def exported(module: nn.Module) -> tuple[Model, Plan]:
    """The graph of a module with half of the units of every group gone, and the plan."""
    model = api.load(module, inputs={"images": (1, 3, 8, 8)})
    groups = find_groups(model)
    rng = np.random.default_rng(1)
    kept = [np.sort(rng.permutation(g.units)[: g.units // 2]) for g in groups.groups]
    assert kept
    return remove_channels(model, groups, kept)


def first_and(*more: int, of: int) -> Array:
    """All entries below `of` but those given."""
    return np.setdiff1d(np.arange(of), more)


@pytest.mark.parametrize("kind", [Residual, Mobile, Flat])
def test_the_cut_module_computes_what_the_cut_graph_computes(kind: type[nn.Module]) -> None:
    module = made(kind)
    cut, plan = exported(module)
    own = api.apply_plan(module, plan, model=cut)
    images = torch.randn(5, 3, 8, 8)
    with api.open(cut) as session:  # ONNX Runtime
        expected = api.run(session, {"images": images.numpy()})["output"]
    with torch.no_grad():
        np.testing.assert_allclose(own(images).numpy(), expected, atol=1e-5)
    whole = sum(p.numel() for p in module.parameters())
    assert sum(p.numel() for p in own.parameters()) < 0.8 * whole
    own(images).sum().backward()
    assert all(p.grad is not None for p in own.parameters())


def test_the_counts_of_layers_follow_their_weights() -> None:
    module = made(Mobile)
    _, plan = exported(module)
    own = cut_module(module, plan)
    kept = own.widen.weight.shape[0]
    assert kept < 32
    assert own.widen.out_channels == own.norm.num_features == own.depthwise.groups == kept
    assert (
        own.depthwise.in_channels == own.depthwise.out_channels == own.grouped.in_channels == kept
    )
    assert own.upper.out_channels == own.upper.weight.shape[1] == own.last.in_channels
    assert module.widen.out_channels == 32
    fresh = nn.Conv2d(
        own.grouped.in_channels, own.grouped.out_channels, 3, groups=own.grouped.groups
    )
    assert fresh.weight.shape == own.grouped.weight.shape


def test_tied_weights_stay_tied() -> None:
    module = made(Flat)
    _, plan = exported(module)
    own = cut_module(module, plan)
    assert own.again.weight is own.inner.weight
    assert own.inner.weight.shape == (own.inner.out_features, own.inner.in_features)
    assert own.inner.out_features < 48


def test_a_factory_a_plan_and_weights_give_the_cut_graph_again(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.ReLU(),\n"
        "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))\n"
    )
    space: dict[str, Any] = {}
    exec((tmp_path / "net.py").read_text(), space)
    module = made(space["make"])
    cut, plan = exported(module)
    (tmp_path / "plan.json").write_text(plan.to_json())
    own = api.apply_plan(module, tmp_path / "plan.json", model=cut)
    with torch.no_grad():
        for parameter in own.parameters():  # what fine-tuning leaves
            parameter.add_(0.01)
    torch.save(own.state_dict(), tmp_path / "tuned.pt")

    back = open_origin(
        Origin(place="net.py:make", folder=tmp_path, inputs={"images": (1, 3, 8, 8)},
               plan="plan.json", weights="tuned.pt")
    ).model  # fmt: skip
    images = torch.randn(3, 3, 8, 8)
    with api.open(back) as session, torch.no_grad():
        found = api.run(session, {"images": images.numpy()})["output"]
        np.testing.assert_allclose(found, own(images).numpy(), atol=1e-5)
    shapes = {n: tuple(v.shape) for n, v in cut.graph.initializers.items() if "." in n}
    assert {n: tuple(v.shape) for n, v in back.graph.initializers.items() if "." in n} == shapes


def test_the_graphs_repaired_weights_come_along() -> None:
    module = made(Residual)
    cut, plan = exported(module)
    executor = torch_module(cut)
    with torch.no_grad():
        executor.parameters_by_name()["head.bias"].add_(2.0)
    repaired = write_back(executor, cut, "repaired")
    own = api.apply_plan(module, plan, model=repaired)
    assert torch.allclose(own.head.bias, module.head.bias + 2.0)


def test_a_module_of_halves_is_checked_in_full_precision() -> None:
    module = made(Residual)
    cut, plan = exported(module)
    own = api.apply_plan(module.half(), plan, model=cut)
    assert own.head.weight.dtype == torch.float16


def test_an_embedding_and_a_layer_norm_follow() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(10, 6, padding_idx=9)
            self.norm = nn.LayerNorm(6)
            self.bare = nn.LayerNorm(6, elementwise_affine=False)
            self.head = nn.Linear(6, 2)

        def forward(self, words: Tensor) -> Tensor:
            return self.head(self.bare(self.norm(self.words(words))))

    kept = np.array([0, 2, 3, 5])
    axes = {("words.weight", 1): kept, ("norm.weight", 0): kept, ("norm.bias", 0): kept,
            ("head.weight", 1): kept, ("words.weight", 0): np.arange(1, 10)}  # fmt: skip
    module = made(Words)
    own = cut_module(module, Plan(kept=axes))
    assert (own.words.num_embeddings, own.words.embedding_dim) == (9, 4)
    assert own.words.padding_idx == 8
    assert own.norm.normalized_shape == (4,)
    found = run_cut(own, module, [np.array([[0, 1, 2]])])  # sets the width of the bare one too
    assert own.bare.normalized_shape == (4,)
    rows = module.words.weight[1:4][:, kept].detach().numpy()  # by hand, in numpy
    for gain, shift in (
        (module.norm.weight[kept].detach().numpy(), module.norm.bias[kept].detach().numpy()),
        (1, 0),
    ):
        centred = rows - rows.mean(1, keepdims=True)
        rows = centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5) * gain + shift
    expected = (
        rows @ module.head.weight.detach().numpy()[:, kept].T + module.head.bias.detach().numpy()
    )
    np.testing.assert_allclose(found[0].numpy(), expected, atol=1e-5)


def test_a_group_norm_loses_whole_groups_or_a_part_of_each() -> None:
    module = nn.Sequential(nn.GroupNorm(4, 16))
    axes = [("0.weight", 0), ("0.bias", 0)]
    whole = cut_module(module, Plan(kept=dict.fromkeys(axes, np.arange(4, 12))))[0]
    assert (whole.num_groups, whole.num_channels) == (2, 8)
    each = cut_module(module, Plan(kept=dict.fromkeys(axes, first_and(0, 4, 8, 12, of=16))))[0]
    assert (each.num_groups, each.num_channels) == (4, 12)
    with pytest.raises(InputError, match="does not fit the 4 groups"):
        cut_module(module, Plan(kept=dict.fromkeys(axes, np.arange(10))))


def attention_plan(prefix: str, kept: Array, width: int) -> dict[tuple[str, int], Array]:
    packed = np.concatenate([kept + part * width for part in range(3)])
    return {(f"{prefix}in_proj_weight", 0): packed, (f"{prefix}in_proj_bias", 0): packed,
            (f"{prefix}out_proj.weight", 1): kept}  # fmt: skip


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("masked", [True, False])
def test_attention_loses_heads_as_if_nobody_read_them(
    batch_first: bool, need_weights: bool, masked: bool
) -> None:
    torch.manual_seed(1)
    whole = nn.MultiheadAttention(24, 4, batch_first=batch_first).eval()
    nn.init.normal_(whole.in_proj_bias)
    heads = np.arange(24).reshape(4, 6)
    own = cut_module(whole, Plan(kept=attention_plan("", heads[[0, 3]].reshape(-1), 24)))
    with torch.no_grad():
        whole.out_proj.weight[:, heads[[1, 2]].reshape(-1)] = 0  # torch's own class is the judge
    x, y = torch.randn(2, 5, 24), torch.randn(2, 7, 24)
    if not batch_first:
        x, y = x.transpose(0, 1), y.transpose(0, 1)
    more: dict[str, Any] = {"need_weights": need_weights}
    if masked:
        more["attn_mask"] = torch.triu(torch.ones(5, 7, dtype=torch.bool), 3)
        more["key_padding_mask"] = torch.tensor([[False] * 6 + [True], [False] * 7])
    with torch.no_grad():
        expected, _ = whole(x, y, y, **more)
        found, weights = own(x, y, y, **more)
        _, each = whole(x, y, y, average_attn_weights=False, **more)
    assert torch.allclose(found, expected, atol=1e-6)
    assert own.num_heads == 2
    assert set(own.state_dict()) == set(whole.state_dict())
    if need_weights:
        assert torch.allclose(weights, each[:, [0, 3]].mean(1), atol=1e-6)
    else:
        assert weights is None


def test_an_encoder_layer_with_fewer_heads_runs_in_both_modes() -> None:
    torch.manual_seed(2)
    whole = nn.TransformerEncoderLayer(24, 4, 32, batch_first=True, dropout=0.0).eval()
    heads = np.arange(24).reshape(4, 6)
    mlp = first_and(0, 5, 31, of=32)
    axes = attention_plan("self_attn.", heads[[1, 2]].reshape(-1), 24)
    axes |= dict.fromkeys([("linear1.weight", 0), ("linear1.bias", 0), ("linear2.weight", 1)], mlp)
    own = cut_module(whole, Plan(kept=axes))
    with torch.no_grad():
        whole.self_attn.out_proj.weight[:, heads[[0, 3]].reshape(-1)] = 0
        whole.linear2.weight[:, [0, 5, 31]] = 0
    x = torch.randn(2, 5, 24)
    for mode in (False, True):
        with torch.no_grad():
            assert torch.allclose(own.train(mode)(x), whole.train(mode)(x), atol=1e-5)


def test_an_attention_keeps_torchs_class_where_its_stream_is_as_narrow() -> None:
    whole = nn.MultiheadAttention(24, 4).eval()
    kept = np.arange(12)
    axes = {**attention_plan("", kept, 24), ("in_proj_weight", 1): kept,
            ("out_proj.weight", 0): kept, ("out_proj.bias", 0): kept}  # fmt: skip
    own = cut_module(whole, Plan(kept=axes))
    assert type(own) is nn.MultiheadAttention
    assert (own.embed_dim, own.num_heads, own.head_dim) == (12, 2, 6)
    assert own(*[torch.randn(3, 2, 12)] * 3)[0].shape == (3, 2, 12)


def test_half_a_head_is_refused() -> None:
    with pytest.raises(InputError, match="4 groups or heads"):
        cut_module(nn.MultiheadAttention(24, 4), Plan(kept=attention_plan("", np.arange(15), 24)))


class Written(nn.Module):
    """A net whose forward has a width in it; which way, the subclass says."""

    width = 32

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1)
        self.next = nn.Conv2d(32, 32, 1)
        self.head = nn.Linear(32, 4)

    def middle(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, images: Tensor) -> Tensor:
        x = self.next(self.middle(torch.relu(self.conv(images))))
        return self.head(torch.relu(x).mean((2, 3)))


class Viewed(Written):
    def middle(self, x: Tensor) -> Tensor:
        x = x * 1.0
        flat = x.view(-1, 32, 64)  # the culprit
        return flat.view(-1, x.shape[1], 8, 8)


class ViewedByAttribute(Written):
    def __init__(self) -> None:
        super().__init__()
        self.channels = 32

    def middle(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], self.channels, 8, 8)  # the culprit


class Sliced(Written):
    def middle(self, x: Tensor) -> Tensor:
        left, right = x[:, :16], x[:, 16:]  # the culprit
        return torch.cat([right * 2, left[:, : right.shape[1]]], 1)


class SplitUp(Written):
    def middle(self, x: Tensor) -> Tensor:
        left, right = torch.split(x, 16, dim=1)  # the culprit
        both = left + right
        return torch.cat([both, left], 1)


class Asserted(Written):
    def middle(self, x: Tensor) -> Tensor:
        assert x.shape[1] == 32, "want 32 channels"  # the culprit
        return x


def culprit(kind: type) -> str:
    """The place, file:line, that the source itself says is to blame."""
    lines = Path(__file__).read_text().splitlines()
    begin = lines.index(f"class {kind.__name__}(Written):")
    number = next(i for i in range(begin, len(lines)) if lines[i].endswith("# the culprit"))
    return f"{__file__}:{number + 1}"


def narrow_plan() -> Plan:
    kept = np.sort(np.random.default_rng(0).permutation(32)[:24])
    return Plan(kept={("conv.weight", 0): kept, ("conv.bias", 0): kept, ("next.weight", 1): kept})


@pytest.mark.parametrize("kind", [Viewed, ViewedByAttribute, Sliced, SplitUp, Asserted])
def test_the_line_with_a_width_in_it_is_named(kind: type[nn.Module]) -> None:
    module = made(kind)
    own = cut_module(module, narrow_plan())
    with pytest.raises(InputError) as raised:
        run_cut(own, module, [np.zeros((7, 3, 8, 8), np.float32)])
    error = raised.value
    assert error.where.split(" in ")[0] == culprit(kind)
    assert kind.__name__ in error.where
    if kind is ViewedByAttribute:
        assert "32 (self.channels)" in error.got
    if kind is not Asserted:
        assert "32 channels, of which 24 are left" in error.got


def test_a_pass_that_runs_but_differs_names_its_line_or_layer() -> None:
    class Summed(Written):
        def middle(self, x: Tensor) -> Tensor:
            return x - x[:, :28].mean(1, keepdim=True)

    class Silent(Written):
        def middle(self, x: Tensor) -> Tensor:
            return x * (x.shape[1] / 32)

    class Plain(Written):
        def middle(self, x: Tensor) -> Tensor:
            return x

    model = api.load(made(Plain), inputs={"images": (1, 3, 8, 8)})
    groups = find_groups(model)
    kept = [np.arange(24) if g.name == "conv.weight" else np.arange(g.units) for g in groups.groups]
    cut, plan = remove_channels(model, groups, kept)
    for kind, wanted in ((Summed, "x[:, :28]"), (Silent, '"next"')):
        module = made(kind)
        with pytest.raises(InputError, match="does not compute what the cut graph") as raised:
            verify_module(cut_module(module, plan), module, cut, outputs_of_model)
        assert wanted in raised.value.where + raised.value.got


def test_plans_that_do_not_fit_are_refused() -> None:
    module = made(Residual)
    kept = np.arange(4)
    for axes, match in (
        ({("nothing.weight", 0): kept}, "another network"),
        ({("val_12", 0): kept}, "another network"),
        ({("head.weight", 0): np.array([2, 7])}, 'does not fit "head.weight"'),
        ({("head.weight", 3): kept}, 'does not fit "head.weight"'),
        ({("head.weight", 0): np.array([2, 1])}, 'does not fit "head.weight"'),
        ({("head.weight", 0): np.array([], np.int64)}, 'does not fit "head.weight"'),
        # Transposed by another exporter: its axis 1 is what the bias adds to.
        ({("head.weight", 1): kept, ("head.bias", 0): kept}, 'does not fit "head"'),
        ({("stem.1.weight", 0): kept, ("stem.1.bias", 0): kept}, 'does not fit "stem.1"'),
    ):
        with pytest.raises(InputError, match=match):
            cut_module(module, Plan(kept=axes))
    lstm = nn.LSTM(4, 8)
    with pytest.raises(InputError, match="LSTM gets narrower"):
        cut_module(lstm, Plan(kept={("weight_ih_l0", 1): np.arange(2)}))


def test_a_graph_with_transposed_weights_is_refused() -> None:
    module = made(Flat)
    cut, plan = exported(module)
    own = cut_module(module, Plan(kept={k: v for k, v in plan.kept.items() if "head" not in k[0]}))
    with pytest.raises(InputError, match="another shape in the graph"):
        take_weights(own, cut)


FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1)
        self.head = nn.Linear(32, 4)

    def forward(self, images):
        x = torch.relu(self.conv(images)).mean((2, 3))
        return self.head(x{})

def make():
    return Net()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A factory, one whose code has a width in it, and a plan for both."""
    (tmp_path / "net.py").write_text(FACTORY.format(""))
    (tmp_path / "written.py").write_text(FACTORY.format(".view(-1, 32)"))
    kept = np.arange(3, 27)
    axes = dict.fromkeys([("conv.weight", 0), ("conv.bias", 0), ("head.weight", 1)], kept)
    (tmp_path / "plan.json").write_text(Plan(kept=axes).to_json())
    return tmp_path


def origin(project: Path, place: str, **more: Any) -> Origin:
    return Origin(place=place, folder=project, inputs={"images": (1, 3, 8, 8)}, **more)


def test_a_factory_whose_code_does_not_follow_its_plan_is_refused(project: Path) -> None:
    model = open_origin(origin(project, "net.py:make", plan="plan.json")).model
    assert tuple(model.graph.initializers["conv.weight"].shape) == (24, 3, 3, 3)
    with pytest.raises(InputError, match="a width is written") as raised:
        open_origin(origin(project, "written.py:make", plan="plan.json"))
    place = f"{project / 'written.py'}:13"
    assert raised.value.where == f"{place} in Net"
    assert ".view(-1, 32)" in raised.value.got


def test_the_kept_export_is_another_one_with_another_plan(project: Path) -> None:
    keys = [
        export_step(origin(project, "net.py:make", **more)).key
        for more in ({}, {"plan": "plan.json"})
    ]
    assert len(set(keys)) == 2
    (project / "plan.json").write_text((project / "plan.json").read_text().replace("26", "27"))
    assert export_step(origin(project, "net.py:make", plan="plan.json")).key not in keys


@pytest.mark.parametrize(
    ("place", "plan", "match"),
    [
        ("net.py:make", "no.json", "plan cannot be read"),
        ("net.py:make", "net.py", "not a channel plan"),
        ("net.onnx", "plan.json", "has its own widths"),
    ],
)
def test_a_plan_that_is_none_is_one_error(project: Path, place: str, plan: str, match: str) -> None:
    shapes = {} if place.endswith(".onnx") else {"images": (1, 3, 8, 8)}
    with pytest.raises(InputError, match=match):
        open_origin(Origin(place=place, folder=project, plan=plan, inputs=shapes))


def test_a_recipe_names_the_plan_beside_factory_and_weights(project: Path) -> None:
    named = origin(project, "net.py:make", plan="plan.json")
    text = draft_recipe(open_origin(named), named, Wishes(calibration="c.npz", evaluation="e.npz"))
    (project / "edgekit.toml").write_text(text)
    assert load_recipe(project / "edgekit.toml").model.plan == "plan.json"
    (project / "edgekit.toml").write_text(
        '[model]\npath = "a.onnx"\nplan = "plan.json"\n'
        '[data]\ncalibration = "c.npz"\nevaluation = "e.npz"\n'
    )
    with pytest.raises(InputError, match="a plan goes with a factory"):
        load_recipe(project / "edgekit.toml")


def test_the_command_line_takes_the_plan(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    found = CliRunner().invoke(
        app, ["inspect", "net.py:make", "--plan", "plan.json", "--input", "images=1,3,8,8",
              "--json"],
    )  # fmt: skip
    assert found.exit_code == 0
    parameters = 24 * 27 + 24 + 4 * 24 + 4
    assert f"{parameters}" in found.stdout
