"""A trtexec that is none: it prints and exports what the real one does, and ONNX Runtime answers.

Its engine is the ONNX file behind a header. It refuses every option that it does not know. Files
beside it tell what goes wrong (`fault`) and the number in its banner (`version`).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import sys
import time
from pathlib import Path

HEADER = b"not a plan, but long enough to be taken for one\n"
OPTIONS = {
    "onnx", "saveEngine", "loadEngine", "memPoolSize", "workspace", "int8", "fp16", "minShapes",
    "optShapes", "maxShapes", "shapes", "loadInputs", "iterations", "duration", "warmUp",
    "exportTimes", "exportProfile", "exportLayerInfo", "exportOutput", "dumpProfile", "buildOnly",
    "profilingVerbosity", "timingCacheFile", "skipInference", "noDataTransfers", "useSpinWait",
    "useCudaGraph", "useDLACore", "allowGPUFallback", "includeDataTransfers", "noCudaGraph",
}  # fmt: skip


def install(folder: Path, *, fault: str = "", version: str = "100300") -> Path:
    """A `trtexec` in the folder that is this file, run by this Python."""
    place = folder / "trtexec"
    folder.mkdir(parents=True, exist_ok=True)
    this = Path(__file__).resolve()
    place.write_text(
        f'#!/bin/sh\nexport FAKE_PLACE="$(dirname "$0")"\nexec "{sys.executable}" "{this}" "$@"\n'
    )
    (folder / "fault").write_text(fault)
    (folder / "version").write_text(version)
    place.chmod(place.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return place


def is_at_work(word: str) -> bool:
    """Whether a process has the word in its command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_bytes().decode(errors="replace"))
        except OSError:
            continue
    return any(word in line for line in found)


def say(level: str, text: str) -> None:
    print(f"[11/24/2026-10:00:00] [{level}] {text}", flush=True)


def main(arguments: list[str]) -> int:
    place = Path(os.environ["FAKE_PLACE"])
    fault, number = (place / "fault").read_text(), (place / "version").read_text()
    name = f"TensorRT.trtexec [TensorRT v{number}]" if number else "TensorRT.trtexec"
    command = " ".join(["trtexec", *arguments])
    print(f"&&&& RUNNING {name} # {command}", flush=True)
    if "--help" in arguments:
        return 0
    given = dict(argument.removeprefix("--").partition("=")[::2] for argument in arguments)
    if unknown := set(given) - OPTIONS:
        say("E", f"Unknown option: --{' --'.join(sorted(unknown))}")
        print(f"&&&& FAILED {name} # {command}")
        return 1
    with open("argv.txt", "a") as stream:
        stream.write(json.dumps(arguments) + "\n")
    code = build(given, fault) if "saveEngine" in given else infer(given, fault)
    print(f"&&&& {'FAILED' if code else 'PASSED'} {name} # {command}")
    return code


def build(given: dict[str, str], fault: str) -> int:
    say("I", "=== Build Options ===")
    if fault == "slow-build":
        time.sleep(60)
    if fault == "killed":
        os.kill(os.getpid(), 9)
    if fault == "refused":
        say("E", 'ModelImporter.cpp:948: While parsing node number 7 [Mod -> "y"]:')
        say("E", "ModelImporter.cpp:951: ERROR: No importer registered for op: Mod")
        return 1
    if fault == "full-disk":
        Path(given["saveEngine"]).write_bytes(HEADER)
        say("E", f"Could not write {given['saveEngine']}: No space left on device")
        return 1
    say("W", "Using an engine plan file across different models of devices is not recommended")
    with open(given["saveEngine"], "wb") as stream:
        stream.write(HEADER)
        with open(given["onnx"], "rb") as source:
            shutil.copyfileobj(source, stream)
    Path(given["timingCacheFile"]).write_bytes(b"timing")
    say("I", "Total Host Persistent Memory: 8192")
    say("I", "Total Device Persistent Memory: 1024")
    say("I", "Total Scratch Memory: 512")
    say("I", "[MemUsageStats] Peak memory usage of TRT CPU/GPU memory allocators: CPU 18 MiB, "
             "GPU 227 MiB")  # fmt: skip
    say("I", "Engine built in 12.5 sec.")
    return 0


def infer(given: dict[str, str], fault: str) -> int:
    engine = Path(given["loadEngine"]).read_bytes()
    assert engine.startswith(HEADER)
    say("I", "Loaded engine with size: 2 MiB")
    if fault == "slow-run":
        time.sleep(60)
    if "exportOutput" in given:
        answer(engine.removeprefix(HEADER), given, fault)
    if "exportTimes" in given:
        measure(given, fault)
    if "exportProfile" in given:
        Path(given["exportProfile"]).write_text(json.dumps([
            {"count": 10},
            {"name": "conv", "timeMs": 5.0, "averageMs": 0.5, "medianMs": 0.49, "percentage": 62.5},
            {"name": "fc", "timeMs": 3.0, "averageMs": 0.3, "medianMs": 0.3, "percentage": 37.5},
        ]))  # fmt: skip
        Path(given["exportLayerInfo"]).write_text('{"Layers": ["conv", "fc"], "Bindings": []}')
    return 0


def split(text: str) -> dict[str, str]:
    """name:value pairs, a name in single quotes whole."""
    found = re.findall(r"(?:'([^']*)'|([^:,']+)):([^,]+)(?:,|$)", text)
    return {quoted or plain: value for quoted, plain, value in found}


def answer(model: bytes, given: dict[str, str], fault: str) -> None:
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    files, shapes = split(given["loadInputs"]), split(given.get("shapes", ""))
    feeds = {}
    for spec in session.get_inputs():
        shape = shapes[spec.name].split("x") if spec.name in shapes else spec.shape
        values = np.fromfile(files[spec.name], np.float32)
        feeds[spec.name] = values.reshape([int(size) for size in shape])
    outputs = []
    for spec, array in zip(session.get_outputs(), session.run(None, feeds), strict=True):
        sign = -1 if fault == "wrong-answers" else 1
        values = ", ".join("nan" if fault == "nan" else f"{sign * v:.9g}" for v in array.ravel())
        outputs.append(
            f'{{ "name" : "{spec.name}"\n, "dimensions" : "{"x".join(map(str, array.shape))}"\n'
            f', "values" : [ {values} ]\n}}'
        )
    Path(given["exportOutput"]).write_text("[\n" + ",\n".join(outputs) + "\n]\n")


def measure(given: dict[str, str], fault: str) -> None:
    if "--useCudaGraph" in sys.argv and fault != "no-graph":
        say("I", "Capturing CUDA graph for the current execution context")
        say("I", "Successfully captured CUDA graph for the current execution context")
    queries = []
    for k in range(700):
        ms = 2.0 + 0.01 * (k % 10)
        start = 2.1 * k
        queries.append({
            "startEnqMs": start, "endEnqMs": start + 0.1, "startH2dMs": start, "endH2dMs": start,
            "startComputeMs": start, "endComputeMs": start + ms, "startD2hMs": start + ms,
            "endD2hMs": start + ms, "h2dMs": 0.0, "computeMs": ms, "d2hMs": 0.0, "latencyMs": ms,
        })  # fmt: skip
    text = json.dumps(queries)
    Path(given["exportTimes"]).write_text(text[: len(text) // 2] if fault == "half-times" else text)
    if fault == "unstable":
        say("W", "* GPU compute time is unstable, with coefficient of variance = 12.3%.")
        say("W", "* Throughput may be bound by Enqueue Time rather than GPU Compute and the GPU "
                 "may be under-utilized.")  # fmt: skip
    say("I", "=== Performance summary ===")
    say("I", "Throughput: 480.25 qps")
    line = ("min = {0} ms, max = {1} ms, mean = {2} ms, median = {2} ms, percentile(90%) = {1} ms, "
            "percentile(95%) = {1} ms, percentile(99%) = {1} ms")  # fmt: skip
    say("I", "Latency: " + line.format(2, 2.09, 2.045))
    say("I", "Enqueue Time: " + line.format(0.1, 0.2, 0.15))
    say("I", "H2D Latency: " + line.format(0, 0, 0))
    say("I", "GPU Compute Time: " + line.format(2, 2.09, 2.045))
    say("I", "D2H Latency: " + line.format(0, 0, 0))
    say("I", "Total Host Walltime: 1.4576 s")
    say("I", "Total GPU Compute Time: 1.4315 s")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
