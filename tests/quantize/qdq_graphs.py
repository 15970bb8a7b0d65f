"""Small graphs with Q/DQ for tests: one line an operator, each constant an initializer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekit.models.model import Model
from edgekit.models.source import load
from edgekit.values import Array


class Sketch:
    """A graph that grows by one operator at a time; every method returns an output's name."""

    def __init__(self, *, opset: int = 17, seed: int = 0) -> None:
        self.opset = opset
        self._nodes: list[onnx.NodeProto] = []
        self._stored: list[onnx.TensorProto] = []
        self._rng = np.random.default_rng(seed)

    def constant(self, array: object, dtype: str = "float32") -> str:
        name = f"c{len(self._stored)}"
        self._stored.append(numpy_helper.from_array(np.asarray(array, dtype), name))
        return name

    def noise(self, *shape: int) -> Array:
        found: Array = self._rng.normal(0, 0.3, shape).astype(np.float32)
        return found

    def op(self, kind: str, *inputs: str, name: str = "", outputs: int = 1, **given: object) -> str:
        name = name or f"{kind.lower()}{len(self._nodes)}"
        made = [f"{name}.out", *(f"{name}.out{i}" for i in range(1, outputs))]
        self._nodes.append(helper.make_node(kind, list(inputs), made, name=name, **given))
        return made[0]

    def conv(self, x: str, shape: tuple[int, ...], *, bias: bool = True, name: str = "",
             **given: object) -> str:  # fmt: skip
        """A float convolution of seeded weights, padded to keep its size."""
        weight = self.constant(self.noise(*shape))
        biases = [self.constant(self.noise(shape[0]))] if bias else []
        given.setdefault("pads", [shape[2] // 2] * 4)
        return self.op("Conv", x, weight, *biases, name=name, **given)

    def pair(self, x: str, scale: object = 0.1, zero: object = 0, dtype: str = "int8",
             **given: object) -> str:  # fmt: skip
        """x behind QuantizeLinear and DequantizeLinear."""
        s, z = self.constant(scale), self.constant(zero, dtype)
        down = self.op("QuantizeLinear", x, s, z, **given)
        return self.op("DequantizeLinear", down, s, z, **given)

    def weight(self, shape: tuple[int, ...], axis: int = 0, dtype: str = "int8",
               most: int = 127) -> str:  # fmt: skip
        """A stored weight behind a DequantizeLinear, with one scale for each channel."""
        zero = 128 if dtype == "uint8" else 0
        integers = self._rng.integers(-most, most + 1, shape) + zero
        scales = np.full(shape[axis], 0.01)
        return self.op(
            "DequantizeLinear", self.constant(integers, dtype), self.constant(scales),
            self.constant(np.full(shape[axis], zero), dtype), axis=axis,
        )  # fmt: skip

    def model(
        self, folder: Path, outputs: list[str], shape: tuple[object, ...] = (1, 16, 8, 8),
        inputs: tuple[str, ...] = ("x",),
    ) -> Model:  # fmt: skip
        """The Model, through a file, with its shapes inferred."""
        graph = helper.make_graph(
            self._nodes,
            "sketch",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in inputs],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self._stored,
        )
        proto = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=9
        )
        path = folder / "sketch.onnx"
        onnx.save(onnx.shape_inference.infer_shapes(proto), path)
        return load(path)
