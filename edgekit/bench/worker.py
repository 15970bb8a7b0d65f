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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.bench import loops, memory
from edgekit.bench.loops import Rotation, Taken, Until
from edgekit.engines.base import runtime_module
from edgekit.engines.manifest import load_engine
from edgekit.engines.processes.child import lines_from_parent, own_stdout
from edgekit.errors import EdgekitError, MissingPackageError, ResourceError
from edgekit.values import Array, Feeds, Session, figure_to_json, preprocessing_from_json

# Within a turn: caches and clocks that another arm left behind come back before samples count.
_SETTLE_SHARE = 0.1
_SETTLE_MOST_S = 0.1

Loop = Callable[[Session, Rotation, Until], Taken]


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
            elif request["do"] == "from_pixels":
                assert loaded is not None
                answer = loaded.from_pixels(request)
            else:
                assert loaded is not None
                answer = loaded.turn(request)
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
        batches = loops.whole_batches(_arrays(Path(request["inputs"])), request["batch"])
        self.harness_ns = loops.harness_ns(batches[0])
        self.rotation = Rotation(batches)
        self.loop = _loop(request)
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
            "harness_ns": self.harness_ns,
            "pid": os.getpid(),
            "notes": list(getattr(self.session, "notes", ())),
        }

    def from_pixels(self, request: Mapping[str, Any]) -> dict[str, object]:
        """Writes the samples of calls that begin with pixels: whole, preparing, execution."""
        batches = loops.whole_batches(_arrays(Path(request["pixels"])), request["batch"])
        dtypes = request["dtypes"]
        preprocessing = preprocessing_from_json(request["preprocessing"])

        def prepare(stored: Feeds) -> Feeds:
            return {
                name: preprocessing.apply(a).astype(dtypes[name], copy=False)
                if name in dtypes
                else a
                for name, a in stored.items()
            }

        until = Until(seconds=request["seconds"])
        taken = loops.from_pixels(self.session, Rotation(batches), until, prepare)
        return self._written(taken, request)

    def turn(self, request: Mapping[str, Any]) -> dict[str, object]:
        """Writes one turn's samples: a row each of whole queries, staging, and execution."""
        seconds = float(request["seconds"])
        settle = min(_SETTLE_SHARE * seconds, _SETTLE_MOST_S)
        loops.one_after_the_other(self.session, self.rotation, Until(seconds=settle))
        until = Until(
            seconds=seconds - settle, least=request["least"], most_seconds=request["most_seconds"]
        )
        begun = time.perf_counter()
        taken = self.loop(self.session, self.rotation, until)
        spent = time.perf_counter() - begun
        return {**self._written(taken, request), "loop_s": spent}

    def _written(self, taken: Taken, request: Mapping[str, Any]) -> dict[str, object]:
        answer = self.account()
        with Path(request["samples"]).open("wb") as stream:
            for row in (taken.whole, taken.stage, taken.execute):
                row.tofile(stream)
        return {**answer, "unanswered": taken.unanswered}


def _arrays(path: Path) -> dict[str, Array]:
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}


def _loop(request: Mapping[str, Any]) -> Loop:
    """The loop of the scenario that is asked for."""
    name = request["scenario"]
    if name == "multi_stream":
        calls = -(-request["samples_per_query"] // request["batch"])
        return lambda session, rotation, until: loops.several_at_once(
            session, rotation, until, calls
        )
    if name == "server":
        gaps = loops.poisson_gaps(request["rate"], request["seed"])
        return lambda session, rotation, until: loops.arriving(session, rotation, until, gaps)
    return {"single_stream": loops.one_after_the_other, "offline": loops.back_to_back}[name]


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
