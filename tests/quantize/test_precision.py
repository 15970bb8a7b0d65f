"""Who stays in floating point: what each node does to the outputs, what it saves, the search."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent))
from test_judge import emulated
from test_place import TENSORRT, observed

from edgekit.compress.channels.budgeting.latency import LayerTable
from edgekit.compress.channels.budgeting.layers import network_of
from edgekit.errors import InputError
from edgekit.models.cost.roofline import AT_BEST, Rates
from edgekit.models.model import Model
from edgekit.models.simplify import fold_batchnorm
from edgekit.models.source import load
from edgekit.quantize.place import place
from edgekit.quantize.precision.report import (
    PrecisionOptions,
    PrecisionReport,
    SearchEvent,
    report_from_json,
)
from edgekit.quantize.precision.saved import SavedTime, saved_by_roofline, saved_by_tables
from edgekit.quantize.precision.search import search
from edgekit.quantize.precision.sensitivity import node_sensitivity
from edgekit.quantize.precision.spare import spare
from edgekit.quantize.prepare import prepared
from edgekit.quantize.ranges import minmax
from edgekit.quantize.scheme import Scheme, make_scheme, scheme_of
from edgekit.values import Array, Batch, Unknown

COUNT = 9


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Nine 1x1 convolutions of four channels, at 6x6, one behind the other; a Relu behind each."""
    rng = np.random.default_rng(3)
    weights, nodes, source = [], [], "image"
    for i in range(COUNT):
        weight = rng.normal(0, 0.5, (4, 4, 1, 1)).astype(np.float32)
        weights.append(numpy_helper.from_array(weight, f"w{i}"))
        nodes.append(helper.make_node("Conv", [source, f"w{i}"], [f"c{i}"], name=f"n{i}"))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"relu{i}"))
        source = f"r{i}"
    graph = helper.make_graph(
        nodes, "chain",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 4, 6, 6])],
        [helper.make_tensor_value_info(source, TensorProto.FLOAT, ["n", 4, 6, 6])], weights,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("chain") / "chain.onnx"
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path
    )
    return load(path)


def scheme_maker(model: Model) -> Callable[[Mapping[str, str]], Scheme]:
    def made(excluded: Mapping[str, str]) -> Scheme:
        placement = place(model, TENSORRT, excluded=excluded)
        return scheme_of(model, placement, dict.fromkeys(placement.reads, (0.0, 1.0)))

    return made


def on_integers(model: Model) -> frozenset[str]:
    """The convolutions of a written chain that read their weight through a DequantizeLinear."""
    found = set()
    for node in model.graph:
        if node.op_type != "Conv":
            continue
        weight = node.inputs[1]
        assert weight is not None
        producer = weight.producer()
        if producer is not None and producer.op_type == "DequantizeLinear":
            found.add(node.name or "")
    return frozenset(found)


class Bench:
    """An accuracy that falls by a known amount for each node on integers; counts its runs."""

    def __init__(self, drops: Mapping[str, float], *, stop_at: int = 0) -> None:
        self.drops, self.stop_at, self.runs = drops, stop_at, 0

    def __call__(self, model: Model) -> float:
        self.runs += 1
        if self.runs == self.stop_at:
            raise KeyboardInterrupt
        return sum(self.drops[node] for node in on_integers(model))


def case(seed: int) -> tuple[dict[str, float], SavedTime]:
    rng = np.random.default_rng(seed)
    drops = {f"n{i}": float(x) for i, x in enumerate(rng.lognormal(-6, 1, COUNT))}
    saved = {f"n{i}": float(x) for i, x in enumerate(rng.uniform(0.2, 2, COUNT))}
    return drops, SavedTime(ms=saved, float_ms=20, precision="fp16", source="measured")


def optimum(drops: Mapping[str, float], saved: SavedTime, floor: float, *, most_left: int) -> float:
    """The least milliseconds that any set of nodes in floating point costs, by trying them all."""
    best = np.inf
    for count in range(most_left + 1):
        for left in itertools.combinations(drops, count):
            if sum(drop for node, drop in drops.items() if node not in left) <= floor:
                best = min(best, sum(saved.ms[node] for node in left))
    return float(saved.float_ms - saved.total_ms + best)


def run_search(
    chain: Model, bench: Bench, saved: SavedTime | None, options: PrecisionOptions,
    state: Path | None = None, events: list[SearchEvent] | None = None,
    sensitivities: Mapping[str, float] | None = None,
) -> PrecisionReport:  # fmt: skip
    return search(
        chain, scheme_maker(chain), sensitivities or bench.drops, saved, bench, options,
        state_path=state, on_event=(events if events is not None else []).append,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(8))
def test_the_search_finds_the_optimum_of_a_knapsack(chain: Model, seed: int) -> None:
    drops, saved = case(seed)
    floor = 0.4 * sum(drops.values())
    events: list[SearchEvent] = []
    found = run_search(
        chain, Bench(drops), saved,
        PrecisionOptions(max_drop=floor, min_int8_share=0.4, most_tries=200), events=events,
    )  # fmt: skip
    assert found.met
    assert found.ended == "done"
    assert found.best is not None
    wanted = optimum(drops, saved, floor, most_left=5)  # 5 of 9 is the most that leaves 40%
    assert found.best.ms == pytest.approx(wanted)
    kept = [event.best for event in events if event.met]
    assert all(best.drop <= floor for best in kept)
    assert [b.ms for b in kept] == sorted((b.ms for b in kept), reverse=True)  # type: ignore[type-var]
    assert sum(event.is_best for event in events) >= 1


@pytest.mark.parametrize("seed", range(4))
def test_sensitivities_that_are_off_cost_time_and_never_the_floor(chain: Model, seed: int) -> None:
    drops, saved = case(seed)
    rng = np.random.default_rng(seed)
    guessed = {node: drop * float(rng.lognormal(0, 0.5)) for node, drop in drops.items()}
    floor = 0.4 * sum(drops.values())
    events: list[SearchEvent] = []
    found = run_search(
        chain, Bench(drops), saved, PrecisionOptions(max_drop=floor, min_int8_share=0.4),
        events=events, sensitivities=guessed,
    )  # fmt: skip
    assert found.met
    assert found.best is not None
    assert not isinstance(found.best.ms, Unknown)
    assert all(event.best.drop <= floor for event in events if event.met)
    wanted = optimum(drops, saved, floor, most_left=5)
    assert wanted - 1e-9 <= found.best.ms <= 1.15 * wanted


def test_every_candidate_is_really_written(chain: Model) -> None:
    drops, saved = case(0)
    events: list[SearchEvent] = []
    run_search(
        chain, Bench(drops), saved,
        PrecisionOptions(max_drop=0.4 * sum(drops.values()), min_int8_share=0.4), events=events,
    )  # fmt: skip
    for event in events:
        assert event.model is not None
        assert on_integers(event.model) == set(drops) - set(event.tried.excluded)
        assert event.tried.int8_share == pytest.approx(1 - len(event.tried.excluded) / COUNT)


def test_where_all_int8_holds_the_floor_nothing_else_is_tried(chain: Model) -> None:
    drops, saved = case(1)
    bench = Bench(drops)
    found = run_search(chain, bench, saved, PrecisionOptions(max_drop=sum(drops.values()) + 1e-6))
    assert (bench.runs, found.met, len(found.tried)) == (1, True, 1)
    assert found.best is not None
    assert found.best.excluded == ()
    assert found.best.ms == pytest.approx(saved.float_ms - saved.total_ms)


def test_a_floor_that_the_share_of_int8_forbids_is_said_and_the_best_is_kept(chain: Model) -> None:
    drops, saved = case(2)
    # 0.85 of nine equal layers allows one in floating point.
    worst = max(drops.values())
    found = run_search(
        chain, Bench(drops), saved, PrecisionOptions(max_drop=1e-9, min_int8_share=0.85)
    )
    assert not found.met
    assert found.best is not None
    assert found.best.drop == pytest.approx(sum(drops.values()) - worst)
    assert found.best.int8_share == pytest.approx(8 / 9)
    assert "85.0%" in str(found)


def test_the_default_share_lets_no_ninth_of_the_macs_go(chain: Model) -> None:
    drops, saved = case(2)
    found = run_search(chain, Bench(drops), saved, PrecisionOptions(max_drop=1e-9))
    assert not found.met
    assert [one.excluded for one in found.tried] == [()]


def test_a_dialect_that_leaves_too_much_in_float_is_said_though_the_floor_holds(
    chain: Model,
) -> None:
    drops, saved = case(2)
    made = scheme_maker(chain)
    found = search(
        chain, lambda left: made({**left, "n0": "no kernel", "n1": "no kernel"}), drops, saved,
        Bench(drops), PrecisionOptions(max_drop=1.0, min_int8_share=0.95),
    )  # fmt: skip
    assert not found.met
    assert found.best is not None
    assert found.best.int8_share == pytest.approx(7 / 9)
    assert "77.8% of the MACs can be in INT8, 95.0% are wanted" in str(found)


def test_a_target_on_which_int8_saves_nothing_is_not_worth_it(chain: Model) -> None:
    drops, saved = case(0)
    slower = SavedTime(
        ms={node: -ms for node, ms in saved.ms.items()}, float_ms=20, precision="fp16",
        source="roofline",
    )  # fmt: skip
    bench = Bench(drops)
    found = run_search(chain, bench, slower, PrecisionOptions())
    assert (bench.runs, found.worth_it, found.met, found.best) == (0, False, False, None)
    assert str(found).startswith("not worth it here")


def test_an_interrupt_keeps_the_best_and_the_same_call_goes_on_to_the_same_end(
    chain: Model, tmp_path: Path
) -> None:
    drops, saved = case(3)
    options = PrecisionOptions(max_drop=0.4 * sum(drops.values()), min_int8_share=0.4)
    straight = Bench(drops)
    wanted = run_search(chain, straight, saved, options)
    assert straight.runs > 3
    state = tmp_path / "state.json"
    stopped = run_search(chain, Bench(drops, stop_at=3), saved, options, state)
    assert stopped.ended == "interrupted"
    assert len(stopped.tried) == 2
    assert stopped.best is not None
    assert stopped.met
    again = Bench(drops)
    found = run_search(chain, again, saved, options, state)
    assert found == wanted
    assert again.runs == straight.runs - 2


def test_a_state_of_another_evaluation_is_not_taken_up(chain: Model, tmp_path: Path) -> None:
    drops, saved = case(3)
    state = tmp_path / "state.json"
    floor = 0.4 * sum(drops.values())
    first = PrecisionOptions(max_drop=floor, min_int8_share=0.4, evaluation="a")
    run_search(chain, Bench(drops), saved, first, state)
    other = Bench(drops)
    found = run_search(
        chain, other, saved, PrecisionOptions(max_drop=floor, min_int8_share=0.4, evaluation="b"),
        state,
    )  # fmt: skip
    assert other.runs == len(found.tried)
    state.write_text("{")
    damaged = Bench(drops)
    run_search(chain, damaged, saved, first, state)
    assert damaged.runs == len(found.tried)


def test_a_deadline_and_a_number_of_tries_end_the_search(chain: Model) -> None:
    drops, saved = case(4)
    floor = 0.4 * sum(drops.values())
    found = run_search(chain, Bench(drops), saved, PrecisionOptions(max_drop=floor, deadline_s=0.0))
    assert (found.ended, found.best, found.met) == ("deadline", None, False)
    bench = Bench(drops)
    found = run_search(
        chain, bench, saved, PrecisionOptions(max_drop=floor, min_int8_share=0.4, most_tries=2)
    )
    assert (found.ended, bench.runs) == ("tries", 2)
    assert found.met  # the second is the largest set that may leave, and it holds the floor


def test_under_a_latency_limit_the_least_drop_is_looked_for(chain: Model) -> None:
    drops, saved = case(5)
    all_int8 = saved.float_ms - saved.total_ms
    found = run_search(
        chain, Bench(drops), saved,
        PrecisionOptions(max_drop=None, most_ms=all_int8 + 2.5, min_int8_share=0.0),
    )  # fmt: skip
    assert found.met
    assert found.best is not None
    assert not isinstance(found.best.ms, Unknown)
    assert found.best.ms <= all_int8 + 2.5
    assert found.best.drop < 0.8 * sum(drops.values())
    found = run_search(
        chain, Bench(drops), saved, PrecisionOptions(max_drop=None, most_ms=all_int8 - 1)
    )
    assert not found.met


def test_without_known_times_the_share_of_macs_stands_for_them(chain: Model) -> None:
    drops, _ = case(6)
    floor = 0.4 * sum(drops.values())
    found = run_search(
        chain, Bench(drops), None, PrecisionOptions(max_drop=floor, min_int8_share=0.4)
    )
    assert found.met
    assert found.best is not None
    assert isinstance(found.best.ms, Unknown)
    fewest = next(
        n for n in range(COUNT) if sum(sorted(drops.values())[: COUNT - n]) <= floor
    )  # equal MACs: leave the worst ones out
    assert len(found.best.excluded) == fewest


def test_the_front_has_no_candidate_that_another_one_beats(chain: Model) -> None:
    drops, saved = case(7)
    found = run_search(
        chain, Bench(drops), saved,
        PrecisionOptions(max_drop=0.4 * sum(drops.values()), min_int8_share=0.4),
    )  # fmt: skip
    points = [(one.drop, one.ms) for one in found.front]
    assert len(points) > 2
    assert points == sorted(points, reverse=True)  # the faster, the more is lost
    for one in found.tried:
        assert any(drop <= one.drop and ms <= one.ms for drop, ms in points)  # type: ignore[operator]
    stored = json.loads(json.dumps(found.to_json()))
    assert report_from_json(stored, found.options) == found


def test_an_evaluation_without_a_number_and_a_search_without_a_limit_are_refused(
    chain: Model,
) -> None:
    drops, saved = case(0)
    with pytest.raises(InputError, match="no number"):
        search(
            chain, scheme_maker(chain), drops, saved, lambda model: float("nan"), PrecisionOptions()
        )
    with pytest.raises(InputError, match="needs a limit"):
        run_search(chain, Bench(drops), saved, PrecisionOptions(max_drop=None))
    with pytest.raises(InputError, match="needs the time"):
        run_search(chain, Bench(drops), None, PrecisionOptions(most_ms=1.0))


def test_the_roofline_says_what_a_node_saves(chain: Model) -> None:
    rates = Rates(
        peak={"fp16": 1e9, "int8": 4e9}, bandwidth_bytes_per_s=1e15, runtime="tensorrt",
        efficiency=AT_BEST, said=(), efficiency_said="",
    )  # fmt: skip
    found = saved_by_roofline(chain, rates, precision="fp16")
    macs = 6 * 6 * 4 * 4
    assert found.ms["n0"] == pytest.approx(1e3 * 2 * macs * (1 / 1e9 - 1 / 4e9))
    assert found.float_ms == pytest.approx(COUNT * 1e3 * 2 * macs / 1e9)
    assert found.source == "roofline"
    unknown = Rates(
        peak={"fp16": 1e9}, bandwidth_bytes_per_s=1e9, runtime="tensorrt", efficiency=AT_BEST,
        said=(), efficiency_said="",
    )  # fmt: skip
    with pytest.raises(InputError, match="no estimate"):
        saved_by_roofline(chain, unknown, precision="fp16")


def test_measured_tables_say_what_a_node_saves(chain: Model) -> None:
    def table(precision: str, ms: float) -> LayerTable:
        network = network_of(chain, (), runtime="onnxruntime", precision=precision)  # type: ignore[arg-type]
        return LayerTable(
            runtime="onnxruntime", batch=1, precision=precision, multiple=1,  # type: ignore[arg-type]
            seconds={placed.layer: 1e-3 * ms for placed in network.layers}, bytes_per_s=1e9,
            scale=2.0,
        )  # fmt: skip

    found = saved_by_tables(chain, table("fp32", 5), table("int8", 2))
    assert found.ms == {f"n{i}": pytest.approx(6) for i in range(COUNT)}
    assert found.source == "measured"
    assert found.float_ms == pytest.approx(COUNT * 10, rel=1e-3)
    with pytest.raises(InputError, match="lacks layers"):
        saved_by_tables(
            chain, table("fp32", 5),
            LayerTable(runtime="onnxruntime", batch=1, precision="int8", multiple=1, seconds={},
                       bytes_per_s=1e9),
        )  # fmt: skip


def ranked(damage: Mapping[str, float], nodes: list[str]) -> Array:
    order: Array = np.argsort(np.argsort([damage[node] for node in nodes]))
    return order


def batches_of(images: Array, size: int = 8) -> list[Batch]:
    return [Batch(inputs={"image": images[i : i + size]}) for i in range(0, len(images), size)]


def scheme_for(model: Model, images: Array) -> Scheme:
    return make_scheme(model, place(model, TENSORRT), observed(model, images), minmax)


@pytest.mark.torch
def test_gradients_rank_the_nodes_as_brute_force_does(residual: Model, images: Array) -> None:
    pytest.importorskip("torch", reason="needs the compress extra")
    model = prepared(fold_batchnorm(residual)[0])
    scheme = scheme_for(model, images)
    exact = node_sensitivity(model, scheme, batches_of(images), emulated, method="each")
    found = node_sensitivity(model, scheme, batches_of(images), emulated, method="gradients")
    nodes = list(scheme.placement.integer)
    assert set(found.damage) == set(exact.damage) == set(nodes)
    correlation = np.corrcoef(ranked(found.damage, nodes), ranked(exact.damage, nodes))[0, 1]
    assert correlation >= 0.9
    ratios = [found.damage[node] / exact.damage[node] for node in nodes]
    assert 0.6 < np.median(ratios) < 1.6


@pytest.mark.torch
def test_of_a_linear_network_with_one_number_out_gradients_are_exact(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the compress extra")
    rng = np.random.default_rng(0)
    weights = {
        "a": rng.normal(0, 0.3, (5, 3, 3, 3)), "b": rng.normal(0, 0.3, (4, 5, 1, 1)),
        "c": rng.normal(0, 0.3, (1, 4 * 36)),
    }  # fmt: skip
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["image", "a"], ["one"], name="first"),
            helper.make_node("Conv", ["one", "b"], ["two"], name="second"),
            helper.make_node("Flatten", ["two"], ["flat"], name="flatten"),
            helper.make_node("Gemm", ["flat", "c"], ["out"], name="third", transB=1),
        ],
        "linear", [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(w.astype(np.float32), name) for name, w in weights.items()],
    )  # fmt: skip
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        tmp_path / "l.onnx",
    )
    model = load(tmp_path / "l.onnx")
    images = rng.normal(size=(16, 3, 8, 8)).astype(np.float32)
    scheme = scheme_for(model, images)
    batches = batches_of(images)
    exact = node_sensitivity(model, scheme, batches, emulated, method="each")
    found = node_sensitivity(model, scheme, batches, emulated, method="gradients", draws=1)
    assert found.damage == {
        node: pytest.approx(damage, rel=1e-3) for node, damage in exact.damage.items()
    }
    assert found.ranked() == exact.ranked()


def test_sensitivity_without_a_sample_is_refused(residual: Model, images: Array) -> None:
    model = prepared(fold_batchnorm(residual)[0])
    with pytest.raises(InputError, match="no sample"):
        node_sensitivity(model, scheme_for(model, images), [], emulated)


def gained(worth: Mapping[str, float]) -> Callable[[Scheme], float]:
    """A score in dB: what each node that is left in floating point brings."""
    return lambda scheme: sum(
        db for node, db in worth.items() if node not in scheme.placement.integer
    )


def test_what_brings_most_for_its_macs_is_spared(chain: Model) -> None:
    worth = {"n0": 1.0, "n4": 5.0, "n7": 3.0}
    made = scheme_maker(chain)
    found, said = spare(chain, made({}), made, worth, gained(worth), 2 / COUNT)
    assert set(said.nodes) == {"n4", "n7"}
    assert said.share == pytest.approx(2 / COUNT)
    assert (said.before_db, said.after_db) == (0.0, 8.0)
    assert found.placement.left["n4"].startswith("spared")
    assert "2 nodes with 22.2% of the MACs" in str(said)


def test_what_is_in_float_already_counts(chain: Model) -> None:
    worth = {"n4": 5.0, "n7": 3.0}
    made = scheme_maker(chain)
    before = made({"n0": "a rule"})
    found, said = spare(
        chain, before, lambda more: made({"n0": "a rule", **more}), worth, gained(worth), 2 / COUNT
    )  # fmt: skip
    assert said.nodes == ("n4",)
    assert "n7" in found.placement.integer


def test_what_does_not_help_is_not_spared(chain: Model) -> None:
    worth = dict.fromkeys(("n1", "n2"), -1.0)
    whole = scheme_maker(chain)({})
    damage = {"n1": 2.0, "n2": 1.0}
    found, said = spare(chain, whole, scheme_maker(chain), damage, gained(worth), 0.5)
    assert (found, said.nodes, said.share) == (whole, (), 0.0)
    assert "no node" in str(said)


def test_a_share_that_holds_no_layer_spares_none_with_macs(chain: Model) -> None:
    worth = {"n1": 9.0}
    whole = scheme_maker(chain)({})
    found, said = spare(chain, whole, scheme_maker(chain), worth, gained(worth), 0.5 / COUNT)
    assert found is whole
    assert said.nodes == ()
