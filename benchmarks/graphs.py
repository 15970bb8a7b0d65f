"""The executor over well-known networks: against ONNX Runtime, one training step, the round trip.

    python benchmarks/graphs.py GRAPHS [--more FOLDER] [--only NAME ...]

GRAPHS is a folder of hollow ONNX graphs with `fill.py`, which gives them seeded weights; `--more`
is searched for further .onnx files, which are taken as they are (the PyPI package
`rapidocr-onnxruntime`, unpacked, holds three trained networks). For each: the largest error of any
output, relative to its largest value; how many of the trained tensors one step of Adam changed; and
whether a load and a save gave the file back.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "models"))
from same_model import assert_same_model

from edgekit.models.model import Model, save
from edgekit.models.simplify import clean
from edgekit.models.source import load
from edgekit.models.torch_module import torch_module, write_back
from edgekit.values import Array


def filler(folder: Path) -> Any:
    """The module `fill.py` of the graphs' folder."""
    spec = importlib.util.spec_from_file_location("fill", folder / "fill.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def feeds_of(model: Model) -> dict[str, Array]:
    """Made-up inputs; a dynamic size is 1 for the batch and 320 by 64 for a picture."""
    rng = np.random.default_rng(0)
    feeds = {}
    for spec in model.inputs:
        shape = [
            size if isinstance(size, int) else (1 if axis == 0 else 64 if axis == 2 else 320)
            for axis, size in enumerate(spec.shape)
        ]
        picture = rng.normal(size=shape)
        if len(shape) == 4:  # lines of strokes on a page: a text detector finds something
            rows = np.arange(shape[2]) % 32 < 16
            strokes = rows[:, None] & (rng.random((1, shape[3])) < 0.5)
            picture = np.where(strokes, -1.5, 1.5) + 0.1 * picture
        feeds[spec.name] = picture.astype(spec.dtype)
    return feeds


def relative_error(found: Array, expected: Array) -> float:
    top = float(np.abs(expected).max(initial=0.0)) or 1.0
    return float(np.abs(found.astype(np.float64) - expected).max(initial=0.0)) / top


def by_onnxruntime(path: Path, feeds: dict[str, Array]) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options)
    found: list[Array] = session.run(None, feeds)
    return found


def trained_by_a_step(model: Model, feeds: dict[str, Array]) -> tuple[int, int]:
    """How many trained tensors there are, and how many of them changed in the Model."""
    module = torch_module(model)
    # Two of each where the batch is free. BatchNormalization over one value has no variance, so
    # a graph of one sample is trained with the statistics that it has.
    free = all(not isinstance(spec.shape[0], int) for spec in model.inputs)
    module.train(free)
    parameters = list(module.parameters())
    optimizer = torch.optim.Adam(parameters, lr=1e-3, eps=1e-30)
    samples = [np.concatenate([x, -x]) if free else x for x in feeds.values()]
    outputs = module(*map(torch.from_numpy, samples))
    loss = sum(y.square().mean() for y in outputs if y.is_floating_point())
    assert torch.is_tensor(loss)
    loss.backward()
    optimizer.step()
    after = write_back(module, model, "step")
    changed = 0
    names = {id(p): n for n, p in module.parameters_by_name().items()}
    for parameter in parameters:
        name = names[id(parameter)]
        before = model.graph.initializers[name].const_value
        now = after.graph.initializers[name].const_value
        assert before is not None
        assert now is not None
        changed += not np.array_equal(before.numpy(), now.numpy())
    return len(parameters), changed


def differs(before: onnx.ModelProto, after: onnx.ModelProto) -> str:
    """What a file lost or gained, shapes and edgekit's own notes apart; empty for nothing."""
    try:
        assert_same_model(before, after)
    except AssertionError as error:
        return str(error)
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("graphs", type=Path)
    parser.add_argument("--more", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    options = parser.parse_args()
    fill = filler(options.graphs)
    paths = sorted(options.graphs.glob("*.onnx"))
    paths += sorted(options.more.rglob("*.onnx")) if options.more else []
    worst, failures = 0.0, 0
    print(f"{'network':42} {'error':>9} {'trained':>9} {'changed':>9}  round trip  seconds")
    for path in paths:
        if options.only and path.stem not in options.only:
            continue
        begun = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            full = path
            if path.parent == options.graphs:
                full = Path(folder, path.name)
                fill.fill(path, full)
            loaded = load(full)
            model = clean(loaded)
            feeds = feeds_of(model)
            expected = by_onnxruntime(full, feeds)
            with torch.no_grad():
                found = torch_module(model)(*[torch.from_numpy(x) for x in feeds.values()])
            error = max(
                relative_error(one.numpy(), other)
                for one, other in zip(found, expected, strict=True)
            )
            trained, changed = trained_by_a_step(model, feeds)
            save(loaded, Path(folder, "again.onnx"))
            difference = differs(onnx.load(full), onnx.load(Path(folder, "again.onnx")))
        worst = max(worst, error)
        failures += error >= 1e-4 or changed == 0 or bool(difference)
        print(
            f"{path.stem[:42]:42} {error:9.1e} {trained:9d} {changed:9d}  "
            f"{difference or 'lossless':10}  {time.perf_counter() - begun:6.1f}",
            flush=True,
        )
    print(f"worst relative error {worst:.1e}; networks that miss a mark: {failures}")
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
