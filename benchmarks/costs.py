"""MACs and parameters of well-known networks, beside what is published of them.

    python benchmarks/costs.py GRAPHS

GRAPHS is a folder of hollow ONNX graphs with `fill.py`, which gives them seeded weights. Published
are torchvision's tables of weights: num_params, and GFLOPS, which are multiply-adds. Exits with 1
where MACs are off by more than 1% or parameters by any.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from graphs import filler

from edgekit.models.cost import total_cost
from edgekit.models.cost.liveness import peak_activations
from edgekit.models.cost.sizes import forms
from edgekit.models.source import load
from edgekit.values import Unknown

# name: (G multiply-adds, parameters) of 224 x 224 pixels, 299 x 299 for inception.
PUBLISHED = {
    "alexnet": (0.71, 61_100_840),
    "densenet121": (2.83, 7_978_856),
    "googlenet": (1.50, 6_624_904),
    "mnasnet1_0": (0.31, 4_383_312),
    "mobilenet_v2": (0.30, 3_504_872),
    "mobilenet_v3_large": (0.22, 5_483_032),
    "regnet_y_400mf": (0.40, 4_344_144),
    "resnet18": (1.81, 11_689_512),
    "resnet50": (4.09, 25_557_032),
    "resnext50_32x4d": (4.23, 25_028_904),
    "shufflenet_v2_x1_0": (0.14, 2_278_604),
    "squeezenet1_1": (0.35, 1_235_496),
    "vgg11_bn": (7.61, 132_868_840),
    "vgg16": (15.47, 138_357_544),
}


def agrees(macs: int, published: float) -> bool:
    """Within 1%, or what rounding the published figure to two digits leaves open."""
    return abs(macs / 1e9 - published) <= max(0.01 * published, 0.005)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("graphs", type=Path)
    options = parser.parse_args()
    fill = filler(options.graphs)
    print(
        f"{'network':30} {'G MACs':>8} {'published':>9} {'parameters':>12} {'published':>12} "
        f"{'statistics':>10} {'peak MB':>8}"
    )
    off = 0
    for path in sorted(options.graphs.glob("*.onnx")):
        with tempfile.TemporaryDirectory() as folder:
            full = Path(folder, path.name)
            fill.fill(path, full)
            model = load(full)
            cost = total_cost(model)
            peak = peak_activations(model, forms(model)).peak_bytes
        published = PUBLISHED.get(path.stem)
        wanted = ("", "") if published is None else (f"{published[0]:.2f}", f"{published[1]:,}")
        wrong = published is not None and not (
            agrees(cost.macs, published[0]) and cost.parameters == published[1]
        )
        off += wrong
        megabytes = str(peak) if isinstance(peak, Unknown) else f"{peak / 1e6:8.2f}"
        print(
            f"{path.stem:30} {cost.macs / 1e9:8.3f} {wanted[0]:>9} {cost.parameters:12,} "
            f"{wanted[1]:>12} {cost.statistics:10,} {megabytes}{'  <- off' if wrong else ''}",
            flush=True,
        )
    print(f"networks that miss what is published: {off}")
    sys.exit(1 if off else 0)


if __name__ == "__main__":
    main()
