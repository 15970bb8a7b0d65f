"""Whether an engine fits a machine: its manifest against what is known there, nothing loaded.

A TensorRT plan belongs to one TensorRT version, compute capability, operating system and
architecture (NVIDIA's support policy: plans are outside semantic versioning). A CPU's engine is a
portable graph, but INT8 was placed for the instructions of one kind of processor.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from edgekit.engines.base import Engine
from edgekit.engines.here import facts_here
from edgekit.errors import InputError

_PLANS = {"tensorrt": "tensorrt", "trtexec": "tensorrt", "tensorrt_rtx": "tensorrt_rtx"}
_TITLES = {
    "tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX", "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
}  # fmt: skip
# x86 without one of these adds products of int8 in 16 bits: INT8 for the others saturates there.
_INT8_FLAGS = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


class Meaning(enum.Enum):
    """What a difference means for the engine, the mildest first."""

    SAME = "same"
    HARMLESS = "harmless"
    SLOWER = "slower"
    UNKNOWN = "unknown"
    REBUILD = "must rebuild"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One thing that an engine depends on: as it was built, as it is here, what that means."""

    what: str
    built: str
    here: str
    meaning: Meaning
    said: str = ""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Every row of an engine's check, and what follows from all of them."""

    engine: Engine
    rows: tuple[Row, ...]

    @property
    def verdict(self) -> Meaning:
        """The gravest of the rows."""
        order = list(Meaning)
        return max((row.meaning for row in self.rows), key=order.index, default=Meaning.SAME)

    @property
    def exit_code(self) -> int:
        """0 where it runs here, 2 where it must be built again, 3 where nobody can say."""
        return {Meaning.REBUILD: 2, Meaning.UNKNOWN: 3}.get(self.verdict, 0)

    @property
    def summary(self) -> str:
        """The verdict in a sentence."""
        return {
            Meaning.SAME: "the engine fits this machine",
            Meaning.HARMLESS: "the engine fits this machine; measure it again here",
            Meaning.SLOWER: "the engine runs on this machine, and may be slower than it could be",
            Meaning.UNKNOWN: "whether the engine fits this machine is not known",
            Meaning.REBUILD: "the engine does not fit this machine: it must be built again here",
        }[self.verdict]

    @property
    def advice(self) -> str:
        """What to do; empty where nothing needs to be done."""
        target = self.engine.target
        if self.verdict in (Meaning.SAME, Meaning.HARMLESS):
            return ""
        if self.verdict is Meaning.UNKNOWN:
            return "Check it on the machine that shall run it: edgekit check FOLDER"
        if self.engine.runtime in ("tensorrt", "trtexec"):
            return (
                "On the machine that shall run it: edgekit build --from RECIPE_FOLDER, the folder "
                f"that edgekit build --target {target} wrote."
            )
        return f"With the recipe that it was built from: edgekit build --target {target}"

    def to_json(self) -> dict[str, object]:
        """JSON-ready."""
        return {
            "engine": str(self.engine.path),
            "target": self.engine.target,
            "runtime": self.engine.runtime,
            "verdict": self.verdict.value,
            "summary": self.summary,
            "advice": self.advice,
            "rows": [{**vars(row), "meaning": row.meaning.value} for row in self.rows],
            "exit_code": self.exit_code,
        }


def check_engine(engine: Engine, facts: Mapping[str, str] | None = None) -> Fit:
    """What differs between where the engine was built for and a machine; this one by default.

    The engine file is not opened: `load_engine` has compared its hash with the manifest's.
    """
    here = facts_here() if facts is None else facts
    rows = _plan_rows(engine, here) if engine.runtime in _PLANS else _cpu_rows(engine, here)
    return Fit(engine=engine, rows=tuple(rows))


def require_fit(engine: Engine) -> None:
    """Raises InputError where the engine must be built again to run on this machine.

    What is not known is left to whoever opens it.
    """
    fit = check_engine(engine)
    if fit.verdict is not Meaning.REBUILD:
        return
    wrong = [row for row in fit.rows if row.meaning is Meaning.REBUILD]
    raise InputError(
        "this engine was built for another machine",
        where=str(engine.path),
        got="\n".join(f"{row.what}: {row.here or 'none'}" for row in wrong),
        wanted="\n".join(f"{row.what}: {row.built}" for row in wrong),
        hint=fit.advice,
    )


def _plan_rows(engine: Engine, here: Mapping[str, str]) -> Iterator[Row]:
    package = _PLANS[engine.runtime]
    yield _plan_version(engine, _TITLES[package], here.get(package, ""))
    yield _capability(engine, here.get("compute_capability", ""))
    for what, key in (("architecture", "machine"), ("operating system", "system")):
        yield _identical(what, engine.built_for.get(key, ""), here.get(key, ""))
    softer = (
        ("device", "device", "another model of the same capability: NVIDIA advises against it"),
        ("power mode", "power_mode", "its figures belong to the other mode"),
    )
    for what, key, said in softer:
        yield from _noted(engine, here, what, key, Meaning.SLOWER, said)
    for what, key in (
        ("CUDA", "cuda"),
        ("driver", "driver"),
        ("JetPack", "jetpack"),
        ("L4T", "l4t"),
    ):
        yield from _noted(engine, here, what, key, Meaning.HARMLESS, "measure again here")


def _plan_version(engine: Engine, title: str, here: str) -> Row:
    built = engine.runtime_version
    if not here:
        meaning, said = Meaning.UNKNOWN, f"{title} is not on this machine"
    elif same_version(built, here):
        meaning, said = Meaning.SAME, ""
    else:
        meaning, said = Meaning.REBUILD, "a plan runs on the version that built it"
    return Row(what=title, built=built, here=here, meaning=meaning, said=said)


def _capability(engine: Engine, here: str) -> Row:
    built = engine.built_for.get("compute_capability", "")
    row = _identical("compute capability", built, here)
    if not here:
        return Row(
            what=row.what, built=built, here="", meaning=Meaning.UNKNOWN,
            said="no GPU was found: nvidia-smi is not on PATH or fails",
        )  # fmt: skip
    return row


def _identical(what: str, built: str, here: str) -> Row:
    if not built or not here:
        where = "the manifest" if not built else "this machine"
        return Row(
            what=what, built=built, here=here, meaning=Meaning.UNKNOWN,
            said=f"{where} does not say",
        )  # fmt: skip
    same = built == here
    return Row(
        what=what, built=built, here=here,
        meaning=Meaning.SAME if same else Meaning.REBUILD,
        said="" if same else "a plan is for one of them",
    )  # fmt: skip


def _noted(
    engine: Engine, here: Mapping[str, str], what: str, key: str, meaning: Meaning, said: str
) -> Iterator[Row]:
    """A row where both sides are known: what one of them does not say decides nothing here."""
    built, found = engine.built_for.get(key, ""), here.get(key, "")
    if built and found:
        same = built == found
        yield Row(
            what=what, built=built, here=found, meaning=Meaning.SAME if same else meaning,
            said="" if same else said,
        )  # fmt: skip


def _cpu_rows(engine: Engine, here: Mapping[str, str]) -> Iterator[Row]:
    yield _cpu_version(engine, here.get(engine.runtime, ""))
    built, found = engine.built_for.get("machine", ""), here.get("machine", "")
    if built and found:
        yield _architecture(engine, built, found)
    if built == found or not built:
        yield _instructions(engine, here)
    yield from _noted(
        engine, here, "processor", "cpu", Meaning.HARMLESS, "measure again here"
    )  # fmt: skip
    if "searched" in engine.settings:
        said = "threads and settings were measured with the other number"
        yield from _noted(engine, here, "cores", "cores", Meaning.SLOWER, said)


def _cpu_version(engine: Engine, here: str) -> Row:
    title = _TITLES.get(engine.runtime, engine.runtime)
    built = engine.runtime_version
    if not here:
        meaning, said = Meaning.UNKNOWN, f"{title} is not on this machine"
    elif built == here:
        meaning, said = Meaning.SAME, ""
    elif _numbers(here) > _numbers(built):
        meaning, said = Meaning.HARMLESS, "newer; last digits may differ: measure again here"
    else:
        meaning, said = Meaning.UNKNOWN, "older: it may lack operators of the stored graph"
    return Row(what=title, built=built, here=here, meaning=meaning, said=said)


def _architecture(engine: Engine, built: str, here: str) -> Row:
    same = built == here
    is_int8 = engine.precision == "int8"
    meaning = Meaning.REBUILD if is_int8 else Meaning.SLOWER
    said = "INT8 is placed for one of them" if is_int8 else "optimised for the other"
    return Row(
        what="architecture", built=built, here=here,
        meaning=Meaning.SAME if same else meaning, said="" if same else said,
    )  # fmt: skip


def _instructions(engine: Engine, here: Mapping[str, str]) -> Row:
    built = frozenset(engine.built_for.get("cpu_flags", "").split()) - {"hypervisor"}
    found = frozenset(here.get("cpu_flags", "").split()) - {"hypervisor"}
    missing, more = sorted(built - found), sorted(found - built)
    if built == found and engine.built_for.get("cpu", "") == here.get("cpu", ""):
        meaning, said = Meaning.SAME, ""
    elif not built or not found:
        meaning, said = Meaning.UNKNOWN, "instructions are not listed"
    elif engine.precision == "int8" and built & _INT8_FLAGS and not found & _INT8_FLAGS:
        meaning = Meaning.REBUILD
        said = f"INT8 was placed for {', '.join(missing)}: without them its products saturate"
    elif missing:
        meaning, said = Meaning.SLOWER, f"without {', '.join(missing)}"
    elif more:
        meaning, said = Meaning.HARMLESS, f"it may gain from {', '.join(more)}: build it again"
    else:
        meaning, said = Meaning.SAME, ""
    return Row(
        what="instructions", built=" ".join(sorted(built)), here=" ".join(sorted(found)),
        meaning=meaning, said=said,
    )  # fmt: skip


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: "10.3.0.30-1" is (10, 3, 0, 30)."""
    found: list[int] = []
    for part in version.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        found.append(int(digits))
        if digits != part:
            break
    return tuple(found)


def same_version(built: str, here: str) -> bool:
    """Whether two versions are one: packages print three numbers or four, and two are too few."""
    a, b = _numbers(built), _numbers(here)
    places = min(len(a), len(b))
    return built == here or (places >= 3 and a[:places] == b[:places])
