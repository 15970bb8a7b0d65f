"""What a preflight says: a line for each check, and each node that one of them speaks against."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

_SHOWN = 5


class Answer(enum.Enum):
    """What a check found. `skipped`: it was not made, and speaks neither way."""

    PASSED = "passed"
    REFUSED = "refused"
    UNKNOWN = "unknown"
    SKIPPED = "skipped"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One check of a preflight."""

    check: str
    answer: Answer
    said: str


@dataclass(frozen=True, kw_only=True)
class NodeFinding:
    """A node that is refused or doubted: by which check, why, and what can be done about it.

    `operator` is empty where what is meant is a tensor, by its name.
    """

    node: str
    operator: str
    check: str
    answer: Answer
    reason: str
    remedy: str

    def __str__(self) -> str:
        kind = f"{self.operator} " if self.operator else ""
        return f'{kind}"{self.node}": {self.reason}'

    def to_json(self) -> dict[str, str]:
        """JSON-ready."""
        return {**asdict(self), "answer": self.answer.value}


@dataclass(frozen=True, kw_only=True)
class PreflightReport:
    """Every check of a model for a target, the refusals' lines included, and the nodes they name.

    A node may stand there more than once, under several checks.
    """

    target: str
    lines: tuple[Line, ...]
    nodes: tuple[NodeFinding, ...] = ()

    @property
    def verdict(self) -> Answer:
        """Refused if a check refuses, unknown if one does not know, else passed."""
        return worst(line.answer for line in self.lines)

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "target": self.target,
            "verdict": self.verdict.value,
            "lines": [
                {"check": line.check, "answer": line.answer.value, "said": line.said}
                for line in self.lines
            ],
            "nodes": [node.to_json() for node in self.nodes],
        }


def worst(answers: Iterable[Answer]) -> Answer:
    """Refused before unknown before passed; a check that was skipped counts for nothing."""
    found = set(answers)
    graver = (Answer.REFUSED, Answer.UNKNOWN)
    return next((answer for answer in graver if answer in found), Answer.PASSED)


def line_of(check: str, findings: Sequence[NodeFinding], otherwise: str) -> Line:
    """The line of a check that found these nodes, the gravest alone; `otherwise` where none."""
    answer = worst(finding.answer for finding in findings)
    said = [str(finding) for finding in findings if finding.answer is answer]
    return Line(check=check, answer=answer, said=listed(said) or otherwise)


def listed(said: Sequence[str]) -> str:
    """The first few of them in one line, and how many more there are."""
    more = [f"and {len(said) - _SHOWN} more"] if len(said) > _SHOWN else []
    return "; ".join([*said[:_SHOWN], *more])
