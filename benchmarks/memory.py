"""The memory that a measurement tells of an engine's process, beside the system's own tools.

python benchmarks/memory.py [MODEL.onnx …] [--runs 3]

Each model (without one: a small network of this file's own, and one of 64 MB of weights) becomes an
engine for this CPU, and runs in the process that `edgekit bench` measures in, under GNU time:

    peak        VmHWM as measured       Maximum resident set size of `time -v`
    resident    Rss as measured         Rss of /proc/PID/smaps_rollup, read from outside
    unique      USS as measured         Private_Clean + Private_Dirty of the same file

Exits 1 where one of them is off by more than 2%.
"""

from __future__ import annotations

import argparse
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper

from edgekit.bench.arm_process import ArmProcess
from edgekit.bench.workload import Arm, Plan
from edgekit.engines.base import Engine, EngineRequest, runtime_module
from edgekit.models.source import load
from edgekit.targets import load_target

LIMIT = 0.02
WORKER = "edgekit.bench.worker"


@dataclass(frozen=True)
class Row:
    """One quantity of one process, in bytes: as measured, as the system's tool says, which tool."""

    what: str
    ours: float
    theirs: float
    tool: str

    @property
    def off(self) -> float:
        return abs(self.ours / self.theirs - 1)


def network(width: int, layers: int) -> onnx.ModelProto:
    """A chain of products of matrices: 4 * width^2 bytes of weights a layer."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for index in range(layers):
        values = rng.normal(0, width**-0.5, (width, width)).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"weight{index}"))
        nodes.append(helper.make_node("MatMul", [f"x{index}", f"weight{index}"], [f"x{index + 1}"]))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
        for name in ("x0", f"x{layers}")
    ]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def engine_of(path: Path, folder: Path) -> Engine:
    """The model's engine for this CPU."""
    request = EngineRequest(
        model_path=path, name=path.stem, target=load_target("cpu"), precision="fp32", threads=1
    )
    folder.mkdir()
    return runtime_module("onnxruntime").build(request, folder)


def inputs_of(path: Path) -> dict[str, np.ndarray]:
    """Four samples of noise for each input; a dynamic size is one."""
    rng = np.random.default_rng(1)
    found = {}
    for spec in load(path).inputs:
        shape = [size if isinstance(size, int) else 1 for size in spec.shape]
        found[spec.name] = rng.normal(size=(4, *shape[1:])).astype(spec.dtype)
    return found


def measured(engine: Engine, inputs: Mapping[str, np.ndarray], time_tool: str) -> list[Row]:
    """The worker's own account beside those of the tools that look at its process."""
    with tempfile.TemporaryDirectory() as place, tempfile.TemporaryFile("w+") as said:
        told, samples = Path(place) / "time.txt", Path(place) / "inputs.npz"
        np.savez(samples, **inputs)
        with subprocess.Popen(
            [time_tool, "-v", "-o", str(told), sys.executable, "-m", WORKER],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True,
        ) as process:  # fmt: skip
            worker = ArmProcess(
                arm=Arm(name="it", engine=engine, inputs=inputs, threads=1),
                plan=Plan(seconds=1.0, rounds=1, warmup_seconds=0.0),
                inputs=samples, process=process, said=said,
            )  # fmt: skip
            assert process.stdout is not None
            reader = threading.Thread(target=read, args=(process.stdout, worker.answers))
            reader.start()
            worker.load()
            account = worker.turn(1.0).account
            rollup = smaps_rollup(child_of(process.pid))  # it waits for the next request
            assert process.stdin is not None
            process.stdin.close()
            process.wait()
            reader.join()
        peak = re.search(r"Maximum resident set size \(kbytes\): (\d+)", told.read_text())
    assert peak is not None
    unique = rollup["Private_Clean"] + rollup["Private_Dirty"]
    return [
        Row("peak", float(account["peak_bytes"]), float(peak[1]) * 1024, "time -v"),
        Row("resident", float(account["steady_bytes"]), rollup["Rss"], "smaps_rollup"),
        Row("unique", float(account["unique_bytes"]), unique, "smaps_rollup"),
    ]


def read(lines: Iterable[str], answers: queue.Queue[str]) -> None:
    for line in lines:
        answers.put(line)


def child_of(pid: int) -> int:
    """The process that `time` started."""
    (child,) = psutil.Process(pid).children()
    return child.pid


def smaps_rollup(pid: int) -> Mapping[str, float]:
    """Bytes by name."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {name: 1024.0 * int(kb) for name, kb in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.M)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    time_tool = shutil.which("time")
    if time_tool is None:
        print("GNU time is not here: apt-get install time")
        return 5
    worst = 0.0
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        models = options.models
        if not models:
            models = [folder / "small.onnx", folder / "large.onnx"]
            onnx.save(network(64, 4), models[0])
            onnx.save(network(1024, 16), models[1])
        print(f"{'engine':<12} {'what':<9} {'measured MB':>12} {'beside MB':>10} {'off':>7}  by")
        for number, path in enumerate(models):
            engine = engine_of(path, folder / f"engine{number}")
            inputs = inputs_of(path)
            for _ in range(options.runs):
                for row in measured(engine, inputs, time_tool):
                    worst = max(worst, row.off)
                    print(
                        f"{path.stem:<12} {row.what:<9} {row.ours / 1e6:>12.2f} "
                        f"{row.theirs / 1e6:>10.2f} {100 * row.off:>6.2f}%  {row.tool}"
                    )
    print(f"the worst is off by {100 * worst:.2f}%; at most {100 * LIMIT:g}% is allowed")
    return int(worst > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
