"""Well-known networks at older opsets: ours beside onnx's own version converter.

    python benchmarks/opsets.py GRAPHS [--targets 17 16 13] [--only NAME ...]

GRAPHS is a folder of hollow ONNX graphs with `fill.py`, which gives them seeded weights. Each is
lowered to each target, checked by `onnx.checker`, and run in ONNX Runtime beside the original, both
without graph optimisations: the figure is max|a - b| / max|b| over the outputs. For onnx's
converter the column says only whether it returns a graph, and whether the checker takes it.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import version_converter

from edgekit.errors import InputError
from edgekit.models.model import Model, to_bytes
from edgekit.models.opset import lowered
from edgekit.models.source import load
from edgekit.values import Array

TOLERANCE = 1e-4


def filler(folder: Path) -> Any:
    """The module `fill.py` of the graphs' folder."""
    spec = importlib.util.spec_from_file_location("fill", folder / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def filled(fill: Any, path: Path) -> Model:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, path.name)
        fill.fill(path, target)
        return load(target)


def outputs_of(content: bytes, feeds: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, feeds)
    return found


def relative_error(found: Array, expected: Array) -> float:
    top = float(np.abs(expected).max(initial=0.0)) or 1.0
    return float(np.abs(found.astype(np.float64) - expected).max(initial=0.0)) / top


def ours(model: Model, opset: int, feeds: dict[str, Array], expected: list[Array]) -> float | str:
    """The largest relative error at the opset, or why it is not reached."""
    try:
        content = to_bytes(lowered(model, opset))
        onnx.checker.check_model(onnx.load_model_from_string(content))
    except InputError as error:
        return error.what
    except onnx.checker.ValidationError as error:
        return f"checker: {error}"
    found = outputs_of(content, feeds)
    return max(relative_error(a, b) for a, b in zip(found, expected, strict=True))


def theirs(hollow: Path, opset: int) -> str:
    """What onnx's converter makes of the graph: yes, no, or a graph that breaks ONNX's rules."""
    proto = onnx.load(hollow, load_external_data=False)
    for tensor in proto.graph.initializer:  # its weights lie in no file: the checker asks for them
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.DEFAULT
            tensor.raw_data = bytes(4 * int(np.prod(tensor.dims)))
    try:
        found = version_converter.convert_version(proto, opset)
    except (RuntimeError, ValueError):
        return "no"
    try:
        onnx.checker.check_model(found)
    except onnx.checker.ValidationError:
        return "invalid"
    return "yes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("graphs", type=Path)
    parser.add_argument("--targets", type=int, nargs="*", default=[17, 16, 13])
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    fill = filler(options.graphs)
    reached = {target: [0, 0, 0] for target in options.targets}
    count, failures = 0, 0
    heads = "".join(f"{f'to {target}':>9} onnx's  " for target in options.targets)
    print(f"{'network':34} {'from':>4}{heads}")
    for path in sorted(options.graphs.glob("*.onnx")):
        if options.only and path.stem not in options.only:
            continue
        model = filled(fill, path)
        rng = np.random.default_rng(0)
        feeds = {s.name: rng.normal(size=s.shape).astype(s.dtype) for s in model.inputs}
        expected = outputs_of(to_bytes(model), feeds)
        cells, reasons = "", []
        for target in options.targets:
            error, other = ours(model, target, feeds, expected), theirs(path, target)
            good = isinstance(error, float) and error < TOLERANCE
            reached[target][0] += good
            reached[target][1] += other != "no"
            reached[target][2] += other == "yes"
            failures += not good
            cells += f"{error:9.1e} " if isinstance(error, float) else "  refused "
            cells += f"{other:8}"
            reasons += [f"    {target}: {error}"] if isinstance(error, str) else []
        count += 1
        print("\n".join([f"{path.stem[:34]:34} {model.opset:4d}{cells}", *reasons]), flush=True)
    for target, (mine, other, valid) in reached.items():
        print(
            f"opset {target}: ours {mine} of {count}; onnx's converter {other}, of which the "
            f"checker takes {valid}"
        )
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
