"""The trainable executor beside the same network in plain torch: time and peak memory.

    python benchmarks/executor.py [--batch 8] [--rounds 8] [--size 224]

ResNet-18 and MobileNetV2. The two take turns in one process; what is printed is the median of the
rounds' ratios, and the smallest and largest. For memory each runs alone in a fresh process: the
growth of its resident memory over one training step and over one pass without gradients.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
from networks import NETWORKS

from edgekit.models.torch_module import torch_module
from edgekit.models.torch_source import export_module

ARMS = ("plain", "executor")


def built(network: str, arm: str, size: int) -> Any:
    """The network or its executor, in training mode; Dropout is in neither."""
    torch.manual_seed(0)
    plain = NETWORKS[network]()
    if network == "mobilenet_v2":
        plain.dropout = torch.nn.Identity()
    if arm == "plain":
        return plain.train()
    model = export_module(plain, {"images": (1, 3, size, size)}, name=network).model
    return torch_module(model).train()


def first(found: Any) -> torch.Tensor:
    tensor: torch.Tensor = found if torch.is_tensor(found) else found[0]
    return tensor


def forward(module: Any, x: torch.Tensor) -> None:
    with torch.no_grad():
        module(x)


def both(module: Any, x: torch.Tensor) -> None:
    first(module(x)).square().mean().backward()
    for parameter in module.parameters():
        parameter.grad = None


STEPS = {"forward": forward, "forward and backward": both}


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def growth(network: str, arm: str, step: str, batch: int, size: int) -> int:
    """The growth of this process's resident memory over one step, the second of its kind."""
    module = built(network, arm, size)
    x = torch.randn(batch, 3, size, size)
    STEPS[step](module, x[:1].repeat(2, 1, 1, 1))  # what is made once is made now
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    STEPS[step](module, x)
    return resident("VmHWM") - before


def in_a_process(*arguments: str) -> int:
    command = [sys.executable, __file__, "--alone", *arguments]
    # The allocator gives back at once what is freed: resident memory is then what is in use.
    returning = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    environment = {**os.environ, **returning}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--alone", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(growth(*options.alone, options.batch, options.size))
        return
    for network in NETWORKS:
        x = torch.randn(options.batch, 3, options.size, options.size)
        modules = {arm: built(network, arm, options.size) for arm in ARMS}
        for title, step in STEPS.items():
            ratios = []
            for arm in ARMS:
                step(modules[arm], x)
            for turn in range(options.rounds):
                taken = {}
                for arm in ARMS if turn % 2 else reversed(ARMS):
                    begun = time.perf_counter()
                    step(modules[arm], x)
                    taken[arm] = time.perf_counter() - begun
                ratios.append(taken["executor"] / taken["plain"])
            print(
                f"{network:13} {title:21} {statistics.median(ratios):.3f} times plain torch "
                f"({min(ratios):.3f} to {max(ratios):.3f})",
                flush=True,
            )
        for title in STEPS:
            shape = ("--batch", str(options.batch), "--size", str(options.size))
            mb = {
                arm: in_a_process(network, arm, title, *shape) / 1e6 for arm in ARMS
            }  # fmt: skip
            print(
                f"{network:13} {title:21} {mb['executor'] / mb['plain']:.3f} times the memory "
                f"({mb['executor']:.0f} MB, plain torch {mb['plain']:.0f})",
                flush=True,
            )


if __name__ == "__main__":
    main()
