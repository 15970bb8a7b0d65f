"""What the harness adds to a Session's call, against a bare loop around ONNX Runtime.

python benchmarks/overhead.py [MODEL.onnx …] [--seconds 1.0] [--rounds 11]

Both call the same onnxruntime session in turns, in one process: `bare` binds the next input, runs
`run_with_iobinding` and copies the outputs out, with two readings of the clock; the harness is
edgekit's own loop over the same session. The limit is 3 us or 1% of a call, whichever is larger.
Then edgekit's worker measures the engine in a process of its own, and so does the bare loop, in
turns; and ONNX Runtime's own profile tells `model_run` of the very calls that our loop measured.
Each of the two may differ by 2%, or by those 3 us where they are more.

On a machine that others use, the medians are of each program's undisturbed calls: the quantity
compared is where the lowest tenth ends, and the load is printed. Exit code 1 where a limit is
broken.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper, save

from edgekit.bench import loops, statistics
from edgekit.bench.load import OtherLoad
from edgekit.bench.runner import measure
from edgekit.bench.workload import Arm, Plan
from edgekit.engines import onnxruntime as runtime
from edgekit.engines.base import Engine, EngineRequest
from edgekit.engines.onnxruntime_session import OPENED_LEVEL, OnnxRuntimeSession, session_options
from edgekit.engines.session_settings import SessionSettings
from edgekit.targets import load_target
from edgekit.values import Unknown

FASHION = Path(__file__).resolve().parent.parent / "examples" / "fashion" / "fashion.onnx"
CHAINS = ((64, 2), (512, 4), (1024, 8))  # width, layers: 5 us to 2 ms a call
BATCHES = 8
MOST_S, MOST_SHARE, MOST_APART = 3e-6, 0.01, 0.02


def chain(folder: Path, width: int, layers: int) -> Path:
    """Square products: a call of tens of microseconds to milliseconds, by its width."""
    rng = np.random.default_rng(0)
    names = ["x", *(f"h{i}" for i in range(layers - 1)), "y"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(layers)],
        f"chain{width}",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, width])],
        [
            numpy_helper.from_array(
                rng.normal(0, width**-0.5, (width, width)).astype(np.float32), f"w{i}"
            )
            for i in range(layers)
        ],
    )
    path = folder / f"chain{width}.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def native(path: Path, profile: str = "") -> Any:
    options = session_options(ort, SessionSettings(threads=1), OPENED_LEVEL)
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def feeds_of(session: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [
        {
            node.name: rng.standard_normal(
                [s if isinstance(s, int) else 1 for s in node.shape]
            ).astype(np.float32)
            for node in session.get_inputs()
        }
        for _ in range(BATCHES)
    ]


def bare(session: Any, batches: list[dict[str, Any]], seconds: float) -> np.ndarray:
    """Nanoseconds a call; the outputs are bound once."""
    binding = session.io_binding()
    for node in session.get_outputs():
        binding.bind_output(node.name)
    run, copy, bind = (
        session.run_with_iobinding,
        binding.copy_outputs_to_cpu,
        binding.bind_cpu_input,
    )
    clock, taken, index = time.perf_counter_ns, [], 0
    gc.disable()
    deadline = clock() + int(seconds * 1e9)
    end = 0
    while end < deadline:
        feeds = batches[index % BATCHES]
        index += 1
        start = clock()
        for name, array in feeds.items():
            bind(name, array)
        run(binding)
        copy()
        end = clock()
        taken.append(end - start)
    gc.enable()
    return np.asarray(taken)


def in_turns(path: Path, seconds: float, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """The typical call of each round, seconds: of the bare loop, and of ours around it."""
    session = native(path)
    batches = feeds_of(session)
    ours = OnnxRuntimeSession(session, where=str(path))
    rotation, part = loops.Rotation(batches), loops.Until(seconds=seconds / rounds)
    bare(session, batches, 0.1)
    found: tuple[list[float], list[float]] = ([], [])
    for index in range(rounds):
        for which in (0, 1) if index % 2 == 0 else (1, 0):
            samples = (
                np.asarray(loops.one_after_the_other(ours, rotation, part).whole)
                if which
                else bare(session, batches, seconds / rounds)
            )
            found[which].append(typical(samples) / 1e9)
    return np.asarray(found[0]), np.asarray(found[1])


def typical(samples: Any) -> float:
    """The lowest tenth ends there: where nobody takes the core away it is close to the median."""
    return float(np.quantile(np.asarray(samples), 0.1))


def engine_of(path: Path, folder: Path) -> Engine:
    folder.mkdir()
    return runtime.build(
        EngineRequest(
            model_path=path, name=path.stem, target=load_target("cpu"), precision="fp32", threads=1
        ),
        folder,
    )  # fmt: skip


def bare_process(engine: Engine, seconds: float) -> float:
    """The typical call of the bare loop in a process of its own, seconds."""
    done = subprocess.run(
        [sys.executable, __file__, "--bare", str(engine.path), "--seconds", str(seconds)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(json.loads(done.stdout))


def ours_process(engine: Engine, seconds: float) -> float:
    """The typical call of edgekit's worker, seconds."""
    feeds = feeds_of(native(engine.path))
    inputs = {name: np.concatenate([f[name] for f in feeds]) for name in feeds[0]}
    (found,) = measure(
        [Arm(name="ours", engine=engine, inputs=inputs, threads=1)],
        Plan(seconds=seconds, rounds=1, warmup_seconds=0.1),
    )
    return typical(found.samples)


def one_model(path: Path, folder: Path, seconds: float, rounds: int) -> bool:
    alone, with_us = in_turns(path, seconds, rounds)
    added, call = float(np.median(with_us - alone)), float(np.median(alone))
    limit = max(MOST_S, MOST_SHARE * call)
    good = added <= limit
    print(f"| {path.stem} | {1e6 * call:.1f} | {1e6 * added:+.2f} | {1e6 * limit:.2f} |", end=" ")
    engine = engine_of(path, folder / f"{path.stem}-engine")
    pairs = []
    for _ in range(max(3, rounds // 2)):
        pairs.append((bare_process(engine, seconds / 3), ours_process(engine, seconds / 3)))
    apart = float(np.median([ours / theirs for theirs, ours in pairs])) - 1
    own, beside = in_its_profile(path, folder, seconds)
    allowed = max(MOST_APART, MOST_S / call)
    good = good and abs(apart) <= allowed and abs(beside) <= allowed
    print(
        f"{100 * apart:+.1f}% | {1e6 * own:.0f} | {100 * beside:+.1f}% | {100 * allowed:.1f}% | "
        f"{'kept' if good else 'broken'} |",
        flush=True,
    )
    return good


def in_its_profile(path: Path, folder: Path, seconds: float) -> tuple[float, float]:
    """The median `model_run` of ONNX Runtime's profile, seconds, and how far our median of the
    very same calls is from it."""
    session = native(path, profile=str(folder / path.stem))
    rotation = loops.Rotation(feeds_of(session))
    ours = OnnxRuntimeSession(session, where=str(path))
    taken = loops.one_after_the_other(ours, rotation, loops.Until(seconds=min(seconds, 2.0)))
    events = json.loads(Path(session.end_profiling()).read_text())
    runs = [event["dur"] for event in events if event["name"] == "model_run"]
    assert len(runs) == len(taken.execute)
    own = float(np.median(runs)) / 1e6
    return own, statistics.percentile(taken.execute, 50) / 1e9 / own - 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare is not None:
        session = native(options.bare)
        batches = feeds_of(session)
        bare(session, batches, 0.2)
        print(typical(bare(session, batches, options.seconds)) / 1e9)
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    load = OtherLoad()
    print("| model | bare, us | added, us | at most | own process | model_run, us | ours beside "
          "it | at most | |")  # fmt: skip
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        chains = [chain(folder, width, layers) for width, layers in CHAINS]
        models = options.models or [FASHION, *chains]
        good = [one_model(path, folder, options.seconds, options.rounds) for path in models]
    share = load.share()
    if not isinstance(share, Unknown):
        print(f"\nOther programs used {100 * share:.0f}% of the processors meanwhile.")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
