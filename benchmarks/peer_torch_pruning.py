"""Torch-Pruning on one architecture of torchvision: the seconds of tracing and cutting, as JSON.

    python benchmarks/peer_torch_pruning.py resnet18

For a virtual environment of its own with torch, torchvision and torch-pruning. Half the channels of
every group go, by the magnitude of the weights; the cut network is run once. torchvision's compiled
operators may be missing (a build for another torch): they are declared, since none is needed here.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch

_OPERATORS = (
    "nms", "qnms", "roi_align", "roi_pool", "ps_roi_align", "ps_roi_pool", "deform_conv2d",
    "_roi_align_backward", "_roi_pool_backward", "_ps_roi_align_backward",
    "_ps_roi_pool_backward", "_deform_conv2d_backward",
)  # fmt: skip
_SIZES = {"inception_v3": 299}
_NAMES = {
    "deeplabv3_mobilenet_v3_large": "segmentation.deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large": "segmentation.lraspp_mobilenet_v3_large",
}


def network(name: str) -> torch.nn.Module:
    """The architecture with random weights, in eval mode."""
    library = torch.library.Library("torchvision", "DEF")
    for operator in _OPERATORS:
        library.define(f"{operator}(Tensor a) -> Tensor")
    import torchvision

    place: Any = torchvision.models
    for part in _NAMES.get(name, name).split("."):
        place = getattr(place, part)
    options = (
        {"aux_logits": True, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    )
    if name.startswith(("deeplab", "lraspp")):
        options = {"weights": None, "weights_backbone": None}
    net: torch.nn.Module = place(**options)
    return net.eval()


def main() -> None:
    name = sys.argv[1]
    try:
        net = network(name)
    except AttributeError:
        print(json.dumps({"failed": "not in torchvision"}))
        return
    import torch_pruning

    side = _SIZES.get(name, 224)
    x = torch.randn(1, 3, side, side)
    heads = [m for m in net.modules() if isinstance(m, torch.nn.Linear) and m.out_features == 1000]
    heads += [m for m in net.modules() if isinstance(m, torch.nn.Conv2d) and m.out_channels == 21]
    try:
        begun = time.perf_counter()
        pruner = torch_pruning.pruner.MagnitudePruner(
            net, x, importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5, ignored_layers=heads, round_to=8,
        )  # fmt: skip
        pruner.step()
        took = time.perf_counter() - begun
        with torch.no_grad():
            net(x)
    except Exception as error:  # whatever a peer may raise is a line of the table
        print(json.dumps({"failed": f"{type(error).__name__}: {error}"}))
        return
    print(json.dumps({"seconds": took}))


if __name__ == "__main__":
    main()
