"""Where steps are made, or only listed: the cache, who is told, and what was done so far."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from edgekit.engines.base import EngineRequest
from edgekit.errors import InputError
from edgekit.pipeline.cache import Cache, Step
from edgekit.pipeline.result import OnEvent, StepEvent, StepRecord

OnFraction = Callable[[float, str], None]
Describe = Callable[[Path], str]

TIMING_FOLDER = "timing"
"""In the cache's folder: TensorRT's timing caches."""


@dataclass
class Workshop:
    """One build's run through its steps. With `listing`, nothing is made: steps are only noted."""

    cache: Cache
    on_event: OnEvent
    listing: bool = False
    records: list[StepRecord] = field(default_factory=list)
    _seen: set[str] = field(default_factory=set)
    _refused: dict[str, InputError] = field(default_factory=dict)

    def progress_of(self, step: str, target: str = "") -> OnFraction:
        """The function by which a running step says how far it is."""

        def on_fraction(fraction: float, said: str) -> None:
            self.on_event(
                StepEvent(step=step, target=target, state="progress", fraction=fraction, said=said)
            )

        return on_fraction

    def telling(self, request: EngineRequest, what: str) -> EngineRequest:
        """The request of an engine that says how far it is, and shares the timing cache."""
        tell = self.progress_of("engine", request.target.name)
        tell(0.0, what)
        return replace(
            request,
            on_progress=lambda fraction, said: tell(fraction, f"{what}: {said}"),
            builder=replace(request.builder, timing_cache=self.cache.folder / TIMING_FOLDER),
        )

    def do(self, step: Step, *, target: str = "", describe: Describe = lambda folder: "") -> None:
        """Makes the step unless it is made; the same step twice in a build is one.

        A model that it refuses, it refuses again at once, for the next target too.
        """
        if step.key in self._seen:
            return
        if step.key in self._refused:
            raise self._refused[step.key]
        self._seen.add(step.key)
        cached = self.cache.has(step)
        if self.listing:
            self.note(step.name, target, cached=cached, seconds=0.0, said="")
            return
        if not cached:
            self._tell(step, target, "started")
        begun = time.monotonic()
        try:
            folder = self.cache.fetch(step, on_wait=lambda: self._tell(step, target, "waiting"))
        except BaseException as error:
            self._seen.discard(step.key)  # another target may need it: it is not made
            if isinstance(error, InputError):
                self._refused[step.key] = error
            raise
        said = describe(folder)
        self._tell(step, target, "cached" if cached else "done", said)
        self.note(step.name, target, cached=cached, seconds=time.monotonic() - begun, said=said)

    def note(self, step: str, target: str, *, cached: bool, seconds: float, said: str) -> None:
        """Writes down a step that is not the cache's, such as a measurement."""
        self.records.append(
            StepRecord(step=step, target=target, cached=cached, seconds=seconds, said=said)
        )

    def _tell(self, step: Step, target: str, state: str, said: str = "") -> None:
        self.on_event(StepEvent(step=step.name, target=target, state=state, said=said))
