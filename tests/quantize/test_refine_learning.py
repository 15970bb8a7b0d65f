"""Refinements that learn, and those that move biases: AdaRound, distillation, absorption."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

sys.path.insert(0, str(Path(__file__).resolve().parent))
from test_refine import DIALECTS, batches_of, graph_of, plain, relu6_net, scheme_for, sqnr

from edgekit.models.model import Model
from edgekit.quantize.dialects import Dialect
from edgekit.quantize.scheme import Placement, Scheme
from edgekit.quantize.write import write_qdq
from edgekit.values import Array

torch = pytest.importorskip("torch", reason="needs the compress extra")
pytestmark = pytest.mark.torch

Reference = Callable[..., list[Array]]


@pytest.fixture(params=DIALECTS.values(), ids=DIALECTS)
def dialect(request: pytest.FixtureRequest) -> Dialect:
    found: Dialect = request.param
    return found


def test_learnt_rounding_stays_on_the_grid_and_beats_the_nearest(
    images: Array, reference: Reference, dialect: Dialect
) -> None:
    from edgekit.quantize.refine.adaround import AdaroundOptions, adaround

    model, shown = relu6_net(), batches_of("image", images)
    scheme = scheme_for(model, shown, dialect, bits=4)
    options = AdaroundOptions(steps=150, rows=2048)
    fixed, rounded, report = adaround(model, scheme, shown, options)
    assert set(report.errors) == {"first", "depthwise", "narrow", "last"}
    for node, stored in rounded.weights.items():
        zero = int(stored.grid.zero_point.flat[0])
        assert np.abs(stored.integers.astype(int) - zero).max() <= 7
        assert np.array_equal(stored.grid.scale, scheme.weights[node].grid.scale)
    unseen = np.random.default_rng(13).normal(size=(64, 3, 8, 8)).astype(np.float32)
    (wanted,) = reference(model, {"image": unseen})
    (before,) = reference(write_qdq(model, scheme)[0], {"image": unseen})
    (after,) = reference(write_qdq(fixed, rounded)[0], {"image": unseen})
    assert sqnr(after, wanted) > sqnr(before, wanted) + 2


def test_a_layer_that_learns_nothing_better_keeps_what_it_had(images: Array) -> None:
    from edgekit.quantize.refine.adaround import AdaroundOptions, adaround

    model, shown = relu6_net(), batches_of("image", images)
    scheme = scheme_for(model, shown, DIALECTS["trt-10"])
    options = AdaroundOptions(steps=1, learning_rate=50.0)  # every entry up or down by chance
    _, rounded, report = adaround(model, scheme, shown, options)
    kept = [node for node, (before, after) in report.errors.items() if after >= before]
    assert kept
    for node in kept:
        assert np.array_equal(rounded.weights[node].integers, scheme.weights[node].integers)


def test_distillation_changes_integers_and_nothing_of_their_grids(
    images: Array, reference: Reference, dialect: Dialect
) -> None:
    from edgekit.quantize.refine.distil import DistilOptions, distil

    model, shown = relu6_net(), batches_of("image", images)
    scheme = scheme_for(model, shown, dialect, bits=3)
    options = DistilOptions(epochs=15, learning_rate=3e-3, batch=8)
    fixed, rounded, report = distil(model, scheme, model, shown, options)
    assert report.after < report.before
    changed = 0
    for node, stored in rounded.weights.items():
        before = scheme.weights[node]
        assert stored.integers.dtype == before.integers.dtype
        assert np.array_equal(stored.grid.scale, before.grid.scale)
        changed += not np.array_equal(stored.integers, before.integers)
    assert changed >= 2
    assert rounded.activations == scheme.activations
    (wanted,) = reference(model, {"image": images})
    (nearest,) = reference(write_qdq(model, scheme)[0], {"image": images})
    (taught,) = reference(write_qdq(fixed, rounded)[0], {"image": images})
    assert sqnr(taught, wanted) > sqnr(nearest, wanted) + 1


def test_what_is_read_back_is_what_was_written(dialect: Dialect, images: Array) -> None:
    from edgekit.quantize.refine.distil import read_back

    model, shown = relu6_net(), batches_of("image", images)
    scheme = scheme_for(model, shown, dialect)
    _, again = read_back(model, scheme, write_qdq(model, scheme)[0])
    for node, stored in scheme.weights.items():
        assert np.array_equal(again.weights[node].integers, stored.integers)


def lifted_net() -> Model:
    """Two Conv 1x1 with a Relu between; the first lifts two of its four channels over 0."""
    rng = np.random.default_rng(2)
    weights = {
        "w1": rng.uniform(0.05, 0.1, (4, 3, 1, 1)), "b1": np.array([5.0, 0.0, 3.0, -0.1]),
        "w2": rng.normal(0, 0.5, (2, 4, 1, 1)), "b2": rng.normal(0, 0.1, 2),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], name="first"),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["y"], name="second"),
    ]
    return graph_of(nodes, weights, (3, 8, 8), "y")


def test_what_a_channel_never_falls_under_moves_to_the_next_bias(
    images: Array, reference: Reference, dialect: Dialect
) -> None:
    from edgekit.quantize.refine.absorb import absorb_biases

    model, shown = lifted_net(), batches_of("image", images)
    scheme = scheme_for(model, shown, dialect)

    def again(changed: Model, placement: Placement) -> Scheme:
        return scheme_for(changed, shown, dialect, placement=placement)

    fixed, rounded, report = absorb_biases(model, scheme, shown, plain, again)
    assert dict(report.channels) == {"first": 2}
    (wanted,) = reference(model, {"image": images})
    (found,) = reference(fixed, {"image": images})
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
    (before,) = reference(write_qdq(model, scheme)[0], {"image": images})
    (after,) = reference(write_qdq(fixed, rounded)[0], {"image": images})
    assert sqnr(after, wanted) > sqnr(before, wanted) + 6


def test_nothing_is_absorbed_in_front_of_padding(images: Array) -> None:
    from edgekit.quantize.refine.absorb import absorb_biases

    weights = {"w": np.ones((2, 3, 1, 1)), "b": np.full(2, 50.0), "v": np.ones((1, 2, 3, 3))}
    nodes = [
        helper.make_node("Conv", ["image", "w", "b"], ["c"], name="first"),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Conv", ["r", "v"], ["y"], name="second", pads=[1] * 4),
    ]
    model, shown = graph_of(nodes, weights, (3, 8, 8), "y"), batches_of("image", images)
    scheme = scheme_for(model, shown, DIALECTS["trt-10"])
    _, _, report = absorb_biases(model, scheme, shown, plain, lambda *_: scheme)
    assert not report.channels
