"""Torch-Pruning's magnitude cut of ResNet-20, for the same weights and the same MACs.

    python benchmarks/peer_resnet20.py WEIGHTS.npz OUT.npz SHARE

For a virtual environment of its own with torch and torch-pruning. WEIGHTS has every parameter and
statistic under its name; OUT has those of the cut network. Its option-A shortcuts pad the channel
axis, through which the peer's tracing does not follow a cut: only the inner channels of each block
are offered to it. Each group loses the same share, its default, in steps until the MACs are at most
a hundredth above SHARE.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
import torch_pruning
from torch import nn
from torch.nn import functional

STEPS = 100
NEAR = 0.01


class Block(nn.Module):
    """Two convolutions and a shortcut that slices in space and pads the channels."""

    def __init__(self, into: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(into, out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out)
        self.stride, self.wider = stride, (out - into) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            wider = self.wider
            x = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, wider, wider))
        return functional.relu(y + x)


class ResNet20(nn.Module):
    """He et al. 2016, section 4.2, with n = 3."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        for stage in (1, 2, 3):
            blocks = [
                Block(widths[stage - 1] if k == 0 else widths[stage], widths[stage],
                      2 if k == 0 and stage > 1 else 1)
                for k in range(3)
            ]  # fmt: skip
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def main() -> None:
    weights, out, share = sys.argv[1], sys.argv[2], float(sys.argv[3])
    net = ResNet20().eval()
    with np.load(weights) as stored:
        # An exporter's zero biases (val_6) are no parameters of the module.
        known = net.state_dict().keys() & set(stored.files)
        state = {name: torch.from_numpy(stored[name]) for name in known}
    missing = net.load_state_dict(state, strict=False).missing_keys
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    x = torch.randn(1, 3, 32, 32)
    outer = [net.conv1, net.linear] + [b.conv2 for b in net.modules() if isinstance(b, Block)]
    pruner = torch_pruning.pruner.MagnitudePruner(
        net, x, importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=0.9, iterative_steps=STEPS, ignored_layers=outer,
    )  # fmt: skip
    whole = torch_pruning.utils.count_ops_and_params(net, x)[0]
    left = whole
    for _ in range(STEPS):
        if left <= (share + NEAR) * whole:
            break
        pruner.step()
        left = torch_pruning.utils.count_ops_and_params(net, x)[0]
    assert left <= (share + NEAR) * whole, f"only {left / whole:.3f} was reached"
    np.savez(out, **{k: v.numpy() for k, v in net.state_dict().items() if v.ndim})
    print(
        f"{left / whole:.3f}", [b.conv1.out_channels for b in net.modules() if isinstance(b, Block)]
    )


if __name__ == "__main__":
    main()
