"""Costs by hand arithmetic."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from edgekit.errors import InputError
from edgekit.models.cost import node_costs, total_cost
from edgekit.models.model import Model, editable
from edgekit.models.source import load


def test_macs_of_the_residual_network_by_hand(residual: Model) -> None:
    c, space = 16, 8 * 8
    convolutions = space * (3 * 9 * c + 9 * c * c + 9 * c * c + c * c + 9 * c * c)
    assert total_cost(residual).macs == convolutions + 2 * c * 5
    assert total_cost(residual, batch=4).macs == 4 * total_cost(residual).macs


def test_parameters_by_hand(residual: Model) -> None:
    c = 16
    kernels = 3 * 9 * c + 9 * c * c + 9 * c * c + c * c + 9 * c * c
    assert total_cost(residual).parameters == kernels + 5 * 4 * c + 2 * c * 5 + 5
    assert total_cost(residual).weight_bytes == 4 * total_cost(residual).parameters


def test_activation_bytes_are_those_of_each_output(residual: Model) -> None:
    by_node = {cost.node: cost for cost in node_costs(residual)}
    assert by_node["stem"].activation_bytes == 16 * 64 * 4
    assert by_node["stem"].macs == 64 * 16 * 27
    assert by_node["sum"].macs == 0


def test_torch_counts_the_same_parameters(residual_path: Path) -> None:
    model = load(residual_path)
    elements = sum(
        onnx.numpy_helper.to_array(t).size for t in onnx.load(residual_path).graph.initializer
    )
    assert total_cost(model).parameters == elements


def test_an_unknown_shape_is_named(residual: Model) -> None:
    program = editable(residual)
    node = next(n for n in program.graph if n.name == "first")
    node.outputs[0].shape = None
    model = Model(name="x", program=program)
    with pytest.raises(InputError, match=r'shape of "first\.conv" is not known'):
        total_cost(model)
