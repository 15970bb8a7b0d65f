"""A small network of inverted residuals, trained on CIFAR-10 and written with BatchNormalization.

    python benchmarks/depthwise_net.py DATA OUT.onnx [--epochs 7] [--spread 30] [--seed 0] [--quick]

DATA is a folder with a `load.py` whose `cifar10("train")` and `cifar10("test")` give images
(n, 32, 32, 3) in uint8 and labels. Inverted residuals as in MobileNetV2 (Sandler et al. 2018,
table 1): 1x1 that widens, depthwise 3x3, 1x1 that narrows, ReLU6 after the first two. It takes the
pixels normalised as `MEAN` and `STD` say, (n, 3, 32, 32).

Each epoch is kept in OUT.pt beside OUT: a run that was stopped goes on from there, and gives the
network that it would have given. `--quick` trains one epoch on 5,000 images.

A few epochs leave the channels alike. In networks that were trained for long they differ by orders
of magnitude once BatchNormalization is folded, which is what breaks one scale for all of a weight
(Nagel et al. 2019, "Data-Free Quantization", figure 2). `--spread 30` starts from there: the scales
of the widened channels begin between 1/30 and 1, evenly in their logarithm.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from edgekit import files

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
STEM = 24
# Widening, channels out, blocks, stride of the first block.
STAGES = ((1, 24, 1, 2), (4, 32, 2, 1), (6, 48, 2, 2), (6, 72, 2, 2))
HEAD = 256
_BATCH = 128
_MARGIN = 4  # pixels by which a training image is moved at most


@dataclass(frozen=True, kw_only=True)
class Images:
    """Pixels (n, 3, 32, 32) in uint8 and labels (n,)."""

    pixels: torch.Tensor
    labels: torch.Tensor


def normed(into: int, out: int, kernel: int, stride: int, groups: int) -> list[nn.Module]:
    """A convolution without a bias and its BatchNormalization."""
    convolution = nn.Conv2d(into, out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(out)]


class Inverted(nn.Module):
    """An inverted residual; the shortcut is there where the shapes are the same."""

    def __init__(self, into: int, out: int, *, widen: int, stride: int) -> None:
        super().__init__()
        wide = into * widen
        layers = [*normed(into, wide, 1, 1, 1), nn.ReLU6()] if widen > 1 else []
        layers += [*normed(wide, wide, 3, stride, wide), nn.ReLU6()]
        self.layers = nn.Sequential(*layers, *normed(wide, out, 1, 1, 1))
        self.shortcut = stride == 1 and into == out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.layers(x)
        return x + found if self.shortcut else found


class DepthwiseNet(nn.Module):
    """Ten classes from (n, 3, 32, 32)."""

    def __init__(self) -> None:
        super().__init__()
        blocks: list[nn.Module] = [*normed(3, STEM, 3, 1, 1), nn.ReLU6()]
        into = STEM
        for widen, out, count, stride in STAGES:
            for k in range(count):
                blocks.append(Inverted(into, out, widen=widen, stride=stride if k == 0 else 1))
                into = out
        blocks += [*normed(into, HEAD, 1, 1, 1), nn.ReLU6()]
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Linear(HEAD, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.classifier(self.features(x).mean((2, 3)))
        return found


def spread_channels(net: nn.Module, factor: float) -> None:
    """Starts the BatchNormalization in front of every depthwise convolution, and the one behind
    it, with scales between 1 / `factor` and 1, evenly in their logarithm.
    """
    for block in net.modules():
        if isinstance(block, Inverted):
            for layer in block.layers[:-1]:
                if isinstance(layer, nn.BatchNorm2d):
                    nn.init.uniform_(layer.weight, -math.log(factor), 0.0)
                    layer.weight.data.exp_()


def read(folder: Path, split: str) -> Images:
    spec = importlib.util.spec_from_file_location("reader", folder / "load.py")
    assert spec is not None
    assert spec.loader is not None
    reader = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(reader)
    pixels, labels = reader.cifar10(split)
    planes = np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
    return Images(pixels=torch.from_numpy(planes), labels=torch.from_numpy(labels))


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    shown = (pixels.float() / 255 - mean) / std
    return shown.contiguous(memory_format=torch.channels_last)


def moved(pixels: torch.Tensor, dice: torch.Generator) -> torch.Tensor:
    """The images mirrored by chance and moved by up to four pixels, black coming in."""
    count = len(pixels)
    mirror = torch.rand(count, generator=dice) < 0.5
    pixels = torch.where(mirror.view(-1, 1, 1, 1), pixels.flip(3), pixels)
    wider = functional.pad(pixels, (_MARGIN,) * 4)
    offsets = torch.randint(0, 2 * _MARGIN + 1, (2, count, 1), generator=dice)
    rows, columns = offsets + torch.arange(32)
    return wider[
        torch.arange(count).view(-1, 1, 1, 1), torch.arange(3).view(1, 3, 1, 1),
        rows.view(count, 1, 32, 1), columns.view(count, 1, 1, 32),
    ]  # fmt: skip


def accuracy(net: nn.Module, shown: Images) -> float:
    net.eval()
    with torch.inference_mode():
        right = sum(
            int((net(normalised(pixels)).argmax(1) == labels).sum())
            for pixels, labels in zip(shown.pixels.split(500), shown.labels.split(500), strict=True)
        )
    return right / len(shown.labels)


def train(shown: Images, test: Images, options: argparse.Namespace) -> nn.Module:
    """The trained network: SGD with momentum 0.9, one cycle of the rate, labels smoothed by 0.1."""
    torch.manual_seed(options.seed)
    net = DepthwiseNet().to(memory_format=torch.channels_last)
    if options.spread > 1:
        spread_channels(net, options.spread)
    steps = -(-len(shown.labels) // _BATCH)
    sgd = torch.optim.SGD(
        net.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=options.decay
    )
    rate = torch.optim.lr_scheduler.OneCycleLR(
        sgd, max_lr=options.rate, epochs=options.epochs, steps_per_epoch=steps, pct_start=0.25
    )
    checkpoint = options.out.with_suffix(".pt")
    wanted = [
        options.seed,
        options.epochs,
        options.decay,
        options.rate,
        len(shown.labels),
        options.spread,
    ]
    begun = 0
    if checkpoint.is_file():
        stored: dict[str, Any] = torch.load(checkpoint, weights_only=True)
        if stored["wanted"] == wanted:
            begun = stored["epoch"]
            for part, state in zip((net, sgd, rate), stored["states"], strict=True):
                part.load_state_dict(state)
    for epoch in range(begun, options.epochs):
        started, losses = time.perf_counter(), []
        dice = torch.Generator().manual_seed(options.seed * 1000 + epoch)
        net.train()
        for chosen in torch.randperm(len(shown.labels), generator=dice).split(_BATCH):
            guess = net(normalised(moved(shown.pixels[chosen], dice)))
            loss = functional.cross_entropy(guess, shown.labels[chosen], label_smoothing=0.1)
            sgd.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            sgd.step()
            rate.step()
            losses.append(loss.item())
        states = [part.state_dict() for part in (net, sgd, rate)]
        with files.replacing(checkpoint) as partial:
            torch.save({"wanted": wanted, "epoch": epoch + 1, "states": states}, partial)
        print(
            f"epoch {epoch + 1} of {options.epochs}: loss {np.mean(losses):.3f}, "
            f"{time.perf_counter() - started:.0f} s, test {100 * accuracy(net, test):.2f}%",
            flush=True,
        )
    return net.eval()


def write(net: nn.Module, path: Path) -> None:
    """The network as an ONNX file of opset 17 with every BatchNormalization in it."""
    net = net.to(memory_format=torch.contiguous_format)
    with files.replacing(path) as partial:
        torch.onnx.export(
            net, (torch.zeros(1, 3, 32, 32),), str(partial), dynamo=False, opset_version=17,
            training=torch.onnx.TrainingMode.PRESERVE, do_constant_folding=False,
            input_names=["input"], output_names=["logits"],
            dynamic_axes={"input": {0: "n"}, "logits": {0: "n"}},
        )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--epochs", type=int, default=7)
    parser.add_argument("--rate", type=float, default=0.2)
    parser.add_argument("--decay", type=float, default=5e-4)
    parser.add_argument("--spread", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    shown, test = read(options.data, "train"), read(options.data, "test")
    if options.quick:
        options.epochs = 1
        shown = Images(pixels=shown.pixels[:5000], labels=shown.labels[:5000])
        test = Images(pixels=test.pixels[:2000], labels=test.labels[:2000])
    started = time.perf_counter()
    net = train(shown, test, options)
    write(net, options.out)
    print(
        f"{100 * accuracy(net, test):.2f}% of {len(test.labels)} test images, "
        f"{sum(p.numel() for p in net.parameters()):,} parameters, "
        f"{time.perf_counter() - started:.0f} s: {options.out}"
    )


if __name__ == "__main__":
    main()
