"""The process that one arm is measured in: `python -m edgekit.bench.worker`.

It reads one JSON request a line from stdin and answers each with one JSON line on stdout:
`load` opens the engine, `turn` measures for some seconds and leaves its samples in a file. It ends
when stdin closes. It imports numpy, the engine's runtime and little else: its memory is part of
what is measured.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import time
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bench import memory
from edgekit.engines.base import runtime_module
from edgekit.engines.manifest import load_engine
from edgekit.engines.processes.child import lines_from_parent, own_stdout
from edgekit.errors import EdgekitError, MissingPackageError, ResourceError
from edgekit.values import Array, Session, figure_to_json

# Within a turn: caches and clocks that another arm left behind come back before samples count.
_SETTLE_SHARE = 0.1
_SETTLE_MOST_S = 0.1


def main() -> None:
    """Answers requests until the parent closes stdin."""
    answers = os.fdopen(own_stdout(), "w")
    lines = lines_from_parent()
    loaded: _Loaded | None = None
    while True:
        request = json.loads(lines.get())
        answer: dict[str, object]
        try:
            if request["do"] == "load":
                loaded = _Loaded(request)
                answer = loaded.account()
            else:
                assert loaded is not None
                answer = loaded.turn(request["seconds"], Path(request["samples"]))
        except EdgekitError as error:
            answer = {"error": _told(error)}
        except MemoryError as error:
            answer = {"error": _told(ResourceError("the memory ran out", got=str(error)))}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class _Loaded:
    """An open engine, its batches, and what the process's memory was before it was opened."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        engine = load_engine(Path(request["engine"]))
        runtime = runtime_module(engine.runtime)
        with contextlib.suppress(ImportError):  # `open` says so
            importlib.import_module(runtime.PACKAGE)
        self.batches = _batches(Path(request["inputs"]), request["batch"])
        self.next = 0
        gc.collect()
        memory.forget_peak()
        self.before = memory.resident_bytes()
        self.session: Session = runtime.open(engine, threads=request["threads"])

    def account(self) -> dict[str, object]:
        """What the memory is, and what the session says of its own run, where it says anything."""
        steady = memory.process_memory()
        return {
            "before_bytes": figure_to_json(self.before),
            "peak_bytes": figure_to_json(memory.peak_bytes()),
            "steady_bytes": figure_to_json(steady.resident_bytes),
            "unique_bytes": figure_to_json(steady.unique_bytes),
            "notes": list(getattr(self.session, "notes", ())),
        }

    def turn(self, seconds: float, samples: Path) -> dict[str, object]:
        """Writes one turn's latencies, int64 nanoseconds: of whole calls, then of `execute`."""
        settle = min(_SETTLE_SHARE * seconds, _SETTLE_MOST_S)
        self._measure(settle)
        whole, alone = self._measure(seconds - settle)
        answer = self.account()
        with samples.open("wb") as stream:
            whole.tofile(stream)
            alone.tofile(stream)
        return answer

    def _measure(self, seconds: float) -> tuple[array[int], array[int]]:
        clock, session, batches = time.perf_counter_ns, self.session, self.batches
        whole, alone = array("q"), array("q")  # 8 bytes a sample: the peak is the engine's
        gc.disable()  # a collection is Python's pause, not the engine's
        deadline = clock() + int(seconds * 1e9)
        end = 0
        while end < deadline:
            feeds = batches[self.next]
            self.next = (self.next + 1) % len(batches)
            start = clock()
            session.stage(feeds)
            staged = clock()
            session.execute()
            executed = clock()
            session.fetch()
            end = clock()
            whole.append(end - start)
            alone.append(executed - staged)
        gc.enable()
        return whole, alone


def _batches(inputs: Path, batch: int) -> Sequence[Mapping[str, Array]]:
    """Whole batches of the stored samples, each contiguous; a set smaller than one is repeated."""
    with np.load(inputs, allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    count = min(len(values) for values in arrays.values())
    order = np.resize(np.arange(count), max(batch, count - count % batch)).reshape(-1, batch)
    return [{name: values[rows] for name, values in arrays.items()} for rows in order]


def _told(error: EdgekitError) -> dict[str, str]:
    kinds = {ResourceError: "resource", MissingPackageError: "missing"}
    return {
        "kind": kinds.get(type(error), "input"),
        "what": error.what,
        "got": error.got,
        "wanted": error.wanted,
        "hint": error.hint,
    }


if __name__ == "__main__":
    main()
