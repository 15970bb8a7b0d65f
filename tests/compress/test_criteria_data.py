"""Importance criteria that look at samples, against hand arithmetic and against ONNX Runtime."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from edgekit.compress.channels.criteria import DAMAGE_CRITERIA, DATA_CRITERIA, score_groups
from edgekit.compress.channels.criteria.observed import BINS, eliminate
from edgekit.compress.channels.evidence import gather
from edgekit.compress.channels.groups import ChannelGroup, Member, find_groups
from edgekit.data.batches import Batches
from edgekit.errors import InputError, MissingPackageError
from edgekit.models.model import (
    Model,
    after_step,
    constant_of,
    editable,
    set_parameter,
)
from edgekit.models.source import load
from edgekit.values import Array

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conftest import run_reference
from test_criteria import build, groups_of, plain, relative, two_layers

gradients = pytest.importorskip(
    "edgekit.compress.channels.evidence.gradients", reason="needs the compress extra"
)
BATCH, TEMPERATURE = gradients.BATCH, gradients.TEMPERATURE
pytestmark = pytest.mark.torch

NAMES = sorted(DATA_CRITERIA)


def samples(x: Array, labels: Array | None = None) -> Batches:
    return Batches(arrays={"x": x.astype(np.float32)}, labels=labels, pixels={}, batch_size=4)


def noise(*shape: int, seed: int = 5) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def scaled(model: Model, factors: dict[str, Array | float]) -> Model:
    """The Model with these initializers times factors."""
    program = editable(model)
    for name, factor in factors.items():
        stored = np.asarray(constant_of(model.graph.initializers[name]))
        set_parameter(program.graph, name, (stored * factor).astype(np.float32))
    return after_step(model, program, "scaled")


def spread(steps: Sequence[Sequence[float]]) -> Array:
    """Pictures (n, channels, 4, 4) that are constant in each channel."""
    return np.broadcast_to(np.array(steps)[:, :, None, None], (*np.shape(steps), 4, 4)).copy()


def test_activation_is_the_mean_magnitude_where_it_is_read_by_hand(tmp_path: Path) -> None:
    # Units are x0, -x0 and 2 x1 behind a Relu; x0 is 1 and -4, x1 is 1 and 0.
    weight = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 2.0]]).reshape(3, 2, 1, 1)
    model = plain(tmp_path, weight)
    x = samples(spread([[1.0, 1.0], [-4.0, 0.0]]))
    (found,) = score_groups("activation", model, groups_of(model), batches=x)
    assert found == pytest.approx(relative([0.5, 2.0, 1.0]))


def test_entropy_is_of_the_pooled_values_by_hand(tmp_path: Path) -> None:
    # Over 8 samples unit 0 takes 8 values, unit 1 two as often, unit 2 one.
    weight = np.eye(3).reshape(3, 3, 1, 1)
    model = plain(tmp_path, weight)
    pictures = spread([[i, 4.0 * (i % 2), 3.0] for i in range(8)])
    pictures[:, :, ::2] += 1.0  # the mean over space is what counts
    pictures[:, :, 1::2] -= 1.0
    pictures += 2.0
    (found,) = score_groups("entropy", model, groups_of(model), batches=samples(pictures))
    assert found == pytest.approx(relative([np.log(8), np.log(2), 0.0]))
    assert found[2] == 0.0


def test_entropy_of_many_samples_against_numpy(tmp_path: Path) -> None:
    # A multiple of 1/1024 in the middle of a bin, so that no rounding moves it to another one.
    rng = np.random.default_rng(0)
    levels = rng.integers(0, 64, (300, 4)) ** 2 // 64
    levels[0], levels[1] = 0, 63
    model = plain(tmp_path, np.eye(4).reshape(4, 4, 1, 1))
    values = (levels + 0.5) / 64
    values[0], values[1] = 0.0, 1.0
    by_hand = []
    for column in values.T:
        counts, _ = np.histogram(column, bins=BINS, range=(column.min(), column.max()))
        shares = counts[counts > 0] / len(column)
        by_hand.append(-(shares * np.log(shares)).sum())
    (found,) = score_groups("entropy", model, groups_of(model), batches=samples(spread(values)))
    assert found == pytest.approx(relative(by_hand))


# --- the damage form ----------------------------------------------------------------------------


def one_reader(
    folder: Path, op: str, weight: Array, axis: int, x: Sequence[object], y: Sequence[object],
    **attributes: object,
) -> tuple[Model, Callable[[Array], ChannelGroup]]:  # fmt: skip
    """A network of one operator, and its group of channels with these indices (units, k)."""
    nodes = [helper.make_node(op, ["x", "w"], ["y"], **attributes)]
    model = build(folder, nodes, {"w": weight}, x, y)

    def group(indices: Array) -> ChannelGroup:
        member = Member(parameter="w", axis=axis, role="consumed", indices=indices)
        return ChannelGroup(name="w", units=len(indices), members=(member,))

    return model, group


def damage_form(model: Model, group: ChannelGroup, x: Batches) -> Array:
    parts = gather("damage", model, [group], x, seed=0, on_fraction=lambda share: None)
    ((_, evidence),) = parts
    return evidence.observed[group.name]


def spread_of(y: Array, axis: int) -> float:
    """The sum of squares about the mean of each channel."""
    channels = np.moveaxis(y.astype(np.float64), axis, -1).reshape(-1, y.shape[axis])
    return float(((channels - channels.mean(0)) ** 2).sum())


def one_each(count: int) -> Array:
    return np.arange(count)[:, None]


CASES = {
    "1x1": ("Conv", noise(9, 4, 1, 1), 1, (4, 3, 3), one_each(4), {}),
    "padded": ("Conv", noise(5, 4, 3, 3), 1, (4, 4, 4), one_each(4), {"pads": [1] * 4}),
    "many outputs": ("Conv", noise(40, 3, 3, 3), 1, (3, 4, 4), one_each(3), {"pads": [1] * 4}),
    "uneven": (
        "Conv", noise(5, 4, 3, 2), 1, (4, 9, 7), one_each(4),
        {"pads": [0, 1, 2, 0], "strides": [3, 2], "dilations": [2, 1]},
    ),
    "same lower": (
        "Conv", noise(5, 4, 4, 4), 1, (4, 7, 7), one_each(4),
        {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
    ),
    "grouped": (
        "Conv", noise(6, 3, 3, 3), 1, (6, 4, 4), one_each(3), {"pads": [1] * 4, "group": 2},
    ),
    "grouped, many outputs": (
        "Conv", noise(60, 3, 3, 3), 1, (6, 4, 4), one_each(3), {"pads": [1] * 4, "group": 2},
    ),
    "one axis": ("Conv", noise(5, 4, 3), 1, (4, 12), one_each(4), {}),
    "three axes": ("Conv", noise(5, 4, 2, 2, 2), 1, (4, 3, 3, 3), one_each(4), {}),
    "transposed": (
        "ConvTranspose", noise(4, 5, 3, 3), 0, (4, 2, 2), one_each(4),
        {"strides": [2, 2], "pads": [1, 1, 1, 0], "output_padding": [1, 0]},
    ),
    "transposed, grouped": (
        "ConvTranspose", noise(4, 5, 2, 2), 0, (4, 2, 2), one_each(4),
        {"strides": [2, 2], "group": 2},
    ),
    "Gemm": ("Gemm", noise(5, 6), 1, (6,), one_each(6), {"transB": 1}),
    "Gemm, flattened": ("Gemm", noise(40, 5), 0, (40,), np.arange(40).reshape(4, 10), {}),
    "tokens": ("MatMul", noise(6, 5), 0, (7, 6), one_each(6), {}),
    "heads": ("MatMul", noise(12, 50), 0, (7, 12), np.arange(12).reshape(3, 4), {}),
    "some of them": ("Conv", noise(9, 6, 3, 3), 1, (6, 4, 4), np.array([[1], [4]]), {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_damage_form_is_what_zeroing_the_channels_does(tmp_path: Path, case: str) -> None:
    op, weight, axis, shape, indices, attributes = CASES[case]
    sizes = ["n", *(f"d{i}" for i in range(9))]
    rank = len(shape) + 1
    model, group = one_reader(
        tmp_path, op, weight, axis, ["n", *shape], sizes[:rank], **attributes
    )  # fmt: skip
    x = noise(10, *shape, seed=2) + 0.3
    form = damage_form(model, group(indices), samples(x))
    whole = run_reference(model, {"x": x})[0].astype(np.float64)
    channels = -1 if op in ("Gemm", "MatMul") else 1
    for units in itertools.chain.from_iterable(
        itertools.combinations(range(len(indices)), k) for k in (1, 2)
    ):
        mask = np.ones(weight.shape[axis])
        mask[indices[list(units)].reshape(-1)] = 0
        lead = [1] * weight.ndim
        lead[axis] = -1
        cut = run_reference(scaled(model, {"w": mask.reshape(lead)}), {"x": x})[0]
        expected = spread_of(whole - cut, channels) / spread_of(whole, channels)
        s = np.isin(np.arange(len(indices)), units).astype(float)
        assert s @ form @ s == pytest.approx(expected, rel=2e-4)


def test_a_weight_behind_a_transpose_reads_what_it_reads(tmp_path: Path) -> None:
    weight = noise(5, 6)
    nodes = [
        helper.make_node("Transpose", ["w"], ["w.t"]),
        helper.make_node("MatMul", ["x", "w.t"], ["y"]),
    ]
    turned = build(tmp_path, nodes, {"w": weight}, ["n", 7, 6], ["n", 7, 5])
    straight, _ = one_reader(tmp_path, "MatMul", weight.T, 0, ["n", 7, 6], ["n", 7, 5])
    x = samples(noise(4, 7, 6))

    def group(axis: int) -> ChannelGroup:
        member = Member(parameter="w", axis=axis, role="consumed", indices=one_each(6))
        return ChannelGroup(name="w", units=6, members=(member,))

    expected = damage_form(straight, group(0), x)
    assert damage_form(turned, group(1), x) == pytest.approx(expected, rel=1e-5)


def test_places_that_are_drawn_stand_for_all(tmp_path: Path) -> None:
    weight = noise(5, 4, 3, 3)
    shape = ["n", 4, 24, 24]
    model, group = one_reader(tmp_path, "Conv", weight, 1, shape, ["n", 5, 22, 22])
    x = noise(64, 4, 24, 24)
    form = damage_form(model, group(one_each(4)), samples(x))
    whole = run_reference(model, {"x": x})[0].astype(np.float64)
    for unit in range(4):
        mask = (np.arange(4) != unit).reshape(1, -1, 1, 1)
        cut = run_reference(scaled(model, {"w": mask}), {"x": x})[0]
        expected = spread_of(whole - cut, 1) / spread_of(whole, 1)
        assert form[unit, unit] == pytest.approx(expected, rel=0.1)


def test_every_reader_adds_its_own_share(tmp_path: Path) -> None:
    # Two 1x1 convolutions read the same Relu; the second one's scale does not matter.
    weight = np.eye(2).reshape(2, 2, 1, 1)
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Conv", ["r", "b"], ["p"]),
        helper.make_node("Conv", ["r", "c"], ["q"]),
        helper.make_node("Concat", ["p", "q"], ["y"], axis=1),
    ]
    constants = {
        "a": weight, "b": np.array([[3.0, 4.0]]).reshape(1, 2, 1, 1),
        "c": np.array([[0.0, 700.0]]).reshape(1, 2, 1, 1),
    }  # fmt: skip
    model = build(tmp_path, nodes, constants, ["n", 2, 4, 4], ["n", 2, 4, 4])
    (group,) = groups_of(model)
    # The units are 1 or 0 independently of one another: variances go as 9 and 16, 0 and 1.
    form = damage_form(model, group, samples(spread([[1, 0], [0, 1], [1, 1], [0, 0]])))
    assert form == pytest.approx(np.diag([9 / 25, 16 / 25 + 1.0]), abs=1e-6)


# --- greedy elimination -------------------------------------------------------------------------


def cost(form: Array, units: Sequence[int]) -> float:
    return float(form[np.ix_(list(units), list(units))].sum())


def best(form: Array, count: int) -> float:
    return min(cost(form, some) for some in itertools.combinations(range(len(form)), count))


def random_form(seed: int, units: int) -> Array:
    made = np.random.default_rng(seed).normal(size=(units, 3 * units))
    return made @ made.T / made.shape[1]


def test_the_second_of_two_equal_channels_is_not_taken_for_cheap() -> None:
    # Units 0 and 1 do the same: alone each costs 1, together 4; unit 2 costs 1.5 on its own.
    form = np.array([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.5]])
    order, damage = eliminate(form)
    assert order.tolist() == [0, 2, 1]
    assert damage == pytest.approx([1.0, 2.5, 5.5])
    assert damage[1] == best(form, 2)


def test_without_correlation_greed_is_best() -> None:
    form = np.diag(np.random.default_rng(0).uniform(size=8))
    _, damage = eliminate(form)
    assert damage == pytest.approx([best(form, count) for count in range(1, 9)])


@pytest.mark.parametrize("seed", range(10))
def test_greed_takes_the_best_next_unit(seed: int) -> None:
    form = random_form(seed, 8)
    order, damage = eliminate(form)
    assert sorted(order.tolist()) == list(range(8))
    for step in range(8):
        gone = order[:step].tolist()
        others = [u for u in range(8) if u not in gone]
        assert damage[step] == pytest.approx(min(cost(form, [*gone, u]) for u in others))


def test_greed_ends_near_the_best_set() -> None:
    forms = [random_form(seed, 8) for seed in range(10)]
    ratios = np.array([
        [found / best(form, k) for k, found in enumerate(eliminate(form)[1], 1)] for form in forms
    ])  # fmt: skip
    assert ratios.min() >= 1 - 1e-9
    assert ratios.mean() < 1.1
    assert ratios.max() < 2.0


def test_thinet_scores_rise_in_the_order_of_elimination_and_sum_to_the_damage(
    tmp_path: Path,
) -> None:
    model = plain(tmp_path, noise(12, 5, 1, 1))
    (group,) = groups_of(model)
    x = samples(noise(20, 5, 4, 4))
    form = damage_form(model, group, x)
    order, damage = eliminate(form)
    (scores,) = score_groups("thinet", model, [group], batches=x)
    assert np.argsort(scores, kind="stable").tolist() == order.tolist()
    sums = np.cumsum(np.sort(scores))
    assert (sums <= damage + 1e-6).all()
    assert sums[-1] == pytest.approx(damage[-1], rel=1e-5)
    assert damage[-1] == pytest.approx(1.0, rel=1e-4)  # all of what the reader puts out


# --- taylor -------------------------------------------------------------------------------------


def gated(model: Model, name: str, axis: int, unit: int, gate: float) -> Model:
    """The Model whose weight reads one unit times a gate."""
    weight = constant_of(model.graph.initializers[name])
    factor = np.ones(weight.shape[axis])
    factor[unit] = gate
    shape = [1] * weight.ndim
    shape[axis] = -1
    return scaled(model, {name: factor.reshape(shape)})


def log_chances(model: Model, x: Array, temperature: float = 1.0) -> Array:
    z = run_reference(model, {"x": x})[0].astype(np.float64) / temperature
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def test_taylor_with_labels_against_finite_differences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = two_layers(tmp_path)
    x, labels = noise(12, 3, 8, 8), np.arange(12) % 5

    def slope(name: str, unit: int) -> float:
        more, less = (
            -log_chances(gated(model, name, 1, unit, 1 + d), x)[np.arange(12), labels].sum()
            for d in (1e-2, -1e-2)
        )
        return (more - less) / 2e-2

    # All samples are one batch: the square of its sum.
    monkeypatch.setattr("edgekit.compress.channels.evidence.gradients.BATCH", 12)
    found = score_groups("taylor", model, groups_of(model), batches=samples(x, labels))
    by_hand = [
        np.array([slope(name, u) ** 2 for u in range(n)]) for name, n in (("b", 6), ("c", 8))
    ]
    total = sum(one.sum() for one in by_hand)
    for one, expected in zip(found, by_hand, strict=True):
        assert one == pytest.approx(expected / total, rel=2e-2, abs=2e-4)


def test_taylor_without_labels_is_the_curvature_of_the_distance_to_the_original(
    tmp_path: Path,
) -> None:
    model = two_layers(tmp_path)
    x = noise(3000, 3, 8, 8)
    found = np.concatenate(
        score_groups("taylor", model, groups_of(model), batches=samples(x), samples=3000)
    )
    before = log_chances(model, x, TEMPERATURE)

    def curvature(name: str, unit: int) -> float:
        gates = [gated(model, name, 1, unit, 1 + d) for d in (0.1, -0.1)]
        after = [log_chances(one, x, TEMPERATURE) for one in gates]
        return sum((np.exp(before) * (before - one)).sum(1).mean() for one in after) / 0.1**2

    by_hand = np.array([curvature(name, u) for name, n in (("b", 6), ("c", 8)) for u in range(n)])
    # The mean of 750 squares of a normal variable errs by sqrt(2 / 750), a twentieth.
    assert found == pytest.approx(by_hand / by_hand.sum(), rel=0.2, abs=2e-4)


def test_taylor_of_a_softmax_is_that_of_its_scores(tmp_path: Path) -> None:
    x = samples(noise(12, 3, 8, 8), np.arange(12) % 5)
    model, softmax = two_layers(tmp_path), two_layers(tmp_path, softmax=True)
    expected = score_groups("taylor", model, groups_of(model), batches=x)
    found = score_groups("taylor", softmax, groups_of(softmax), batches=x)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-3)


def test_taylor_of_an_output_that_is_no_classes_is_the_curvature_of_the_squared_distance(
    tmp_path: Path,
) -> None:
    model = plain(tmp_path, noise(4, 3, 1, 1))
    x = noise(800, 3, 4, 4)
    (found,) = score_groups("taylor", model, groups_of(model), batches=samples(x), samples=800)
    # The output is linear in the gates: one unit's part of it is all that there is to know.
    whole = run_reference(model, {"x": x})[0]
    parts = [whole - run_reference(gated(model, "b", 1, u, 0.0), {"x": x})[0] for u in range(4)]
    by_hand = np.array([(part.astype(np.float64) ** 2).mean() for part in parts])
    assert found == pytest.approx(by_hand / by_hand.sum(), rel=0.2)


def test_taylor_of_queries_and_keys_gates_what_makes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgekit.compress.channels.evidence.gradients.BATCH", 8)
    # y = (x Q + q) (x K)': nobody reads Q's and K's columns but one another.
    nodes = [
        helper.make_node("MatMul", ["x", "q"], ["p"]),
        helper.make_node("Add", ["p", "q.bias"], ["s"]),
        helper.make_node("MatMul", ["x", "k"], ["t"]),
        helper.make_node("Transpose", ["t"], ["u"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["s", "u"], ["m"]),
        helper.make_node("ReduceMean", ["m"], ["y"], axes=[1], keepdims=0),
    ]
    constants = {"q": noise(3, 4), "q.bias": noise(4, seed=1), "k": noise(3, 4, seed=2)}
    model = build(tmp_path, nodes, constants, ["n", 5, 3], ["n", 5])
    each = one_each(4)
    group = ChannelGroup(name="q", units=4, members=(
        Member(parameter="q", axis=1, role="produced", indices=each),
        Member(parameter="q.bias", axis=0, role="along", indices=each),
        Member(parameter="k", axis=1, role="produced", indices=each),
    ))  # fmt: skip
    x, labels = noise(8, 5, 3), np.arange(8) % 5
    (found,) = score_groups("taylor", model, [group], batches=samples(x, labels))

    def slope(unit: int) -> float:
        losses = []
        for d in (1e-2, -1e-2):
            factor = np.where(np.arange(4) == unit, 1 + d, 1.0)
            both = scaled(model, dict.fromkeys(("q", "q.bias", "k"), factor))
            losses.append(-log_chances(both, x)[np.arange(8), labels].sum())
        return (losses[0] - losses[1]) / 2e-2

    by_hand = np.array([slope(unit) ** 2 for unit in range(4)])
    assert found == pytest.approx(by_hand / by_hand.sum(), rel=2e-2, abs=1e-5)

    # Nor does a weight show what they damage: each counts by its share of what there is.
    def energy(name: str, bias: Array | float = 0.0) -> Array:
        made = x @ constants[name] + bias
        squares = (made.astype(np.float64) ** 2).sum((0, 1))
        return squares / squares.sum()

    form = damage_form(model, group, samples(x))
    # The queries as their weight puts them out, the bias comes behind it.
    assert form == pytest.approx(np.diag(energy("q") + energy("k")), rel=1e-4)


# --- what all of them have in common ------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_channel_that_is_always_zero_is_last(tmp_path: Path, name: str) -> None:
    model = two_layers(tmp_path)
    dead = 3
    alive = (np.arange(6) != dead).astype(float)
    # gamma and beta 0: nothing comes out, whatever the weights are.
    model = scaled(model, {"gamma": alive, "beta": alive})
    found = score_groups(name, model, groups_of(model), batches=samples(noise(40, 3, 8, 8)))[0]
    assert found.argmin() == dead
    assert found[dead] == pytest.approx(0.0, abs=1e-9)
    assert (np.delete(found, dead) > found[dead]).all()


@pytest.mark.parametrize("name", NAMES)
def test_what_is_made_larger_and_read_smaller_keeps_its_scores(tmp_path: Path, name: str) -> None:
    model = two_layers(tmp_path)
    other = scaled(model, {"gamma": 8.0, "beta": 8.0, "b": 0.125})
    batches = samples(noise(40, 3, 8, 8))
    for one, two in zip(
        score_groups(name, model, groups_of(model), batches=batches),
        score_groups(name, other, groups_of(other), batches=batches),
        strict=True,
    ):
        assert two == pytest.approx(one, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "taylor"])
def test_a_group_whose_weights_are_all_scaled_keeps_its_order(tmp_path: Path, name: str) -> None:
    model = two_layers(tmp_path)
    other = scaled(model, {"b": 4.0, "b.bias": 4.0})
    batches = samples(noise(40, 3, 8, 8))
    one = score_groups(name, model, groups_of(model), batches=batches)[1]
    two = score_groups(name, other, groups_of(other), batches=batches)[1]
    assert np.argsort(one).tolist() == np.argsort(two).tolist()


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """All places of a picture of 8x8 are looked at, none is drawn."""
    monkeypatch.setattr("edgekit.compress.channels.evidence.damage.PLACES", 64)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("name", NAMES)
def test_a_fixed_batch_is_filled_up_and_changes_nothing(tmp_path: Path, name: str) -> None:
    # As many as taylor takes at a time anyhow: it squares a batch's sum.
    free, fixed = two_layers(tmp_path), two_layers(tmp_path, batch=BATCH)
    x = samples(noise(10, 3, 8, 8), np.arange(10) % 5)
    found = score_groups(name, fixed, groups_of(fixed), batches=x)
    expected = score_groups(name, free, groups_of(free), batches=x)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-7)


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("name", [n for n in NAMES if n != "taylor"])
def test_little_memory_takes_more_passes_and_changes_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = two_layers(tmp_path)
    x = samples(noise(40, 3, 8, 8))
    expected = score_groups(name, model, groups_of(model), batches=x)
    monkeypatch.setattr("edgekit.compress.channels.evidence.stream._TENSOR_BYTES", 100)
    heard: list[float] = []
    found = score_groups(name, model, groups_of(model), batches=x, on_fraction=heard.append)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-7)
    assert len(heard) == 40 + 14  # a group at a time: samples of 6 x 64 numbers, then of 8
    assert heard == sorted(heard)
    assert heard[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_the_same_for_a_seed(tmp_path: Path, name: str) -> None:
    model = two_layers(tmp_path)
    x = samples(noise(40, 3, 8, 8))
    once, again = (score_groups(name, model, groups_of(model), batches=x, seed=1) for _ in "ab")
    assert all(np.array_equal(one, other) for one, other in zip(once, again, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_in_units_in_which_groups_compare(tmp_path: Path, name: str) -> None:
    model = two_layers(tmp_path)
    found = score_groups(name, model, groups_of(model), batches=samples(noise(40, 3, 8, 8)))
    assert [one.shape for one in found] == [(6,), (8,)]
    assert all((one >= 0).all() and one.dtype == np.float64 for one in found)
    sums = [one.sum() for one in found]
    if name == "taylor":
        assert sum(sums) == pytest.approx(1.0)
    elif name in DAMAGE_CRITERIA:
        assert sums == pytest.approx([1.0, 1.0], rel=1e-3)
    else:
        assert sums == pytest.approx([6.0, 8.0])


@pytest.mark.parametrize("name", NAMES)
def test_samples_that_are_no_numbers_are_refused(tmp_path: Path, name: str) -> None:
    model = two_layers(tmp_path)
    x = noise(10, 3, 8, 8)
    x[7, 1, 2, 3] = np.nan
    with pytest.raises(InputError, match="becomes NaN or infinite on the samples"):
        score_groups(name, model, groups_of(model), batches=samples(x))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(10, 4, 8, 8), (10, 3, 8)])
def test_samples_that_do_not_fit_are_refused(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    model = two_layers(tmp_path)
    with pytest.raises(InputError, match="do not fit the model") as caught:
        score_groups(name, model, groups_of(model), batches=samples(noise(*shape)))
    assert str(shape[1:])[1:-1] in caught.value.got


@pytest.mark.parametrize("labels", [np.arange(10), np.arange(10) / 2, np.arange(10) - 1])
def test_labels_that_are_no_classes_are_refused(tmp_path: Path, labels: Array) -> None:
    model = two_layers(tmp_path)
    with pytest.raises(InputError, match="labels are not classes") as caught:
        score_groups("taylor", model, groups_of(model), batches=samples(noise(10, 3, 8, 8), labels))
    assert caught.value.wanted == "whole numbers from 0 to 4"


def test_only_as_many_samples_as_asked_for_are_looked_at(tmp_path: Path) -> None:
    model = two_layers(tmp_path)
    x = noise(10, 3, 8, 8)
    some = score_groups("activation", model, groups_of(model), batches=samples(x), samples=4)
    those = score_groups("activation", model, groups_of(model), batches=samples(x[[0, 3, 6, 9]]))
    assert all(one == pytest.approx(other) for one, other in zip(some, those, strict=True))
    with pytest.raises(InputError, match="no sample is to be looked at"):
        score_groups("activation", model, groups_of(model), batches=samples(x), samples=0)


def test_without_torch_the_package_to_install_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = two_layers(tmp_path)
    monkeypatch.setitem(sys.modules, "edgekit.compress.channels.evidence.stream", None)
    with pytest.raises(MissingPackageError) as caught:
        score_groups("thinet", model, groups_of(model), batches=samples(noise(4, 3, 8, 8)))
    assert "edgekit[compress]" in caught.value.hint


@pytest.mark.shared_data
@pytest.mark.parametrize("name", NAMES)
def test_on_a_trained_network_each_does_less_harm_than_chance(shared_data: Path, name: str) -> None:
    sys.path.insert(0, str(shared_data))
    from load import cifar10  # type: ignore[import-not-found]

    model = load(shared_data / "models" / "resnet20-cifar10.onnx")
    pictures = cifar10("test")[0][:256] / 255.0
    pictures = (pictures - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    x = pictures.transpose(0, 3, 1, 2).astype(np.float32)
    batches = replace(samples(x), arrays={"input": x})
    groups = [g for g in find_groups(model).groups if g.name.endswith("conv1.weight")][1:]
    before = run_reference(model, {"input": x})[0]

    def harm(name: str) -> float:
        """The relative squared error as the inner channels of each block lose a quarter."""
        factors: dict[str, Array | float] = {}
        for group, scores in zip(
            groups, score_groups(name, model, groups, batches=batches, samples=128), strict=True
        ):
            gone = np.argsort(scores)[: group.units // 4]
            for member in group.members:
                if member.role == "consumed":
                    mask = np.ones(constant_of(model.graph.initializers[member.parameter]).shape)
                    np.moveaxis(mask, member.axis, 0)[member.indices[gone].reshape(-1)] = 0
                    factors[member.parameter] = mask
        after = run_reference(scaled(model, factors), {"input": x})[0]
        return float(((after - before) ** 2).sum() / (before**2).sum())

    assert harm(name) < 0.75 * harm("random")
