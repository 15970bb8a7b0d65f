"""Importance criteria: those that look at the weights, and what all of them have in common."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.compress.channels.criteria import CRITERIA, DATA_CRITERIA, score_groups
from edgekit.compress.channels.groups import ChannelGroup, find_groups
from edgekit.errors import InputError
from edgekit.models.model import Model, after_step, editable, set_parameter
from edgekit.models.source import load
from edgekit.values import Array

WEIGHT_CRITERIA = sorted(set(CRITERIA) - DATA_CRITERIA)


def build(
    folder: Path, nodes: Sequence[onnx.NodeProto], constants: dict[str, Array],
    x: Sequence[object], y: Sequence[object],
) -> Model:  # fmt: skip
    """The Model of these nodes, from "x" to "y", of these shapes."""
    graph = helper.make_graph(
        list(nodes), "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, list(y))],
        [numpy_helper.from_array(np.asarray(a, np.float32), name) for name, a in constants.items()],
    )  # fmt: skip
    path = folder / "net.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
              path)  # fmt: skip
    return load(path)


def normed(folder: Path, weight: Array, gamma: Sequence[float], var: Sequence[float]) -> Model:
    """1x1 Conv a, BatchNormalization, Relu, 1x1 Conv b to two outputs."""
    units, inputs = weight.shape[:2]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]),
        helper.make_node(
            "BatchNormalization", ["h", "gamma", "zero", "zero", "var"], ["n"], epsilon=0.0
        ),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Conv", ["r", "b"], ["y"]),
    ]
    constants = {
        "a": weight, "gamma": np.array(gamma), "zero": np.zeros(units), "var": np.array(var),
        "b": np.ones((2, units, 1, 1)),
    }  # fmt: skip
    return build(folder, nodes, constants, ["n", inputs, 4, 4], ["n", 2, 4, 4])


def plain(folder: Path, weight: Array) -> Model:
    """1x1 Conv a, Relu, 1x1 Conv b to two outputs."""
    units, inputs = weight.shape[:2]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "b"], ["y"]),
    ]
    constants = {"a": weight, "b": np.ones((2, units, 1, 1))}
    return build(folder, nodes, constants, ["n", inputs, 4, 4], ["n", 2, 4, 4])


def two_layers(folder: Path, *, batch: object = "n", softmax: bool = False) -> Model:
    """Conv a, BatchNormalization, Relu, Conv b, Relu, pooling, Gemm: two groups, one without it."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "a", "a.bias"], ["h"], pads=[1] * 4),
        helper.make_node("BatchNormalization", ["h", "gamma", "beta", "mean", "var"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Conv", ["r", "b", "b.bias"], ["s"], pads=[1] * 4),
        helper.make_node("Relu", ["s"], ["t"]),
        helper.make_node("GlobalAveragePool", ["t"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "c", "c.bias"], ["z" if softmax else "y"], transB=1),
        *([helper.make_node("Softmax", ["z"], ["y"], axis=1)] if softmax else []),
    ]
    constants = {
        "a": rng.normal(0, 0.4, (6, 3, 3, 3)), "a.bias": rng.normal(0, 0.2, 6),
        "gamma": rng.uniform(0.5, 1.5, 6), "beta": rng.normal(0, 0.2, 6),
        "mean": rng.normal(0, 0.2, 6), "var": rng.uniform(0.5, 1.5, 6),
        "b": rng.normal(0, 0.3, (8, 6, 3, 3)), "b.bias": rng.normal(0, 0.2, 8),
        "c": rng.normal(0, 1.0, (5, 8)), "c.bias": rng.normal(0, 0.2, 5),
    }  # fmt: skip
    return build(folder, nodes, constants, [batch, 3, 8, 8], [batch, 5])


def groups_of(model: Model) -> tuple[ChannelGroup, ...]:
    return find_groups(model).groups


def relative(numbers: Sequence[float]) -> Array:
    return np.asarray(numbers) / np.mean(numbers)


FILTERS = np.array([[3.0, -4.0], [1.0, 0.0], [0.0, 2.0]]).reshape(3, 2, 1, 1)
GAMMA, VAR = [1.0, 4.0, -6.0], [4.0, 1.0, 9.0]  # gains 1/2, 4, -2


@pytest.mark.parametrize(
    ("name", "by_hand"),
    [("l1", [3.5, 4.0, 4.0]), ("l2", [2.5, 4.0, 4.0]), ("bn_scale", [1.0, 4.0, 6.0])],
)
def test_norms_are_of_the_kernel_with_batchnorm_folded_in(
    tmp_path: Path, name: str, by_hand: list[float]
) -> None:
    model = normed(tmp_path, FILTERS, GAMMA, VAR)
    (found,) = score_groups(name, model, groups_of(model))
    assert found == pytest.approx(relative(by_hand))


def test_every_weight_that_makes_a_unit_counts(tmp_path: Path) -> None:
    # Two branches meet in an addition: their channels go together.
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]),
        helper.make_node("Conv", ["x", "b"], ["i"]),
        helper.make_node("Add", ["h", "i"], ["s"]),
        helper.make_node("Conv", ["s", "c"], ["y"]),
    ]
    constants = {
        "a": np.array([[3.0, 0.0], [0.0, 0.0]]).reshape(2, 2, 1, 1),
        "b": np.array([[0.0, 4.0], [1.0, 0.0]]).reshape(2, 2, 1, 1),
        "c": np.ones((1, 2, 1, 1)),
    }
    model = build(tmp_path, nodes, constants, ["n", 2, 4, 4], ["n", 1, 4, 4])
    assert score_groups("l1", model, groups_of(model))[0] == pytest.approx(relative([7.0, 1.0]))
    assert score_groups("l2", model, groups_of(model))[0] == pytest.approx(relative([5.0, 1.0]))


def test_fpgm_ranks_the_filter_amid_the_others_last(tmp_path: Path) -> None:
    # Distances 5 from each to the middle one and 10 between the outer ones.
    weight = np.array([[0.0, 0.0], [3.0, 4.0], [6.0, 8.0]]).reshape(3, 2, 1, 1)
    model = plain(tmp_path, weight)
    (found,) = score_groups("fpgm", model, groups_of(model))
    assert found == pytest.approx(relative([15.0, 10.0, 15.0]))


def test_fpgm_takes_the_sign_of_batchnorm_along(tmp_path: Path) -> None:
    # Times 1/2, 4 and -2: (1.5, -2), (4, 0), (0, -4).
    model = normed(tmp_path, FILTERS, GAMMA, VAR)
    ab, ac, bc = np.hypot(2.5, 2.0), np.hypot(1.5, 2.0), np.hypot(4.0, 4.0)
    (found,) = score_groups("fpgm", model, groups_of(model))
    assert found == pytest.approx(relative([ab + ac, ab + bc, ac + bc]), rel=1e-6)


def test_fpgm_sees_no_distance_between_equal_filters(tmp_path: Path) -> None:
    one = np.random.default_rng(0).normal(0, 100, (1, 5, 1, 1)).astype(np.float32)
    model = plain(tmp_path, np.repeat(one, 4, axis=0))
    (found,) = score_groups("fpgm", model, groups_of(model))
    assert found.tolist() == [0.0] * 4


def test_fpgm_of_a_layer_by_brute_force(tmp_path: Path) -> None:
    weight = np.random.default_rng(1).normal(size=(7, 5, 1, 1)).astype(np.float32)
    model = plain(tmp_path, weight)
    rows = weight.reshape(7, -1).astype(np.float64)
    by_hand = [sum(np.linalg.norm(a - b) for b in rows) for a in rows]
    assert score_groups("fpgm", model, groups_of(model))[0] == pytest.approx(relative(by_hand))


def test_bn_scale_tells_which_groups_are_scored_otherwise(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = two_layers(tmp_path)
    groups = groups_of(model)
    assert [g.name for g in groups] == ["a", "b"]
    with caplog.at_level(logging.WARNING):
        found = score_groups("bn_scale", model, groups)
    assert "1 of 2 groups have no BatchNormalization and are scored by l2: b" in caplog.text
    assert found[1] == pytest.approx(score_groups("l2", model, groups)[1])


def test_bn_scale_without_any_batchnorm_is_refused(tmp_path: Path) -> None:
    model = plain(tmp_path, FILTERS)
    with pytest.raises(InputError, match="passes a BatchNormalization") as caught:
        score_groups("bn_scale", model, groups_of(model))
    assert "l2" in caught.value.hint


def test_random_is_the_same_for_a_seed_whatever_else_is_scored(tmp_path: Path) -> None:
    model = two_layers(tmp_path)
    groups = groups_of(model)
    first = score_groups("random", model, groups, seed=3)
    assert all(np.array_equal(a, b) for a, b in
               zip(first, score_groups("random", model, groups, seed=3), strict=True))  # fmt: skip
    assert np.array_equal(first[1], score_groups("random", model, groups[1:], seed=3)[0])
    assert not np.array_equal(first[0], score_groups("random", model, groups, seed=4)[0])
    assert len(np.unique(first[1])) == 8


@pytest.mark.parametrize("name", WEIGHT_CRITERIA)
def test_scores_are_relative_to_the_mean_of_their_group(tmp_path: Path, name: str) -> None:
    model = two_layers(tmp_path)
    for group, scores in zip(
        groups_of(model), score_groups(name, model, groups_of(model)), strict=True
    ):
        assert scores.shape == (group.units,)
        assert scores.dtype == np.float64
        assert scores.mean() == pytest.approx(1.0)
        assert (scores >= 0).all()


@pytest.mark.parametrize("name", WEIGHT_CRITERIA)
def test_a_layer_of_zeros_scores_zero_or_at_random(tmp_path: Path, name: str) -> None:
    model = normed(tmp_path, 0 * FILTERS, [0.0] * 3, VAR)
    (found,) = score_groups(name, model, groups_of(model))
    assert name == "random" or found.tolist() == [0.0] * 3


def test_an_unknown_criterion_is_refused_with_the_nearest(tmp_path: Path) -> None:
    model = plain(tmp_path, FILTERS)
    with pytest.raises(InputError, match='no criterion called "thinnet"') as caught:
        score_groups("thinnet", model, groups_of(model))
    assert caught.value.hint == 'Did you mean "thinet"?'


@pytest.mark.parametrize("name", sorted(DATA_CRITERIA))
def test_data_that_are_needed_are_asked_for(tmp_path: Path, name: str) -> None:
    model = plain(tmp_path, FILTERS)
    with pytest.raises(InputError, match="looks at samples, and there are none") as caught:
        score_groups(name, model, groups_of(model))
    assert "--data" in caught.value.hint


@pytest.mark.parametrize("name", sorted(CRITERIA))
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(
    tmp_path: Path, name: str, bad: float
) -> None:
    model = plain(tmp_path, FILTERS)
    program = editable(model)
    set_parameter(program.graph, "a", np.where(FILTERS == 1.0, bad, FILTERS).astype(np.float32))
    diverged = after_step(model, program, "train")
    with pytest.raises(InputError, match='weight "a" holds NaN or infinity'):
        score_groups(name, diverged, groups_of(model))


def test_criteria_of_weights_do_not_load_torch() -> None:
    code = (
        "import sys; import edgekit.compress.channels.criteria; "
        "sys.exit('torch' in sys.modules)"
    )  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
