"""How far a TensorRT build is, from the nested phases that its progress monitor reports."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class _Phase:
    name: str
    steps: int
    done: int = 0


class PhaseTree:
    """The phases under way. `fraction` of the outermost one never falls, and is below 1 to the end.

    A phase is worth one step of the phase that it is in; how long a step takes, nobody says.
    """

    def __init__(self) -> None:
        self._stack: list[_Phase] = []
        self._most = 0.0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase of `steps` steps begins within `parent`, or on its own."""
        while self._stack and self._stack[-1].name != parent:
            self._stack.pop()  # a phase that was never finished, or the one before
        self._stack.append(_Phase(name, max(1, steps)))

    def step(self, name: str, step: int) -> None:
        """Step number `step` of the phase, counted from 0, is done."""
        for phase in self._stack:
            if phase.name == name:
                phase.done = min(phase.steps, max(phase.done, step + 1))

    def finish(self, name: str) -> None:
        """The phase is done, with whatever is still open in it."""
        names = [phase.name for phase in self._stack]
        if name in names:
            del self._stack[names.index(name) :]

    @property
    def name(self) -> str:
        """The innermost phase, "" between two."""
        return self._stack[-1].name if self._stack else ""

    @property
    def fraction(self) -> float:
        """From 0 to less than 1."""
        inner = 0.0
        for phase in reversed(self._stack):
            inner = min(1.0, (phase.done + inner) / phase.steps)
        self._most = max(self._most, min(inner, 0.999))
        return self._most
