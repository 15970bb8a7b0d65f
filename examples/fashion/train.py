"""Trains the example network on Fashion-MNIST and writes what `edgekit.toml` here names.

    python train.py --data FOLDER [--epochs 12] [--out .]

FOLDER holds `fashion_mnist_train.npz` and `fashion_mnist_test.npz`, each with `x` uint8
(n, 28, 28) and `y` int64 (n,). Fashion-MNIST is MIT-licensed, by Zalando SE.

Written: `fashion.onnx` (BatchNormalization kept, batch dynamic), `calibration.npz` (4,000
training images without labels) and `evaluation.npz` (2,000 test images with labels). Nothing is
chosen by looking at a test image: the schedule is fixed and the last weights are the ones kept.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnx_ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn
from torch.nn import functional

MEAN, STD = 0.2860, 0.3530  # of the 60,000 training images, scaled to 0..1


def conv_bn(
    inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = conv_bn(inputs, outputs, 3, stride)
        self.second = conv_bn(outputs, outputs, 3)
        keeps_shape = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if keeps_shape else conv_bn(inputs, outputs, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.first(x))
        return torch.relu(self.second(inner) + self.shortcut(x))


class DepthwiseResidual(nn.Module):
    """Widen by a 1x1 convolution, a depthwise 3x3, narrow again; the input is added."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.widen = conv_bn(channels, hidden, 1)
        self.depthwise = conv_bn(hidden, hidden, 3, groups=hidden)
        self.narrow = conv_bn(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = torch.relu(self.depthwise(torch.relu(self.widen(x))))
        return torch.relu(x + self.narrow(inner))


class TwoBranches(nn.Module):
    """A 3x3 and a 1x1 convolution of the same input, concatenated."""

    def __init__(self, inputs: int, each: int) -> None:
        super().__init__()
        self.wide = conv_bn(inputs, each, 3)
        self.narrow = conv_bn(inputs, each, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.relu(self.wide(x)), torch.relu(self.narrow(x))], dim=1)


class FashionNet(nn.Module):
    """(n, 1, 28, 28) normalised grey images -> (n, 10) logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(1, 32, 3)
        self.mix = DepthwiseResidual(32, 64)
        self.down1 = Residual(32, 64, stride=2)
        self.branches = TwoBranches(64, 64)
        self.down2 = Residual(128, 128, stride=2)
        self.deep = Residual(128, 128)
        self.classifier = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(torch.relu(self.stem(x)))
        x = self.deep(self.down2(self.branches(self.down1(x))))
        return self.classifier(torch.flatten(functional.adaptive_avg_pool2d(x, 1), 1))


def load(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    with np.load(folder / f"fashion_mnist_{split}.npz") as arrays:
        return torch.from_numpy(arrays["x"])[:, None], torch.from_numpy(arrays["y"])


def normalise(images: Tensor) -> Tensor:
    return (images.float() / 255 - MEAN) / STD


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shifts each batch by up to 2 pixels, mirrors half its images and blanks a patch in half."""
    n = len(images)
    mirrored = torch.rand(n, generator=generator) < 0.5
    images = torch.where(mirrored[:, None, None, None], images.flip(3), images)
    shift = torch.randint(-2, 3, (n, 2), generator=generator)
    rows = (torch.arange(28) + shift[:, :1])[:, None, :, None]
    columns = (torch.arange(28) + shift[:, 1:])[:, None, None, :]
    padded = functional.pad(images, (2, 2, 2, 2))
    images = padded[torch.arange(n)[:, None, None, None], 0, rows + 2, columns + 2]
    corner = torch.randint(-4, 25, (n, 2), generator=generator)
    size = torch.randint(4, 12, (n, 2), generator=generator)
    size = size * (torch.rand(n, 1, generator=generator) < 0.5)
    across = torch.arange(28)
    in_rows = (across >= corner[:, :1]) & (across < corner[:, :1] + size[:, :1])
    in_columns = (across >= corner[:, 1:]) & (across < corner[:, 1:] + size[:, 1:])
    patch = in_rows[:, None, :, None] & in_columns[:, None, None, :]
    return images.masked_fill(patch, 0)


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    network.eval()
    found = [network(normalise(batch)).argmax(1) for batch in images.split(500)]
    return (torch.cat(found) == labels).float().mean().item()


def train(network: nn.Module, images: Tensor, labels: Tensor, epochs: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = 128
    steps = epochs * (len(images) // batch)
    decayed = [p for p in network.parameters() if p.ndim > 1]
    free = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 5e-4}, {"params": free, "weight_decay": 0.0}],
        lr=0.1, momentum=0.9, nesterov=True,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, steps, pct_start=0.2)
    for epoch in range(epochs):
        network.train()
        begun, total = time.perf_counter(), 0.0
        order = torch.randperm(len(images), generator=generator)
        for chosen in order[: len(order) // batch * batch].split(batch):
            inputs = normalise(augment(images[chosen], generator))
            loss = functional.cross_entropy(
                network(inputs.contiguous(memory_format=torch.channels_last)), labels[chosen]
            )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        mean, seconds = total / (len(images) // batch), time.perf_counter() - begun
        print(f"epoch {epoch + 1}/{epochs}: loss {mean:.4f}, {seconds:.0f} s", flush=True)


def export(network: nn.Module, path: Path) -> None:
    """Writes the graph with BatchNormalization in it and the parameters under their own names.

    The exporter's own optimisation would fold BatchNormalization away, so it is off, and what is
    left of constant arithmetic is folded by onnxscript. A Conv without a bias comes out with one
    of zeros, which is dropped.
    """
    import onnxscript.optimizer

    program = torch.onnx.export(
        network.eval(), (torch.zeros(2, 1, 28, 28),), dynamo=True, optimize=False, verbose=False,
        input_names=["image"], output_names=["logits"], opset_version=18,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    ).model  # fmt: skip
    onnxscript.optimizer.fold_constants(program)
    for node in program.graph:
        bias = node.inputs[2].const_value if node.op_type == "Conv" else None
        if bias is not None and not bias.numpy().any():
            node.resize_inputs(2)
    onnxscript.optimizer.remove_unused_nodes(program)
    ClearMetadataAndDocStringPass()(program)  # where in the source each node came from
    program.graph.metadata_props.clear()
    program.graph.name = "fashion"
    onnx_ir.save(program, path)


def write_images(folder: Path, out: Path) -> None:
    images, _ = load(folder, "train")
    chosen = np.sort(np.random.default_rng(0).choice(len(images), 4000, replace=False))
    np.savez_compressed(out / "calibration.npz", image=images[chosen].numpy())
    images, labels = load(folder, "test")
    chosen = np.sort(np.random.default_rng(0).choice(len(images), 2000, replace=False))
    np.savez_compressed(
        out / "evaluation.npz", image=images[chosen].numpy(), labels=labels[chosen].numpy()
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent)
    options = parser.parse_args()
    torch.manual_seed(options.seed)
    network = FashionNet().to(memory_format=torch.channels_last)
    train(network, *load(options.data, "train"), options.epochs, options.seed)
    print(f"top-1 on the 10,000 test images: {accuracy(network, *load(options.data, 'test')):.4f}")
    torch.save(network.state_dict(), options.out / "fashion.pt")
    export(network.to(memory_format=torch.contiguous_format), options.out / "fashion.onnx")
    write_images(options.data, options.out)


if __name__ == "__main__":
    main()
