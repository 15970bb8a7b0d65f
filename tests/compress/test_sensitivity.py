"""Sensitivity of channel groups: the same numbers as whole cut networks give, for less."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit.compress.channels.groups import ChannelGroup, find_groups
from edgekit.compress.channels.remove import remove_channels
from edgekit.compress.channels.replay.shelf import Shelf
from edgekit.compress.channels.replay.timeline import timeline_of
from edgekit.compress.channels.sensitivity import (
    Sensitivity,
    measure_sensitivity,
    sensitivity_from_json,
)
from edgekit.data.batches import Batches
from edgekit.data.metrics import load_metric
from edgekit.engines.onnxruntime import open_model
from edgekit.errors import InputError
from edgekit.models.model import Model, digest
from edgekit.models.source import load
from edgekit.values import Array, Session

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from conftest import run_reference


def batches_of(array: Array, labels: Array | None = None, *, name: str = "image") -> Batches:
    return Batches(arrays={name: array}, labels=labels, pixels={}, batch_size=8)


def random_scores(groups: tuple[ChannelGroup, ...]) -> list[Array]:
    rng = np.random.default_rng(3)
    return [rng.random(group.units) for group in groups]


def measured(model: Model, data: Batches, **more: object) -> Sensitivity:
    groups = find_groups(model).groups
    settings: dict[str, Any] = {"tolerance": 0.0, **more}
    return measure_sensitivity(
        model,
        groups,
        random_scores(groups),
        data,
        open_model=open_model,
        **settings,
    )


def test_damage_is_that_of_a_network_that_was_really_cut(residual: Model, images: Array) -> None:
    groups = find_groups(residual)
    scores = random_scores(groups.groups)
    found = measured(residual, batches_of(images))
    (original,) = run_reference(residual, {"image": images})
    assert len(found.groups) > 2
    for index, group in enumerate(groups.groups):
        for place, share in enumerate((0.25, 0.5, 0.75)):
            kept = [np.arange(one.units) for one in groups.groups]
            count = round(share * group.units)
            kept[index] = np.sort(np.argsort(scores[index], kind="stable")[count:])
            cut, _ = remove_channels(residual, groups, kept)
            (outputs,) = run_reference(cut, {"image": images})
            wanted = ((outputs - original) ** 2).sum() / (original**2).sum()
            assert found.damage[index][place] == pytest.approx(wanted, rel=1e-4)
            alike = (outputs.argmax(1) == original.argmax(1)).mean()
            assert found.groups[index].agreement[place] == pytest.approx(alike)
            assert found.groups[index].kept[place] == group.units - count


def test_only_what_lies_behind_a_group_is_run(residual: Model, images: Array) -> None:
    opened: list[int] = []

    @contextmanager
    def counting(model: Model) -> Iterator[Session]:
        opened.append(model.graph.num_nodes())
        with open_model(model) as session:
            yield session

    groups = find_groups(residual).groups
    measure_sensitivity(
        residual, groups, random_scores(groups), batches_of(images), open_model=counting
    )
    whole = residual.graph.num_nodes()
    assert opened[0] == whole
    line = timeline_of(residual)
    begins = sorted(
        line.position_before({m.parameter for m in g.members if m.role == "consumed"})
        for g in groups
    )
    rests = [whole - begin for begin in begins]
    between = [b - a for a, b in zip([0, *begins], begins, strict=False) if b > a]
    assert sorted(opened[1:]) == sorted(rests + between)
    assert min(rests) < whole / 2


def test_fewer_samples_are_run_where_the_damage_is_known(residual: Model) -> None:
    images = np.random.default_rng(0).normal(size=(192, 3, 8, 8)).astype(np.float32)
    exact = measured(residual, batches_of(images))
    quick = measured(residual, batches_of(images), tolerance=0.2)
    assert all(count == 192 for group in exact.groups for count in group.samples)
    assert min(count for group in quick.groups for count in group.samples) == 64
    for one, other in zip(exact.groups, quick.groups, strict=True):
        for damage, estimate, doubt in zip(one.damage, other.damage, other.doubt, strict=True):
            assert abs(estimate - damage) < 4 * doubt
            assert doubt <= 0.2 * estimate or other.samples == (192,) * 3


def test_the_standard_error_is_the_spread_over_drawn_samples(residual: Model) -> None:
    rng = np.random.default_rng(1)
    estimates, doubts = [], []
    for _ in range(12):
        images = rng.normal(size=(64, 3, 8, 8)).astype(np.float32)
        group = measured(residual, batches_of(images)).groups[0]
        estimates.append(group.damage[1])
        doubts.append(group.doubt[1])
    # A chi-square of 11 degrees of freedom is between 2.6 and 26.8 with a probability of 0.99.
    ratio = np.std(estimates, ddof=1) / np.mean(doubts)
    assert np.sqrt(2.6 / 11) * 0.9 < ratio < np.sqrt(26.8 / 11) * 1.1


def test_a_dead_group_costs_nothing_and_the_only_path_everything(tmp_path: Path) -> None:
    """Two branches of one channel pair each; nothing of the dead one reaches the output."""
    net = [
        helper.make_node("Conv", ["x", "live.w"], ["live"]),
        helper.make_node("Conv", ["x", "dead.w"], ["dead"]),
        helper.make_node("Conv", ["live", "out.w"], ["a"]),
        helper.make_node("Conv", ["dead", "zero.w"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    eye = np.eye(2, dtype=np.float32)[:, :, None, None]
    constants = {"live.w": eye, "dead.w": eye, "out.w": eye, "zero.w": 0 * eye}
    model = built(tmp_path, net, constants, [2, 4, 4], [2, 4, 4])
    x = np.ones((4, 2, 4, 4), np.float32)
    found = measure_sensitivity(
        model, find_groups(model).groups, [np.arange(2.0)] * 2, batches_of(x, name="x"),
        open_model=open_model, shares=(0.5, 0.9),
    )  # fmt: skip
    by_name = {group.group: group for group in found.groups}
    assert by_name["dead.w"].damage == (0.0, 0.0)
    # Half of the energy of the output is one of its two channels; one unit always stays.
    assert by_name["live.w"].damage == pytest.approx((0.5, 0.5))
    assert by_name["live.w"].kept == (1, 1)
    assert by_name["live.w"].agreement == ()


def built(
    folder: Path, nodes: list[onnx.NodeProto], constants: dict[str, Array], shape: list[int],
    out: list[int],
) -> Model:  # fmt: skip
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", *out])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    path = folder / "net.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    return load(path)


def test_a_transposed_weight_in_front_of_the_graph_does_not_hide_its_place(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Transpose", ["second"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "first"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "turned"], ["y"]),
    ]
    constants = {"first": np.ones((3, 4), np.float32), "second": np.ones((2, 4), np.float32)}
    line = timeline_of(built(tmp_path, nodes, constants, [3], [2]))
    assert len(line) == 3
    assert line.position_before({"first"}) == 0
    assert line.position_before({"second"}) == 2
    part = line.part(2, 3, fed=("second",))
    assert part is not None
    assert [node.op_type for node in part.graph] == ["Transpose", "MatMul"]
    assert {spec.name for spec in part.inputs} == {"r", "second"}


def test_parts_one_after_the_other_are_the_whole(residual: Model, images: Array) -> None:
    line = timeline_of(residual)
    wanted = run_reference(residual, {"image": images})[0]
    values: dict[str, Array] = {"image": images}
    for begin in range(0, len(line), 3):
        part = line.part(begin, min(begin + 3, len(line)))
        assert part is not None
        feeds = {spec.name: values[spec.name] for spec in part.inputs}
        made = run_reference(part, feeds)
        values.update({s.name: a for s, a in zip(part.outputs, made, strict=True)})
    np.testing.assert_allclose(values["logits"], wanted, rtol=1e-5, atol=1e-6)


def test_a_metric_is_of_all_samples(residual: Model, images: Array) -> None:
    (original,) = run_reference(residual, {"image": images})
    labels = original.argmax(1)
    labels[:8] = (labels[:8] + 1) % 5
    found = measured(residual, batches_of(images, labels), metric=load_metric("top1", Path()))
    assert found.metric_before == 24 / 32
    assert found.metric == "top1"
    group = found.groups[0]
    assert group.samples == (32,) * 3
    assert all(0 <= value <= 1 for value in group.metric)
    # What agrees with the original is right wherever the original was, and wrong elsewhere.
    assert all(
        abs(m - 0.75) <= 1 - a + 1e-9 for m, a in zip(group.metric, group.agreement, strict=True)
    )


def test_what_was_finished_is_not_measured_again(
    residual: Model, images: Array, tmp_path: Path
) -> None:
    data, checkpoint = batches_of(images), tmp_path / "groups.json"
    whole = measured(residual, data)
    stop = 2

    class KilledError(Exception):
        pass

    def on_fraction(share: float) -> None:
        nonlocal stop
        stop -= 1
        if not stop:
            raise KilledError

    with pytest.raises(KilledError):
        measured(residual, data, checkpoint=checkpoint, on_fraction=on_fraction)
    opened: list[int] = []

    @contextmanager
    def counting(model: Model) -> Iterator[Session]:
        opened.append(model.graph.num_nodes())
        with open_model(model) as session:
            yield session

    groups = find_groups(residual).groups
    resumed = measure_sensitivity(
        residual, groups, random_scores(groups), data, open_model=counting, tolerance=0.0,
        checkpoint=checkpoint,
    )  # fmt: skip
    np.testing.assert_allclose(resumed.damage, whole.damage, rtol=1e-4)
    # The original once, then a rest and at most one way to it for each group but the finished one.
    assert len(opened) <= 1 + 2 * (len(groups) - 1)
    # Other scores are another question: nothing of it is known.
    other = measure_sensitivity(
        residual, groups, [-s for s in random_scores(groups)], data, open_model=open_model,
        tolerance=0.0, checkpoint=checkpoint,
    )  # fmt: skip
    assert other.damage[0][0] != resumed.damage[0][0]


def test_json_holds_everything(residual: Model, images: Array) -> None:
    found = measured(residual, batches_of(images))
    assert sensitivity_from_json(found.to_json()) == found


def test_a_shelf_gives_back_what_does_not_fit_into_memory() -> None:
    rng = np.random.default_rng(0)
    put = [{"a/b": rng.normal(size=(2, 3)), "c": np.arange(i + 1)} for i in range(5)]
    with Shelf(memory_bytes=150) as shelf:
        for one in put:
            shelf.put(one)
        for _ in range(2):
            for one, other in zip(put, shelf, strict=True):
                assert one.keys() == other.keys()
                assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x: x * np.nan, "cannot be told"),
        (lambda x: x[:1], "too few samples"),
    ],
)
def test_data_that_tell_nothing_are_refused(
    change: Callable[[Array], Array], match: str, residual: Model, images: Array
) -> None:
    with pytest.raises(InputError, match=match):
        measured(residual, batches_of(change(images)))


def test_the_model_is_left_as_it_was(residual: Model, images: Array) -> None:
    before = digest(residual)
    measured(residual, batches_of(images))
    assert digest(residual) == before
