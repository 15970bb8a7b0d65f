"""Time and memory of loading and saving a large model, beside onnx's own reader and checker.

python benchmarks/loading.py [--megabytes 100] [--runs 5] [--folder FOLDER]

The model is a chain of convolutions with random weights, as one file and as two. Every figure is
of a fresh process, which has imported everything and loaded a small model first. "Private" is the
growth of the memory that is the process's own; "mapped" of pages of the file that the system may
take back; "peak" is the most of both that there was on the way. The files are in the page cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS = 256
WAYS = ("edgekit load", "edgekit load, save", "onnx.load", "onnx.load, check, infer")


def chain(megabytes: float) -> onnx.ModelProto:
    """Convolutions of 3 x 3 with CHANNELS channels, each with BatchNormalization and Relu."""
    rng = np.random.default_rng(0)
    layers = max(1, round(megabytes * 1e6 / (CHANNELS**2 * 9 * 4)))
    nodes, tensors, last = [], [], "x"
    for i in range(layers):
        shape = (CHANNELS, CHANNELS, 3, 3)
        kernel = rng.normal(0, 0.02, shape).astype(np.float32)
        tensors.append(numpy_helper.from_array(kernel, f"{i}.weight"))
        norms = [f"{i}.{name}" for name in ("gamma", "beta", "mean", "var")]
        tensors += [numpy_helper.from_array(np.ones(CHANNELS, np.float32), n) for n in norms]
        nodes += [
            helper.make_node("Conv", [last, f"{i}.weight"], [f"{i}.c"], name=f"{i}", pads=[1] * 4),
            helper.make_node("BatchNormalization", [f"{i}.c", *norms], [f"{i}.n"], name=f"{i}.bn"),
            helper.make_node("Relu", [f"{i}.n"], [f"{i}.r"], name=f"{i}.relu"),
        ]
        last = f"{i}.r"
    image = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", CHANNELS, 14, 14])]
    output = [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["n", CHANNELS, 14, 14])]
    graph = helper.make_graph(nodes, "chain", image, output, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def memory_mb() -> dict[str, float]:
    """The memory of this process: its own, that of mapped files, and the most of both."""
    rows = Path("/proc/self/status").read_text().splitlines()
    found = {name: int(text.split()[0]) / 1e3 for name, text in (r.split(":") for r in rows)
             if name in ("RssAnon", "RssFile", "VmHWM")}  # fmt: skip
    return {"private": found["RssAnon"], "mapped": found["RssFile"], "peak": found["VmHWM"]}


def way(name: str, again: Path) -> Callable[[Path], object]:
    """What is measured, by its name."""
    from edgekit.models import model
    from edgekit.models.onnx_file import read as onnx_file

    def both(path: Path) -> object:
        found = onnx_file.load(path)
        model.save(found, again)
        return found

    def checked(path: Path) -> object:
        onnx.checker.check_model(str(path), full_check=False)
        loaded = onnx.load(path)
        return loaded, onnx.shape_inference.infer_shapes(loaded, strict_mode=True, data_prop=True)

    ways = (onnx_file.load, both, onnx.load, checked)
    return dict(zip(WAYS, ways, strict=True))[name]


def measure(name: str, path: Path, folder: Path) -> dict[str, float]:
    """One way, once, in this process."""
    small = folder / "small.onnx"
    act = way(name, folder / "again.onnx")
    act(small)
    before = memory_mb()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins here
    begun = time.perf_counter()
    kept = act(path)
    seconds = time.perf_counter() - begun
    after = memory_mb()
    del kept
    held = before["private"] + before["mapped"]
    return {
        "seconds": seconds,
        "private": after["private"] - before["private"],
        "mapped": after["mapped"] - before["mapped"],
        "peak": after["peak"] - held,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files are made")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        name, path = options.one[0], Path(options.one[1])
        print(json.dumps(measure(name, path, path.parent)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as text:
        folder = Path(text)
        onnx.save(chain(1), folder / "small.onnx")
        one, two = folder / "one.onnx", folder / "two.onnx"
        proto = chain(options.megabytes)
        onnx.save(proto, one)
        onnx.save(proto, two, save_as_external_data=True, location="two.bin")
        print(f"{one.stat().st_size / 1e6:.0f} MB, {len(proto.graph.node)} nodes; MB and seconds, "
              f"medians of {options.runs}")  # fmt: skip
        print(f"{'':36} {'seconds':>9} {'private':>9} {'mapped':>9} {'peak':>9}")
        del proto
        taken: dict[tuple[str, Path], list[dict[str, float]]] = {}
        for _ in range(options.runs):  # one after the other, so that all see the same machine
            for name in WAYS:
                for path in (one, two):
                    command = [sys.executable, __file__, "--one", name, str(path)]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    taken.setdefault((name, path), []).append(json.loads(done.stdout))
        for (name, path), found in taken.items():
            kind = "one file" if path == one else "external"
            row = {key: statistics.median(run[key] for run in found) for key in found[0]}
            print(f"{name + ', ' + kind:36} {row['seconds']:9.3f} {row['private']:9.1f} "
                  f"{row['mapped']:9.1f} {row['peak']:9.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
