"""The trainable executor beside the same network in plain torch: forward, and forward and backward.

    python benchmarks/executor.py [--batch 64] [--rounds 12]

The two take turns; what is printed is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from edgekit.models.source import load
from edgekit.models.torch_module import torch_module

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "fashion"


def seconds(step: Callable[[str], None], name: str, times: int = 3) -> float:
    begun = time.perf_counter()
    for _ in range(times):
        step(name)
    return (time.perf_counter() - begun) / times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=12)
    options = parser.parse_args()
    sys.path.insert(0, str(EXAMPLE))
    from train import FashionNet, export  # the example's own network

    torch.manual_seed(0)
    plain = FashionNet()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.onnx")
        export(plain, path)
        ours = torch_module(load(path))
    x = torch.randn(options.batch, 1, 28, 28).contiguous(memory_format=torch.channels_last)
    modules = {
        "plain": plain.train().to(memory_format=torch.channels_last),
        "executor": ours.train().to(memory_format=torch.channels_last),
    }

    def forward(name: str) -> None:
        with torch.no_grad():
            modules[name](x)

    def both(name: str) -> None:
        found = modules[name](x)
        (found if torch.is_tensor(found) else found[0]).square().mean().backward()

    for title, step in (("forward", forward), ("forward and backward", both)):
        ratios = []
        for name in modules:
            step(name)
        for _ in range(options.rounds):
            taken = {name: seconds(step, name) for name in modules}
            ratios.append(taken["executor"] / taken["plain"])
        low, high = min(ratios), max(ratios)
        print(f"{title}: {statistics.median(ratios):.3f} times plain torch ({low:.3f}, {high:.3f})")


if __name__ == "__main__":
    main()
