"""What this machine has, lacks or has wrong, and the command that mends it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgekit.doctor.finding import Finding, State

__all__ = ["Examination", "Finding", "State", "examine"]


@dataclass(frozen=True, kw_only=True)
class Examination:
    """What was found; `needed` is what the named target needs to be built here."""

    findings: tuple[Finding, ...]
    target: str = ""
    needed: tuple[Finding, ...] = ()

    @property
    def exit_code(self) -> int:
        """5 where the named target cannot be built here, else 0."""
        return 0 if all(finding.state is State.GOOD for finding in self.needed) else 5

    @property
    def summary(self) -> str:
        """What follows, in a sentence."""
        wrong = [finding.name for finding in self.findings if finding.state is State.WRONG]
        said = f"wrong: {', '.join(wrong)}" if wrong else "nothing is wrong"
        if not self.target:
            return said
        able = "can" if not self.exit_code else "cannot"
        return f"{said}; an engine for {self.target} {able} be built here"

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "findings": [finding.to_json() for finding in self.findings],
            "target": self.target,
            "needed": [finding.to_json() for finding in self.needed],
            "summary": self.summary,
            "exit_code": self.exit_code,
        }


def examine(target: str = "", *, root: Path = Path("/")) -> Examination:
    """Python, packages, NVIDIA's parts, memory, disk; what a target needs to be built here, and
    what of its conditions a measurement would break.

    Packages with libraries of their own are imported in processes of their own: a package that is
    there may still not load. Raises InputError for an unknown target.
    """
    from edgekit.doctor import nvidia, packages, resources

    if target:
        from edgekit.doctor import target as targets

        wanted = targets.resolved(target, root)
    findings = (*packages.findings(), *nvidia.findings(root), *resources.findings())
    if not target:
        return Examination(findings=findings)
    needed = targets.needed(wanted, findings, root)
    findings = (*findings, *targets.conditions(wanted, root))
    return Examination(findings=findings, target=wanted.name, needed=needed)
