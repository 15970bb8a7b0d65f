"""Real engines in real workers."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekit import files
from edgekit.bench import memory, statistics
from edgekit.bench.measurement import PASSING, same_conditions
from edgekit.bench.runner import measure, measure_side_by_side
from edgekit.bench.scenarios import Scenario
from edgekit.bench.workload import Arm, Plan, lasting_conditions
from edgekit.engines import onnxruntime as runtime
from edgekit.engines.base import Engine, EngineRequest
from edgekit.engines.manifest import write_manifest
from edgekit.engines.processes.child import environment
from edgekit.errors import EdgekitError, InputError, ResourceError
from edgekit.targets import load_target
from edgekit.values import Array, Measurement, Unknown

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def dense_engine(folder: Path, width: int, layers: int = 4) -> Engine:
    """`layers` square MatMuls with as many rows of input: work that grows with the width."""
    rng = np.random.default_rng(0)
    names = ["x", *(f"h{i}" for i in range(layers - 1)), "y"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(layers)],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])],
        [
            numpy_helper.from_array(
                rng.normal(size=(width, width)).astype(np.float32) / width, f"w{i}"
            )
            for i in range(layers)
        ],
    )
    folder.mkdir(parents=True)
    path = folder / "source.onnx"
    opsets = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    request = EngineRequest(
        model_path=path, name="dense", target=load_target("cpu"), precision="fp32", threads=1,
        batch=(1, 1, 8),
    )  # fmt: skip
    return runtime.build(request, folder)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Engine]:
    folder = tmp_path_factory.mktemp("engines")
    return dense_engine(folder / "small", 32), dense_engine(folder / "large", 768)


def arm(name: str, engine: Engine, **options: int) -> Arm:
    width = engine.inputs[0].shape[1]
    assert isinstance(width, int)
    samples = np.random.default_rng(1).normal(size=(5, width)).astype(np.float32)
    return Arm(name=name, engine=engine, inputs={"x": samples}, **options)


@pytest.fixture(scope="module")
def both(engines: tuple[Engine, Engine]) -> tuple[Measurement, ...]:
    said: list[tuple[float, str]] = []
    arms = [arm("small", engines[0]), arm("large", engines[1])]
    found = measure_side_by_side(
        arms, seconds=0.6, rounds=3, warmup_seconds=0.05,
        on_progress=lambda fraction, words: said.append((fraction, words)),
    )  # fmt: skip
    turns = [words for _, words in said if words.startswith("round")]
    assert turns == [
        "round 1 of 3, small",
        "round 1 of 3, large",
        "round 2 of 3, large",
        "round 2 of 3, small",
        "round 3 of 3, small",
        "round 3 of 3, large",
    ]
    assert [fraction for fraction, _ in said] == sorted(fraction for fraction, _ in said)
    assert (said[0][0], said[-1][0]) == (0.0, 1.0)
    return found


def test_each_arm_has_its_own_measurement_in_order(both: tuple[Measurement, ...]) -> None:
    assert [m.arm for m in both] == ["small", "large"]
    for m in both:
        assert (m.quantity, m.unit, m.batch) == ("latency", "s", 1)
        assert len(m.rounds) == 3
        assert m.rounds[0] == 0
        assert list(m.rounds) == sorted(set(m.rounds))
        assert min(m.samples) > 0


def test_576_times_the_work_takes_longer(both: tuple[Measurement, ...]) -> None:
    small, large = both
    ratio = statistics.speedup(small, large)
    assert ratio.value > 2
    assert not isinstance(ratio.interval, Unknown)
    assert ratio.interval[0] > 1


def test_what_a_call_is_made_of_is_measured_apart(both: tuple[Measurement, ...]) -> None:
    for m in both:
        parts = [m.figures[f"{name}_p50_s"] for name in
                 ("host_to_device", "execute", "device_to_host")]  # fmt: skip
        assert all(isinstance(part, float) and part > 0 for part in parts)
        whole = statistics.percentile(m.samples, 50)
        assert sum(parts) == pytest.approx(whole, rel=0.25)  # type: ignore[arg-type]


def test_the_harness_tells_its_own_cost(both: tuple[Measurement, ...]) -> None:
    for m in both:
        assert 0 < m.figures["harness_s"] < 2e-5  # type: ignore[operator]


def test_execution_alone_is_shorter_than_the_call(both: tuple[Measurement, ...]) -> None:
    for m in both:
        assert 0 < m.figures["execute_p50_s"] < statistics.percentile(m.samples, 50)  # type: ignore[operator]


@linux
def test_the_larger_engine_needs_its_weights_in_memory(both: tuple[Measurement, ...]) -> None:
    small, large = (m.figures["memory_rise_bytes"] for m in both)
    assert not isinstance(small, Unknown)
    assert not isinstance(large, Unknown)
    weights = 4 * 4 * 768 * 768
    assert large - small > 0.9 * weights
    for m in both:
        assert m.figures["peak_memory_bytes"] > m.figures["memory_rise_bytes"] > 0  # type: ignore[operator]


def test_the_conditions_say_what_was_measured_where(
    both: tuple[Measurement, ...], engines: tuple[Engine, Engine]
) -> None:
    conditions = both[0].conditions
    assert conditions["engine_sha256"] == engines[0].sha256
    assert conditions["beside"] == engines[1].sha256
    assert conditions["threads"] == "1"
    assert conditions["runtime"].startswith("onnxruntime 1.")
    assert set(PASSING) <= set(conditions)


def test_the_same_arms_again_would_have_the_same_conditions(
    both: tuple[Measurement, ...], engines: tuple[Engine, Engine]
) -> None:
    arms = [arm("small", engines[0]), arm("large", engines[1])]
    plan = Plan(seconds=0.6, rounds=3, warmup_seconds=0.05)
    assert same_conditions(both[0].conditions, lasting_conditions(arms[0], arms, plan))
    longer = replace(plan, seconds=1.0)
    assert not same_conditions(both[0].conditions, lasting_conditions(arms[0], arms, longer))
    assert not same_conditions(both[0].conditions, lasting_conditions(arms[0], arms[:1], plan))


def test_too_few_calls_for_a_p99_are_doubted(engines: tuple[Engine, Engine]) -> None:
    (found,) = measure_side_by_side(
        [arm("large", engines[1])], seconds=0.02, rounds=2, warmup_seconds=0
    )
    assert len(found.samples) < 662
    assert any(doubt.startswith(f"p99 rests on {len(found.samples)} calls") for doubt in
               found.doubts)  # fmt: skip


def test_a_batch_larger_than_the_samples_repeats_them(engines: tuple[Engine, Engine]) -> None:
    (found,) = measure_side_by_side(
        [arm("small", engines[0], batch=8)], seconds=0.05, rounds=2, warmup_seconds=0
    )
    assert found.batch == 8
    per_call = sum(found.samples) / len(found.samples)
    assert statistics.fps(found).value == pytest.approx(8 / per_call)


def test_an_engine_built_by_another_version_is_doubted(
    engines: tuple[Engine, Engine], tmp_path: Path
) -> None:
    place = tmp_path / "model.onnx"
    place.write_bytes(engines[0].path.read_bytes())
    older = replace(engines[0], path=place, runtime_version="1.0")
    write_manifest(older)
    (found,) = measure_side_by_side(
        [arm("old", older)], seconds=0.05, rounds=2, warmup_seconds=0
    )  # fmt: skip
    assert any("built with onnxruntime 1.0" in doubt for doubt in found.doubts)


def test_what_the_runtime_refuses_names_the_arm(engines: tuple[Engine, Engine]) -> None:
    wrong = replace(arm("small", engines[0]), inputs={"x": np.zeros((2, 31), np.float32)})
    with pytest.raises(InputError, match="cannot run") as refusal:
        measure_side_by_side([wrong], seconds=0.1, rounds=1)
    assert refusal.value.where == 'the arm "small"'


@pytest.mark.parametrize(
    ("inputs", "options"),
    [
        ({}, {}),
        ({"x": np.zeros((0, 32), np.float32)}, {}),
        ({"x": np.zeros((1, 32), np.float32)}, {"rounds": 0}),
        ({"x": np.zeros((1, 32), np.float32)}, {"seconds": 0.0}),
    ],
)
def test_nothing_to_measure_is_refused(
    engines: tuple[Engine, Engine], inputs: dict[str, Array], options: dict[str, float]
) -> None:
    nothing = Arm(name="a", engine=engines[0], inputs=inputs)
    with pytest.raises(InputError):
        measure_side_by_side([nothing], **{"seconds": 0.1, "rounds": 1, **options})  # type: ignore[arg-type]


def test_two_arms_of_one_name_are_refused(engines: tuple[Engine, Engine]) -> None:
    same = arm("same", engines[0])
    with pytest.raises(InputError, match="different names"):
        measure_side_by_side([same, same], seconds=0.1, rounds=1)


def children() -> set[int]:
    """The living children of this process."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(child) for child in (task / "children").read_text().split()}
    return found


@linux
@pytest.mark.parametrize(
    ("number", "error", "said"),
    [
        (signal.SIGSEGV, EdgekitError, 'measured "small" was killed by SIGSEGV'),
        (signal.SIGKILL, ResourceError, 'measured "small" was killed, most likely because'),
    ],
)
def test_a_worker_that_dies_is_an_error_that_names_its_arm(
    engines: tuple[Engine, Engine], number: int, error: type[EdgekitError], said: str
) -> None:
    before = children()

    def kill(fraction: float, words: str) -> None:
        if words.startswith("round 2"):
            for child in children() - before:
                os.kill(child, number)

    with pytest.raises(error, match=said):
        measure_side_by_side(
            [arm("small", engines[0])], seconds=0.2, rounds=2, on_progress=kill
        )  # fmt: skip
    assert children() == before


@linux
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_what_was_taken_before_a_worker_fails_is_handed_over_and_no_more(
    engines: tuple[Engine, Engine], number: int
) -> None:
    before, kept = children(), []

    def hurt(fraction: float, words: str) -> None:
        if words == "round 3 of 4, large":
            for child in children() - before:
                os.kill(child, number)

    plan = Plan(seconds=0.4, rounds=4, warmup_seconds=0, patience_s=1.0)
    with pytest.raises(ResourceError) as raised:
        measure(
            [arm("small", engines[0]), arm("large", engines[1])], plan,
            on_progress=hurt, on_stopped=kept.extend,
        )  # fmt: skip
    assert children() == before
    if number == signal.SIGSTOP:
        assert raised.value.what == 'the process that measured "large" did not answer'
    assert [(m.arm, len(m.rounds)) for m in kept] == [("small", 3), ("large", 2)]
    for m in kept:
        assert len(m.samples) > m.rounds[-1]  # a round is whole, or it is not there
        assert m.broken == (f"broken off: {raised.value}",)


@linux
def test_ctrl_c_keeps_the_rounds_that_are_whole(engines: tuple[Engine, Engine]) -> None:
    kept: list[Measurement] = []

    def interrupt(fraction: float, words: str) -> None:
        if words.startswith("round 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(
            [arm("small", engines[0])], Plan(seconds=0.2, rounds=2, warmup_seconds=0),
            on_progress=interrupt, on_stopped=kept.extend,
        )  # fmt: skip
    assert [len(m.rounds) for m in kept] == [1]
    assert kept[0].broken == ("broken off: KeyboardInterrupt",)


def test_a_run_that_ends_before_its_first_round_hands_nothing_over(
    engines: tuple[Engine, Engine],
) -> None:
    wrong = replace(arm("small", engines[0]), inputs={"x": np.zeros((2, 31), np.float32)})
    kept: list[Measurement] = []
    with pytest.raises(InputError):
        measure([wrong], Plan(seconds=0.1, rounds=1, warmup_seconds=0), on_stopped=kept.extend)
    assert kept == []


def test_every_process_loads_the_engine_anew_and_takes_its_share_of_the_rounds(
    engines: tuple[Engine, Engine],
) -> None:
    seen: list[set[int]] = []
    (found,) = measure(
        [arm("small", engines[0])],
        Plan(seconds=0.15, rounds=5, warmup_seconds=0, processes=3),
        on_progress=lambda fraction, words: seen.append(children()) if "round" in words else None,
    )
    assert len({frozenset(each) for each in seen}) == 3
    assert len(found.rounds) == 5
    assert [found.rounds.index(start) for start in found.processes] == [0, 1, 3]


def test_so_many_calls_are_waited_for(engines: tuple[Engine, Engine]) -> None:
    (found,) = measure(
        [arm("large", engines[1])],
        Plan(seconds=0.01, rounds=2, warmup_seconds=0, least_calls=64),
    )
    assert len(found.samples) >= 64


def test_a_clock_that_is_set_meanwhile_is_doubted_and_moves_no_sample(
    engines: tuple[Engine, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, step = time.time, [0.0]
    monkeypatch.setattr("edgekit.bench.taken.time.time", lambda: real() + step[0])

    def set_clock(fraction: float, words: str) -> None:
        if words.startswith("round 2"):
            step[0] = -7200.0

    (found,) = measure(
        [arm("small", engines[0])], Plan(seconds=0.1, rounds=2, warmup_seconds=0),
        on_progress=set_clock,
    )  # fmt: skip
    assert any(doubt.startswith("the clock went 7200 s back") for doubt in found.doubts)
    assert abs(found.taken_at - real()) < 60
    assert 0 < min(found.samples) <= max(found.samples) < 1


@pytest.mark.parametrize(
    ("scenario", "quantity", "batch"),
    [
        (Scenario(name="multi_stream", samples_per_query=6), "query_latency", 6),
        (Scenario(name="offline"), "offline_interval", 2),
        (Scenario(name="server", rate=200.0), "server_latency", 2),
    ],
)
def test_each_scenario_in_a_real_worker(
    engines: tuple[Engine, Engine], scenario: Scenario, quantity: str, batch: int
) -> None:
    plan = Plan(seconds=0.3, rounds=2, warmup_seconds=0, scenario=scenario)
    (found,) = measure([arm("small", engines[0], batch=2)], plan)
    assert (found.quantity, found.batch) == (quantity, batch)
    assert len(found.samples) > 10
    assert scenario.conditions.items() <= found.conditions.items()
    if scenario.name == "server":
        assert 100 < found.figures["answered_per_s"] < 300  # type: ignore[operator]
        assert found.figures["unanswered"] == 0


@linux
def test_ctrl_c_leaves_no_worker_behind(engines: tuple[Engine, Engine]) -> None:
    before = children()

    def interrupt(fraction: float, words: str) -> None:
        if words.startswith("round 1"):
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()

    with pytest.raises(KeyboardInterrupt):
        measure_side_by_side(
            [arm("small", engines[0]), arm("large", engines[1])],
            seconds=600, rounds=2, warmup_seconds=0, on_progress=interrupt,
        )  # fmt: skip
    assert children() == before


def worker_talk(requests: Sequence[dict[str, object]]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "edgekit.bench.worker"],
        input="".join(json.dumps(request) + "\n" for request in requests),
        env=environment(), capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def test_a_worker_ends_when_its_stdin_closes() -> None:
    done = worker_talk([])
    assert done.returncode == 0
    assert done.stdout == ""


def test_a_worker_loads_nothing_that_it_does_not_need() -> None:
    done = worker_talk([])
    loaded = {line.rsplit("|", 1)[-1].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "numpy" in loaded
    assert not loaded & {"torch", "onnx", "onnx_ir", "pydantic", "onnxruntime", "rich", "psutil"}


@linux
def test_memory_of_this_process_is_read() -> None:
    memory.forget_peak()
    before = memory.resident_bytes()
    block = mmap.mmap(-1, 32 << 20)  # the heap may have as much to spare
    block.write(b"1" * len(block))
    after = memory.peak_bytes()
    assert not isinstance(before, Unknown)
    assert not isinstance(after, Unknown)
    assert after - before > 0.9 * len(block)


def test_an_engine_that_changed_is_not_measured(
    engines: tuple[Engine, Engine], tmp_path: Path
) -> None:
    place = tmp_path / "model.onnx"
    files.write_bytes(place, engines[0].path.read_bytes())
    engine = replace(engines[0], path=place)
    write_manifest(engine)
    place.write_bytes(b"other")
    with pytest.raises(InputError, match="not the one that its manifest describes"):
        measure_side_by_side([arm("a", engine)], seconds=0.1, rounds=1)
