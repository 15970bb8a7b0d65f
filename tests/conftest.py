"""Small graphs that several tests build on, and the team's data folder where it is."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.models.model import Model, to_bytes
from edgekit.models.source import load
from edgekit.values import Array

ROOT = Path(__file__).resolve().parent.parent

# Before anything imports torch. The networks of the tests are small: a second thread gains nothing,
# and where another run is beside this one, the two wait for each other's threads at every step.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """Ctrl-C works in the tests, and in what they start, even where a shell began them with `&`."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def own_data_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What edgekit keeps for its user (history, noise floors) is a test run's own."""
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("user-data"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    folder = Path(os.environ.get("EDGEKIT_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the data folder {folder} is not here (set EDGEKIT_DATA)")
    return folder


def residual_graph(seed: int = 0, *, channels: int = 16, opset: int = 17) -> onnx.ModelProto:
    """Conv-BN-Relu, a residual block, a 1x1 shortcut, a concatenation, pooling and a Gemm."""
    rng = np.random.default_rng(seed)
    c = channels
    initializers: list[onnx.TensorProto] = []
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, array: Array) -> str:
        initializers.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def conv_bn(name: str, source: str, shape: tuple[int, int, int, int]) -> str:
        fan_in = int(np.prod(shape[1:]))
        weight = constant(f"{name}.weight", rng.normal(0, fan_in**-0.5, shape))
        pad = shape[2] // 2
        nodes.append(
            helper.make_node(
                "Conv", [source, weight], [f"{name}.conv"], name=name, pads=[pad] * 4,
                kernel_shape=shape[2:],
            )
        )  # fmt: skip
        norms = [
            constant(f"{name}.bn.weight", rng.uniform(0.5, 1.5, shape[0])),
            constant(f"{name}.bn.bias", rng.normal(0, 0.2, shape[0])),
            constant(f"{name}.bn.mean", rng.normal(0, 0.2, shape[0])),
            constant(f"{name}.bn.var", rng.uniform(0.5, 1.5, shape[0])),
        ]
        nodes.append(
            helper.make_node(
                "BatchNormalization", [f"{name}.conv", *norms], [f"{name}.out"], name=f"{name}.bn"
            )
        )
        return f"{name}.out"

    def simple(op: str, sources: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, sources, [output], name=output, **attributes))
        return output

    stem = simple("Relu", [conv_bn("stem", "image", (c, 3, 3, 3))], "stem.relu")
    inner = simple("Relu", [conv_bn("first", stem, (c, c, 3, 3))], "first.relu")
    total = simple("Add", [conv_bn("second", inner, (c, c, 3, 3)), stem], "sum")
    total = simple("Relu", [total], "sum.relu")
    left = simple("Relu", [conv_bn("left", total, (c, c, 1, 1))], "left.relu")
    right = simple("Relu", [conv_bn("right", total, (c, c, 3, 3))], "right.relu")
    both = simple("Concat", [left, right], "both", axis=1)
    pooled = simple("GlobalAveragePool", [both], "pooled")
    flat = simple("Flatten", [pooled], "flat")
    simple(
        "Gemm",
        [
            flat,
            constant("fc.weight", rng.normal(0, 0.3, (5, 2 * c))),
            constant("fc.bias", np.zeros(5)),
        ],
        "logits",
        transB=1,
    )
    graph = helper.make_graph(
        nodes,
        "residual",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5])],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


RESIDUAL_RECIPE = """
[model]
path = "residual.onnx"
[data]
calibration = "calibration.npz"
evaluation = "evaluation.npz"
"""
"""How a recipe for `residual_path` begins, with what `write_samples` writes beside it."""


def write_samples(folder: Path, calibration: int, labels: Array) -> None:
    """Seeded images of the residual network: to calibrate with, and one more for each label."""
    count = calibration + len(labels)
    images = np.random.default_rng(3).normal(size=(count, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "calibration.npz", image=images[:calibration])
    np.savez(folder / "evaluation.npz", image=images[calibration:], labels=labels)


@pytest.fixture
def residual_path(tmp_path: Path) -> Path:
    path = tmp_path / "residual.onnx"
    onnx.save(residual_graph(), path)
    return path


@pytest.fixture
def residual(residual_path: Path) -> Model:
    return load(residual_path)


@pytest.fixture(scope="session")
def images() -> Array:
    """(32, 3, 8, 8) float32 from a fixed seed."""
    return np.random.default_rng(7).normal(size=(32, 3, 8, 8)).astype(np.float32)


def run_reference(model: Model, feeds: dict[str, Array], *, optimise: bool = False) -> list[Array]:
    """The outputs by plain onnxruntime, none of edgekit's engine code between."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        to_bytes(model), options, providers=["CPUExecutionProvider"]
    )
    found: list[Array] = session.run(None, feeds)
    return found


@pytest.fixture
def reference() -> Callable[..., list[Array]]:
    return run_reference
