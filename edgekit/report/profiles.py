"""The device profiles as a person reads them, and those that this machine is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.targets import (
    Machine,
    Profile,
    Target,
    all_profiles,
    detect_machine,
    load_profile,
    resolve_target,
)

_WHERE = {"here": "here", "anywhere": "on any x86-64 Linux", "device": "on the device"}
_APART = {"name", "title", "family", "family_default", "sources", "unverified", "runtime"}


@dataclass(frozen=True, kw_only=True)
class Listing:
    """All targets, the user's own among them, and what this machine is."""

    profiles: tuple[Profile, ...]
    machine: Machine

    def rows(self) -> list[tuple[str, ...]]:
        """Name, device, precisions beside FP32, runtime: a row a target.

        A star is at each that this machine is.
        """
        here = {seen.target for seen in self.machine.seen}
        return [
            (
                f"{profile.target.name} *" if profile.target.name in here else profile.target.name,
                f"{profile.target.title} (your own)" if profile.own else profile.target.title,
                " ".join(p for p in profile.target.precisions if p != "fp32"),
                f"{profile.target.runtime.name} {profile.target.runtime.version}",
            )
            for profile in self.profiles
        ]

    def notes(self) -> list[str]:
        """What the stars stand for, and what to do where a Jetson has none."""
        machine = self.machine
        said = [f"* this machine: {seen.evidence}: {seen.target}" for seen in machine.seen]
        if not machine.target:
            near = f", such as {', '.join(machine.near)}" if machine.near else ""
            said.append(
                f"This machine is a Jetson that no profile describes: {machine.evidence}. Write "
                f"targets/my-board.toml, which extends one of the same chip{near}, and give it the "
                "module's number in [identity] p_numbers."
            )
        return [
            *said,
            *(f"a graphics card without a profile: {card}" for card in machine.unknown),
            "Engines are built: tensorrt on the device, tensorrt_rtx on any x86-64 Linux, "
            "onnxruntime where they run. `edgekit targets NAME` explains one.",
        ]

    def to_json(self) -> dict[str, object]:
        """JSON-ready: here, evidence, jetpack, seen, and the targets without their sources."""
        machine = self.machine
        return {
            "here": machine.target,
            "evidence": machine.evidence,
            "jetpack": machine.jetpack,
            "near": list(machine.near),
            "unknown": list(machine.unknown),
            "seen": [{"target": s.target, "evidence": s.evidence} for s in machine.seen],
            "targets": [
                {
                    **profile.target.model_dump(mode="json", exclude={"sources"}),
                    "own": profile.own,
                    "files": list(profile.files),
                }
                for profile in self.profiles
            ],
        }


@dataclass(frozen=True, kw_only=True)
class ProfileView:
    """One target in full. `note`: how its name was read, else empty."""

    profile: Profile
    note: str

    def heading(self) -> list[tuple[str, str]]:
        """What it is and where that is written, a key and a value each."""
        target = self.profile.target
        own = "your own, " if self.profile.own else ""
        lines = [
            ("target", f"{target.name}: {target.title}"),
            ("file", own + ", which extends ".join(self.profile.files)),
            ("runtime", f"{_runtime(target)}, dialect {target.runtime.dialect}, "
                        f"opset {target.runtime.opset}"),
            ("engine built", _WHERE[target.runtime.build]),
        ]  # fmt: skip
        if self.note:
            lines.append(("note", self.note))
        others = [f"{target.profile}@{name}" for name in target.jetpacks
                  if name != target.runtime.jetpack]  # fmt: skip
        if others:
            lines.append(("other JetPacks", ", ".join(others)))
        return lines

    def rows(self) -> list[tuple[str, str]]:
        """A table of the file and its figures, each with the number of its source in `sources`.

        A figure that nobody has confirmed is marked as unverified.
        """
        target = self.profile.target
        numbers = {source: index for index, source in enumerate(self.sources(), 1)}
        tables: dict[str, list[tuple[str, int]]] = {}
        for place, value in self._figures():
            table, _, key = place.rpartition(".")
            doubt = " (unverified)" if place in target.unverified else ""
            said = f"{key} {_shown(value)}{doubt}" if table else f"{_shown(value)}{doubt}"
            number = numbers.get(target.sources.get(place, ""), 0)
            tables.setdefault(table or key, []).append((said, number))
        return [(table, _cited(figures)) for table, figures in tables.items()]

    def sources(self) -> list[str]:
        """Where the figures are from, each text once."""
        known = self.profile.target.sources
        return list(dict.fromkeys(known[place] for place, _ in self._figures() if place in known))

    def _figures(self) -> list[tuple[str, object]]:
        target = self.profile.target
        return list(_values(target.model_dump(mode="json", exclude=_APART, exclude_unset=True)))

    def to_json(self) -> dict[str, object]:
        """JSON-ready: all of the target, its files, and the note where there is one."""
        note = {"note": self.note} if self.note else {}
        return {
            **self.profile.target.model_dump(mode="json"),
            "own": self.profile.own, "files": list(self.profile.files), **note,
        }  # fmt: skip


def listing(*, root: Path = Path("/")) -> Listing:
    """Every target, sorted by name. Raises InputError for the user's own that have faults."""
    return Listing(profiles=all_profiles(), machine=detect_machine(root=root))


def profile(name: str) -> ProfileView:
    """One target in full. Raises InputError for an unknown name."""
    found = resolve_target(name)
    known = load_profile(name if name.endswith(".toml") else found.target.name)
    return ProfileView(
        profile=Profile(target=found.target, files=known.files, own=known.own), note=found.note
    )


def _runtime(target: Target) -> str:
    runtime = target.runtime
    jetpack = f" (JetPack {runtime.jetpack})" if runtime.jetpack else ""
    return f"{runtime.name} {runtime.version}{jetpack}"


def _values(document: Mapping[str, object], above: str = "") -> Iterator[tuple[str, object]]:
    """Every value that is there, with its place."""
    for key, value in document.items():
        if isinstance(value, Mapping):
            yield from _values(value, f"{above}{key}.")
        elif value not in (None, "", [], ()):
            yield f"{above}{key}", value


def _cited(figures: Sequence[tuple[str, int]]) -> str:
    """The figures of a table, and after those that share a source its number."""
    runs: list[tuple[list[str], int]] = []
    for said, number in figures:
        if runs and runs[-1][1] == number:
            runs[-1][0].append(said)
        else:
            runs.append(([said], number))
    return ", ".join(f"{', '.join(said)} [{n}]" if n else ", ".join(said) for said, n in runs)


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return " ".join(map(str, value))
    if isinstance(value, (int, float)):
        return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return str(value)
