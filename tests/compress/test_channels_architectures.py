"""Channel groups of architectures, each as torch exports it: cut, and compared with the masked."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conftest import run_reference
from masked import masked

from edgekit.compress.channels.groups import Groups, find_groups
from edgekit.compress.channels.remove import remove_channels
from edgekit.models.cost import total_cost
from edgekit.models.model import Model
from edgekit.models.simplify import clean
from edgekit.values import Array

torch = pytest.importorskip("torch", reason="needs the compress extra")
nn, functional = torch.nn, torch.nn.functional
pytestmark = pytest.mark.torch

IMAGE = (1, 3, 16, 16)


def conv(into: int, out: int, size: int = 3, **options: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(into, out, size, padding=size // 2, bias=False, **options),  # type: ignore[arg-type]
        nn.BatchNorm2d(out), nn.ReLU(),
    )  # fmt: skip


class Pooled(nn.Module):
    """A stem, a body and a classifier over pooled features."""

    def __init__(self, body: nn.Module, into: int, out: int) -> None:
        super().__init__()
        self.stem, self.body, self.fc = conv(3, into), body, nn.Linear(out, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


class Shuffled(nn.Module):
    """ShuffleNet: grouped convolutions with the channels shuffled between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv(24, 24, 1, groups=3), conv(24, 24, 1, groups=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        n, c, h, w = x.shape
        x = x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.second(x)


class C2f(nn.Module):
    """YOLOv8's block: split in two, a chain of bottlenecks, all joined again."""

    def __init__(self, by_chunk: bool) -> None:
        super().__init__()
        self.by_chunk = by_chunk
        self.enter, self.leave = conv(16, 32, 1), conv(64, 32, 1)
        self.chain = nn.ModuleList([nn.Sequential(conv(16, 16), conv(16, 16)) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.enter(x)
        parts = list(x.chunk(2, 1) if self.by_chunk else x.split([16, 16], 1))
        for block in self.chain:
            parts.append(parts[-1] + block(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class Upscaled(nn.Module):
    """Sub-pixel convolution: channels become places."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.last = conv(16, 64), conv(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(functional.pixel_shuffle(self.wide(x), 2))


class ENetLike(nn.Module):
    """PReLU, a transposed convolution, padded channels in the shortcut, dilated branches."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(16, 24, 2, stride=2), nn.BatchNorm2d(24), nn.PReLU(24))
        self.thin = nn.Sequential(conv(24, 16, 1), conv(16, 16), nn.Conv2d(16, 24, 1))
        self.act = nn.PReLU(24)
        self.up = nn.ConvTranspose2d(24, 16, 2, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = functional.max_pool2d(x, 2)
        padded = functional.pad(pooled, (0, 0, 0, 0, 0, 8))
        y = self.act(self.down(x) + padded)
        y = self.act(y + self.thin(y))
        return torch.relu(self.up(y)) + x


class PaddedShortcut(nn.Module):
    """ResNet's option A: every other place, and zeros for the new channels on both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(16, 32, stride=2), nn.Conv2d(32, 32, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        short = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8))
        return torch.relu(self.b(self.a(x)) + short)


class Attention(nn.Module):
    """A transformer block over the places of a picture; heads and the hidden width can go."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.heads = heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        x = x.flatten(2).transpose(1, 2)
        y = self.norm1(x)
        qkv = self.qkv(y).reshape(n, h * w, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        weights = (q @ k.transpose(-2, -1) * (c // self.heads) ** -0.5).softmax(-1)
        x = x + self.proj((weights @ v).transpose(1, 2).reshape(n, h * w, c))
        x = x + self.mlp(self.norm2(x))
        return x.transpose(1, 2).reshape(n, c, h, w)


class Tokens(nn.Module):
    """ViT: a class token in front, positions, and the token alone behind."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 1, 32))
        self.positions = nn.Parameter(torch.randn(1, 257, 32))
        self.mlp = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.token.expand(x.shape[0], -1, -1)
        x = torch.cat([tokens, x.flatten(2).transpose(1, 2)], 1) + self.positions
        return (x + self.mlp(x))[:, 0, :, None, None]


class PlainAttention(nn.Module):
    """torch's own multi-head attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        y = x.flatten(2).transpose(1, 2)
        y, _ = self.attention(y, y, y, need_weights=False)
        return y.transpose(1, 2).reshape(n, c, h, w)


class Gate(nn.Module):
    """Squeeze and excite through Linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class Dense(nn.Module):
    """A dense block: every layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([conv(16 + 8 * k, 8) for k in range(4)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class Twice(nn.Module):
    """One convolution at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.between = nn.Conv2d(16, 16, 3, padding=1), conv(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.shared(self.between(torch.relu(self.shared(x)))))


class Pyramid(nn.Module):
    """Two scales, resized and added."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.side, self.out = conv(16, 24, stride=2), conv(16, 24, 1), conv(24, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = functional.interpolate(self.low(x), scale_factor=2.0, mode="nearest")
        return self.out(low + self.side(x))


class Selected(nn.Module):
    """Channels in another order, by index."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.randperm(16))
        self.last = conv(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.index_select(x, 1, self.order))


class Projected(nn.Module):
    """An einsum in place of a 1 x 1 convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(24, 16) / 4)
        self.last = conv(24, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.einsum("nchw,oc->nohw", x, self.weight).relu())


class Halved(nn.Module):
    """The first channels alone, by a slice, as GhostNet takes them; and a depthwise branch."""

    def __init__(self) -> None:
        super().__init__()
        self.cheap, self.last = conv(16, 16, groups=16), conv(24, 16, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.cat([x, self.cheap(x)], 1)[:, :24])


BODIES: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "channel shuffle": (Shuffled, 24, 24),
    "C2f by chunk": (lambda: C2f(by_chunk=True), 16, 32),
    "C2f by split": (lambda: C2f(by_chunk=False), 16, 32),
    "pixel shuffle": (Upscaled, 16, 16),
    "ENet": (ENetLike, 16, 16),
    "padded shortcut": (PaddedShortcut, 16, 32),
    "attention": (Attention, 32, 32),
    "multi-head attention": (PlainAttention, 32, 32),
    "class token": (Tokens, 32, 32),
    "gate": (Gate, 16, 16),
    "dense block": (Dense, 16, 48),
    "shared weights": (Twice, 16, 16),
    "pyramid": (Pyramid, 16, 16),
    "channels by index": (Selected, 16, 16),
    "einsum": (Projected, 16, 16),
    "sliced channels": (Halved, 16, 16),
    "transposed groups": (
        lambda: nn.Sequential(nn.ConvTranspose2d(16, 24, 2, 2, groups=4), nn.ReLU(), conv(24, 16)),
        16, 16,
    ),
    "grouped by few": (lambda: nn.Sequential(conv(16, 32, groups=2), conv(32, 16)), 16, 16),
    "grouped by many": (lambda: nn.Sequential(conv(32, 32, groups=16), conv(32, 16)), 32, 16),
}  # fmt: skip


@functools.cache
def exported(name: str) -> Model:
    from edgekit.models.torch_source import export_module

    make, into, out = BODIES[name]
    torch.manual_seed(0)
    module = Pooled(make(), into, out).eval()
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.uniform_(layer.running_var, 0.5, 1.5)
            nn.init.normal_(layer.bias, 0, 0.2)
            nn.init.normal_(layer.running_mean, 0, 0.2)
        elif isinstance(layer, nn.LayerNorm):
            nn.init.normal_(layer.bias, 0, 0.2)
    return clean(export_module(module, {"x": IMAGE}, name="net").model)


def halves(groups: Groups, seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return [
        np.sort(rng.choice(group.units, max(1, group.units // 2), replace=False))
        for group in groups.groups
    ]


@pytest.mark.parametrize("name", BODIES)
def test_a_cut_architecture_computes_what_the_masked_one_computes(name: str) -> None:
    model = exported(name)
    groups = find_groups(model)
    assert set(groups.frozen.values()) == {'"' + model.outputs[0].name + '" is a graph output'}
    x = np.random.default_rng(1).normal(size=IMAGE).astype(np.float32)
    feeds = {model.inputs[0].name: x}
    for seed in range(3):
        cut, plan = remove_channels(model, groups, halves(groups, seed))
        assert total_cost(cut).macs < 0.75 * total_cost(model).macs
        expected = run_reference(masked(model, groups, plan), feeds)[0]
        found = run_reference(cut, feeds)[0]
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def units_of(name: str) -> dict[str, int]:
    return {group.name: group.units for group in find_groups(exported(name)).groups}


def test_heads_are_the_units_of_attention() -> None:
    for name in ("attention", "multi-head attention"):
        groups = find_groups(exported(name)).groups
        heads = [g for g in groups if g.units == 4 and g.channels_per_unit == 24]  # 8 of q, k, v
        assert len(heads) == 1, name


def test_a_class_token_goes_along_and_is_no_weight() -> None:
    model = exported("class token")
    roles = {
        member.parameter: member.role
        for group in find_groups(model).groups
        for member in group.members
        if member.parameter.startswith("body.")
    }
    assert roles.pop("body.token") == roles.pop("body.positions") == "along"
    assert roles["body.mlp.1.bias"] == "along"
    assert roles["body.mlp.0.weight"] == "along"


def test_a_shuffle_loses_the_same_places_of_each_group() -> None:
    assert all(units <= 8 for units in units_of("channel shuffle").values())


def test_many_narrow_groups_go_whole_and_few_wide_ones_become_narrower() -> None:
    cut, _ = _halved("grouped by many")
    counts = {n.attributes["group"].value for n in cut.graph if n.op_type == "Conv"}
    assert 8 in counts
    cut, _ = _halved("grouped by few")
    assert {n.attributes["group"].value for n in cut.graph if n.op_type == "Conv"} == {1, 2}


def _halved(name: str) -> tuple[Model, Groups]:
    model = exported(name)
    groups = find_groups(model)
    return remove_channels(model, groups, halves(groups, 0))[0], groups


def test_the_zeros_of_a_padded_shortcut_go_with_the_channels_that_they_meet() -> None:
    cut, groups = _halved("padded shortcut")
    assert sorted(group.units for group in groups.groups) == [16, 16, 32]
    assert total_cost(cut).macs < 0.4 * total_cost(exported("padded shortcut")).macs
