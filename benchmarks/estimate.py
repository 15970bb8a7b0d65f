"""The roofline's estimate against ONNX Runtime on this machine's CPU, over well-known networks.

    python benchmarks/estimate.py GRAPHS [--threads 1] [--seconds 0.6] [--rounds 3] [--only NAME]

GRAPHS is a folder of hollow ONNX graphs with `fill.py`, which gives them seeded weights. Every
network is measured in turn, round after round, so that a machine that slows down slows all; a
network's figure is the median of its runs. Printed for the plain roofline, for the shares that
edgekit ships, and for shares fitted here to some of the networks and tried on the others:
Spearman's rank correlation of estimate and measurement, and the median and the largest of
|estimate / measured - 1|.

The shipped shares were fitted to the first half alone (the networks at even places of the sorted
list), so only the second half's figures say what an unseen network would get.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from graphs import filler

from edgekit.engines.device_rates import CPU_EFFICIENCY
from edgekit.engines.peak import cpu_rates
from edgekit.models.cost.roofline import AT_BEST, KINDS, Efficiency, KernelTime, Rates, estimate
from edgekit.models.cost.sizes import forms
from edgekit.models.simplify import clean
from edgekit.models.source import load
from edgekit.values import Array, Unknown

FAMILIES = {
    "plain": ("alexnet", "vgg", "squeezenet"),
    "residual": ("resnet", "resnext", "res2net", "skresnet", "gernet", "regnet"),
    "mobile": ("mobilenet", "mnasnet", "fbnet", "lcnet", "ghostnet", "shufflenet", "mixnet",
               "efficientnet", "rexnet", "deeplabv3_mobilenet", "lraspp_mobilenet"),
    "darknet": ("cspdarknet", "darknet"),
    "branched": ("densenet", "googlenet", "inception", "xception", "selecsls", "ese_vovnet", "dla",
                 "hrnet"),
    "reparametrised": ("repvgg", "mobileone"),
    "attention": ("vit", "mobilevit", "convnext"),
}  # fmt: skip
FITTED = ("dense", "pointwise", "grouped", "depthwise", "gemm", "memory", "start_s")


@dataclass(frozen=True, kw_only=True)
class Network:
    """One network: what its kernels need at least, and how long it took."""

    name: str
    arithmetic_s: Array
    bytes_s: Array
    kinds: Array
    measured_s: float

    def estimated(self, efficiency: Efficiency) -> float:
        shares = np.array([efficiency.of(kind) for kind in KINDS])
        busy = np.maximum(self.arithmetic_s / shares[self.kinds], self.bytes_s / efficiency.memory)
        return float(busy.sum() + efficiency.start_s * len(busy))


def family_of(name: str) -> str:
    matches = [
        (len(prefix), family)
        for family, prefixes in FAMILIES.items()
        for prefix in prefixes
        if name.startswith(prefix)
    ]
    return max(matches)[1]


def session_of(path: Path, threads: int) -> Callable[[], None]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )  # fmt: skip
    taken = session.get_inputs()[0]
    picture = np.random.default_rng(0).normal(size=taken.shape).astype(np.float32)
    return lambda: session.run(None, {taken.name: picture})


def timed(run: Callable[[], None], seconds: float) -> list[float]:
    run()
    samples: list[float] = []
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(samples) < 3:
        begun = time.perf_counter()
        run()
        samples.append(time.perf_counter() - begun)
    return samples


def kernels_of(path: Path, rates: Rates) -> tuple[KernelTime, ...]:
    model = clean(load(path))
    found = estimate(model, forms(model), rates, precision="fp32")
    assert not found.unknown, found.unknown
    return found.kernels


def networks(options: argparse.Namespace, rates: Rates) -> list[Network]:
    fill = filler(options.graphs)
    paths = [
        path
        for path in sorted(options.graphs.glob("*.onnx"))
        if not options.only or path.stem in options.only
    ]
    runs: dict[str, Callable[[], None]] = {}
    kernels: dict[str, tuple[KernelTime, ...]] = {}
    samples: dict[str, list[float]] = {path.stem: [] for path in paths}
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            full = Path(folder, path.name)
            fill.fill(path, full)
            kernels[path.stem] = kernels_of(full, rates)
            runs[path.stem] = session_of(full, options.threads)
    for _ in range(options.rounds):
        for name, run in runs.items():
            samples[name] += timed(run, options.seconds)
    return [
        Network(
            name=name,
            arithmetic_s=np.array([k.arithmetic_s for k in kernels[name]]),
            bytes_s=np.array([k.bytes_s for k in kernels[name]]),
            kinds=np.array([KINDS.index(k.kind) for k in kernels[name]]),
            measured_s=float(np.median(samples[name])),
        )
        for name in runs
    ]


def fitted(sample: Sequence[Network]) -> Efficiency:
    """The shares of least mean |log(estimate / measured)|, by a search along each in turn."""
    logs = {name: np.log(0.5) for name in FITTED} | {"start_s": np.log(5e-6)}
    measured = np.log([network.measured_s for network in sample])

    def made(chosen: dict[str, float]) -> Efficiency:
        return Efficiency(**{name: float(np.exp(value)) for name, value in chosen.items()})

    def loss(chosen: dict[str, float]) -> float:
        efficiency = made(chosen)
        errors = np.log([n.estimated(efficiency) for n in sample]) - measured
        # A weak pull to a half keeps a class that the sample hardly has from running away.
        pull = sum((chosen[name] - np.log(0.5)) ** 2 for name in FITTED[:-1])
        return float(np.abs(errors).mean() + 1e-3 * pull)

    best = loss(logs)
    step = 0.8
    while step > 0.01:
        moved = False
        for name in FITTED:
            for change in (step, -step):
                tried = {**logs, name: logs[name] + change}
                if (found := loss(tried)) < best - 1e-9:
                    logs, best, moved = tried, found, True
        step = step if moved else step / 2
    return made(logs)


def ranks(values: Array) -> Array:
    """The ranks from 0, equal values sharing the mean of theirs."""
    return np.array([(values < v).sum() + ((values == v).sum() - 1) / 2 for v in values])


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    a, b = ranks(np.array(first)), ranks(np.array(second))
    return float(np.corrcoef(a, b)[0, 1])


def report(title: str, sample: Sequence[Network], estimates: Sequence[float]) -> None:
    measured = [network.measured_s for network in sample]
    errors = [abs(e / m - 1) for e, m in zip(estimates, measured, strict=True)]
    print(
        f"{title:62} {len(sample):4d} {spearman(estimates, measured):8.3f} "
        f"{100 * float(np.median(errors)):8.1f}% {100 * max(errors):8.1f}%"
    )


def held_out(
    sample: Sequence[Network], folds: Sequence[Sequence[Network]]
) -> dict[str, float]:  # fmt: skip
    """For each network the estimate by shares that were fitted without its fold."""
    found = {}
    for fold in folds:
        inside = {network.name for network in fold}
        shares = fitted([network for network in sample if network.name not in inside])
        found |= {network.name: network.estimated(shares) for network in fold}
    return found


def main() -> None:
    parser: Any = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("graphs", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=0.6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    machine = cpu_rates(threads=options.threads)
    if isinstance(machine.fp32_ops_per_s, Unknown):
        sys.exit(str(machine.fp32_ops_per_s))
    rates = Rates(
        peak={"fp32": machine.fp32_ops_per_s},
        bandwidth_bytes_per_s=machine.bandwidth_bytes_per_s,
        runtime="onnxruntime",
        efficiency=AT_BEST,
        said=machine.said,
        efficiency_said="",
    )
    for line in machine.said:
        print(line)
    if hasattr(os, "getloadavg"):
        print(f"load before the start: {os.getloadavg()[0]:.1f}; above 0 others share the machine")
    found = networks(options, rates)
    names = {network.name: network for network in found}
    halves = found[::2], found[1::2]
    by_half = held_out(found, halves)
    families = sorted({family_of(name) for name in names})
    by_family = held_out(found, [[n for n in found if family_of(n.name) == f] for f in families])

    print(f"\n{'network':32} {'measured':>10} {'at least':>10} {'estimate':>10} {'unseen':>10}  ms")
    for network in found:
        figures = (
            network.measured_s, network.estimated(AT_BEST), network.estimated(CPU_EFFICIENCY),
            by_half[network.name],
        )  # fmt: skip
        print(f"{network.name:32} " + " ".join(f"{1e3 * figure:10.2f}" for figure in figures))
    print(f"\n{'':62} {'n':>4} {'Spearman':>8} {'median':>9} {'worst':>9}")
    report("plain roofline", found, [n.estimated(AT_BEST) for n in found])
    report("shipped shares", found, [n.estimated(CPU_EFFICIENCY) for n in found])
    for title, sample in (("first half (they were fitted to it)", halves[0]),
                          ("second half (unseen)", halves[1])):  # fmt: skip
        shipped = [n.estimated(CPU_EFFICIENCY) for n in sample]
        report(f"shipped shares, {title}", sample, shipped)
    for index, sample in enumerate(halves):
        title = f"fitted to half {2 - index}, tried on half {index + 1}"
        report(title, sample, [by_half[n.name] for n in sample])
    report("each family by shares fitted to the others", found, [by_family[n.name] for n in found])
    shares = fitted(halves[0])
    print("\nfitted to the first half here:")
    print("  " + ", ".join(f"{name} {getattr(shares, name):.3g}" for name in FITTED))


if __name__ == "__main__":
    main()
