"""The device profiles as a person reads them, and the one that this machine is."""

from __future__ import annotations

from dataclasses import dataclass

from edgekit.targets import Target, detect_machine, load_target, resolve_target, target_names


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All shipped targets. `here` is the name of the one that this machine is, or empty."""

    targets: tuple[Target, ...]
    here: str
    evidence: str

    def rows(self) -> list[tuple[str, ...]]:
        """Name, title, precisions, runtime, where its engines are built: a row a target."""
        where = {"here": "here", "anywhere": "on any x86-64 Linux", "device": "on the device"}
        return [
            (
                f"{target.name} *" if target.name == self.here else target.name,
                target.title,
                " ".join(target.precisions),
                f"{target.runtime.name} {target.runtime.version}",
                where[target.runtime.build],
            )
            for target in self.targets
        ]

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "here": self.here,
            "evidence": self.evidence,
            "targets": [target.model_dump(mode="json") for target in self.targets],
        }


def listing() -> Listing:
    """Every shipped target, sorted by name."""
    machine = detect_machine()
    return Listing(
        targets=tuple(load_target(name) for name in target_names()),
        here=machine.target,
        evidence=machine.evidence,
    )


def profile(name: str) -> dict[str, object]:
    """One target in full, JSON-ready. Raises InputError for an unknown name."""
    found = resolve_target(name)
    note = {"note": found.note} if found.note else {}
    return {**found.target.model_dump(mode="json"), **note}
