"""Pairs of a small engine, taken on this machine as it is, as traces for `flakes.py`.

A pair is one engine measured against itself, or against itself in a Session that does a known share
more of work: every call burns that share of the processor time of an undisturbed call on top. Eight
times two new processes load the engine and take turns A B B A; with starting them a pair is 15 s at
most. In a loaded pair another process keeps one core busy for the whole time.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as _onnxruntime  # noqa: F401
from onnx import TensorProto, helper

from edgekit.engines import onnxruntime
from edgekit.engines.base import EngineRequest
from edgekit.engines.manifest import load_engine
from edgekit.targets import load_target
from edgekit.values import Array, Feeds, Session

FORK = multiprocessing.get_context("fork")
EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "fashion"
SLOWER = (0.0, 0.05, 0.10)
PAIR_S = 15.0
PROCESSES = 8
TURN_S = 0.02
SETTLING_CALLS = 2
WARM_UP_S = 0.2
UNDISTURBED = 0.1  # the quantile of a busy machine's calls that nobody disturbed


@dataclass
class Slowed:
    """A Session whose every call takes `extra_ns` of processor time more."""

    session: Session
    extra_ns: int

    def stage(self, feeds: Feeds) -> None:
        self.session.stage(feeds)

    def execute(self) -> None:
        self.session.execute()
        if self.extra_ns:
            burn(self.extra_ns)

    def fetch(self) -> dict[str, Array]:
        return self.session.fetch()


def burn(wanted_ns: int) -> None:
    until = time.thread_time_ns() + wanted_ns
    while time.thread_time_ns() < until:
        pass


def cost_of_burning_nothing_ns() -> float:
    """What reading the clock takes on top of the time that is burnt."""
    costs = []
    for _ in range(2000):
        begun = time.perf_counter_ns()
        burn(0)
        costs.append(time.perf_counter_ns() - begun)
    return float(np.median(costs))


def work(engine: Path, extra_ns: int, asked: Connection) -> None:
    """Answers every number of seconds with that long a turn: its latencies in ns."""
    with np.load(EXAMPLE / "evaluation.npz") as stored, onnxruntime.open(load_engine(engine)) as s:
        name = s.inputs[0].name
        images = (stored[name][:64] / 255 - 0.286) / 0.353  # as the example's recipe says
        feeds = [{name: images[i : i + 1].astype(np.float32)} for i in range(len(images))]
        session = Slowed(session=s, extra_ns=extra_ns)
        index, clock = 0, time.perf_counter_ns
        while seconds := asked.recv():
            deadline, calls = clock() + int(seconds * 1e9), 0
            taken = array("q")
            end = 0
            while end < deadline or not taken:
                calls += 1
                batch = feeds[index % len(feeds)]
                index += 1
                start = clock()
                session.stage(batch)
                session.execute()
                session.fetch()
                end = clock()
                if calls > SETTLING_CALLS:
                    taken.append(end - start)
            asked.send_bytes(taken.tobytes())


@contextlib.contextmanager
def worker(engine: Path, extra_ns: int) -> Iterator[Connection]:
    """A new process that loads the engine; what it imports is there already, to save time."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=work, args=(engine, extra_ns, theirs), daemon=True)
    process.start()
    try:
        yield ours
    finally:
        ours.send(0.0)
        process.join()


def turn(process: Connection, seconds: float) -> Array:
    process.send(seconds)
    return np.frombuffer(process.recv_bytes(), np.int64)


@contextlib.contextmanager
def a_busy_core(wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            yield
        finally:
            process.kill()


def take_pair(engine: Path, extra_ns: int, loaded: bool) -> dict[str, Array]:
    """Samples of both arms in ns, the lengths of their turns, and which process each is from."""
    begun = time.monotonic()
    samples: dict[str, list[Array]] = {"a": [], "b": []}
    owners: list[int] = []
    with a_busy_core(loaded):
        for index in range(PROCESSES):
            deadline = begun + (index + 1) * (PAIR_S - 0.5) / PROCESSES
            with worker(engine, 0) as a, worker(engine, extra_ns) as b:
                for process in (a, b):
                    turn(process, WARM_UP_S)
                while time.monotonic() < deadline:
                    for arm in "abba":
                        samples[arm].append(turn(a if arm == "a" else b, TURN_S))
                    owners += [index, index]
    found = {"owners": np.array(owners, np.int16), "seconds": np.array(time.monotonic() - begun)}
    for arm, turns in samples.items():
        found[arm] = np.concatenate(turns).astype(np.uint32)
        found[f"{arm}_lengths"] = np.array([len(t) for t in turns], np.int32)
    return found


def small_network() -> onnx.ModelProto:
    """Three convolutions over an image of the example: about 0.3 ms."""
    rng = np.random.default_rng(0)
    nodes, weights, previous, channels = [], [], "image", 1
    for index, wide in enumerate((48, 96, 96)):
        weight = rng.normal(size=(wide, channels, 3, 3)).astype(np.float32) / (3 * channels**0.5)
        weights.append(onnx.numpy_helper.from_array(weight, f"w{index}"))
        strides = [1, 1] if index == 0 else [2, 2]
        nodes += [
            helper.make_node(
                "Conv", [previous, f"w{index}"], [f"c{index}"], pads=[1, 1, 1, 1], strides=strides
            ),
            helper.make_node("Relu", [f"c{index}"], [f"r{index}"]),
        ]
        previous, channels = f"r{index}", wide
    nodes.append(helper.make_node("GlobalAveragePool", [previous], ["y"]))
    shapes = {"image": ["n", 1, 28, 28], "y": ["n", channels, 1, 1]}
    values = {k: helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in shapes.items()}
    graph = helper.make_graph(nodes, "small", [values["image"]], [values["y"]], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def built(folder: Path) -> Path:
    """The small network's engine, one thread, in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "source.onnx"
    onnx.save(small_network(), source)
    request = EngineRequest(
        model_path=source, name="small", target=load_target("cpu"),
        precision="fp32", threads=1, batch=(1, 1, 1),
    )  # fmt: skip
    return onnxruntime.build(request, folder).path


def take(folder: Path, pairs: int) -> None:
    """Takes so many pairs of every kind, the kinds in turn, and prints what load there was."""
    folder.mkdir(parents=True, exist_ok=True)
    engine = built(folder / "engine")
    with worker(engine, 0) as process:
        turn(process, WARM_UP_S)
        undisturbed = float(np.quantile(turn(process, 2.0), UNDISTURBED))
    print(f"an undisturbed call takes {undisturbed / 1e6:.3f} ms", file=sys.stderr)
    cost = cost_of_burning_nothing_ns()
    for number in range(pairs):
        for loaded in (False, True):
            for share in SLOWER:
                found = take_pair(engine, max(0, int(share * undisturbed - cost)), loaded)
                found["load"] = np.array(os.getloadavg()[0])
                name = f"{100 * share:02.0f}-{'loaded' if loaded else 'alone'}-{number}.npz"
                np.savez_compressed(folder / name, **found)
                print(
                    f"{name}: {found['seconds']:.1f} s, {len(found['owners'])} rounds, "
                    f"{len(found['a'])} calls, load average {found['load']:.1f}",
                    file=sys.stderr, flush=True,
                )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pairs", type=int, default=4)
    asked = parser.parse_args()
    take(asked.folder, asked.pairs)


if __name__ == "__main__":
    main()
