"""What a runtime would refuse or could not fuse in a file: what `edgekit lint` calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from edgekit.pipeline.origin import Origin, open_origin
from edgekit.quantize.dialects import DIALECTS, Dialect
from edgekit.quantize.lint import Finding, Severity, lint
from edgekit.targets import Target, resolve_target

_GRAVEST_FIRST: tuple[Severity, ...] = ("error", "warning", "note")


@dataclass(frozen=True, kw_only=True)
class LintResult:
    """The findings about one model for one target or dialect, the gravest first."""

    model: str
    wanted: str
    findings: tuple[Finding, ...]

    @property
    def exit_code(self) -> int:
        """1 where the runtime would refuse the model, else 0."""
        return 1 if any(finding.severity == "error" for finding in self.findings) else 0

    @property
    def summary(self) -> str:
        """How many of what."""
        counts = Counter(finding.severity for finding in self.findings)
        said = [
            f"{counts[s]} {s}{'' if counts[s] == 1 else 's'}" for s in _GRAVEST_FIRST if counts[s]
        ]
        return f"{self.model} for {self.wanted}: {', '.join(said) or 'no rule broken'}"

    def rows(self) -> Iterator[tuple[str, str, str, str]]:
        """Severity, node, what is wrong and what mends it; the same fault of many nodes once."""
        for (severity, said, fix), nodes in self._alike().items():
            more = f" and {len(nodes) - 1} more" if len(nodes) > 1 else ""
            yield severity, f"{nodes[0]}{more}", said, fix

    def _alike(self) -> dict[tuple[str, str, str], list[str]]:
        groups: dict[tuple[str, str, str], list[str]] = {}
        for found in self.findings:
            groups.setdefault((found.severity, found.said, found.fix), []).append(found.node)
        return groups

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "model": self.model, "for": self.wanted, "exit_code": self.exit_code,
            "findings": [finding.to_json() for finding in self.findings],
        }  # fmt: skip


def lint_origin(origin: Origin, wanted: str) -> LintResult:
    """The findings about a model for a target, by name or file, or for a dialect, by name.

    Raises InputError where the model cannot be read, or there is no such target or dialect.
    """
    reader: Dialect | Target = DIALECTS[wanted] if wanted in DIALECTS else _target(wanted)
    model = open_origin(origin).model
    found = sorted(lint(model, reader), key=lambda one: _GRAVEST_FIRST.index(one.severity))
    return LintResult(model=model.name, wanted=wanted, findings=tuple(found))


def _target(wanted: str) -> Target:
    return resolve_target(wanted).target
