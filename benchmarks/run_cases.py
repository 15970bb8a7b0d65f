"""What `make bench` runs on a device: every case of benchmarks/cases, measured and gated there.

python benchmarks/run_cases.py [CASE.toml …] [--target NAME] [--out build/bench]

A case names a recipe, relative to itself, and optionally one precision. The target is what this
machine is found to be. For each case OUT holds the build (measurements, evidence, engine), its
document as CASE.json and the verdict as CASE.xml (JUnit) and CASE.md. The exit code is that of
`edgekit gate`, the worst of all cases: an error first, then 1, 4, 3, 0.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit import files
from edgekit.documents import read_toml
from edgekit.errors import EdgekitError, InputError
from edgekit.targets import detect_machine

CASES = Path(__file__).resolve().parent / "cases"
KEYS = {"recipe", "precision"}
GATED_WORST_FIRST = (1, 4, 3, 0)


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    recipe: Path
    precision: str


def read_case(path: Path) -> Case:
    stored = read_toml(path, what="case")
    unknown = sorted(stored.keys() - KEYS)
    if unknown or not isinstance(stored.get("recipe"), str):
        raise InputError(
            "this is no case", where=str(path), got=", ".join(unknown) or "no recipe",
            wanted=", ".join(sorted(KEYS)),
        )  # fmt: skip
    recipe = (path.parent / stored["recipe"]).resolve()
    return Case(name=path.stem, recipe=recipe, precision=str(stored.get("precision", "")))


def target_here() -> str:
    machine = detect_machine()
    if not machine.target:
        raise InputError(
            "no profile describes this machine", got=machine.evidence,
            wanted=", ".join(machine.near), hint="Write one (edgekit targets), or give --target.",
        )  # fmt: skip
    print(f"this machine: {machine.target} ({machine.evidence})", file=sys.stderr)
    return machine.target


def run_case(case: Case, target: str, out: Path) -> int:
    reports = [f"--{kind}={out / case.name}.{end}" for kind, end in
               (("junit", "xml"), ("markdown", "md"))]  # fmt: skip
    precision = [f"--precision={case.precision}"] if case.precision else []
    done = subprocess.run(
        [sys.executable, "-m", "edgekit.cli", "build", str(case.recipe), "--target", target,
         "--out", str(out / case.name), "--rebench", "--strict", "--json", *reports, *precision],
        stdout=subprocess.PIPE, text=True, check=False,
    )  # fmt: skip
    if done.stdout.strip():
        files.write_text(out / f"{case.name}.json", done.stdout)
    for line in told(done.stdout):
        print(f"{case.name}: {line}")
    print(f"{case.name}: exit code {done.returncode}", flush=True)
    return done.returncode


def told(document: str) -> list[str]:
    """A line for each target's verdict and for each of its limits, or the error."""
    try:
        found = json.loads(document)
    except ValueError:
        return ["no document"]
    if "error" in found:
        error = found["error"]
        return [" ".join(f"{error.get(key) or ''}" for key in ("what", "where", "got", "hint"))]
    lines = []
    for target in found.get("targets", ()):
        lines.append(f"{target['target']}: {target['verdict']}: {target.get('because', '')}")
        for check in target.get("checks", ()):
            lines.append(
                f"  {check['name']} {check['limit']:g}: {check['verdict']}, {check['because']}"
            )
    return lines


def worst(codes: Sequence[int]) -> int:
    errors = [code for code in codes if code not in GATED_WORST_FIRST]
    return errors[0] if errors else next(code for code in GATED_WORST_FIRST if code in codes)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", type=Path)
    parser.add_argument("--target", default="")
    parser.add_argument("--out", type=Path, default=Path("build/bench"))
    options = parser.parse_args()
    try:
        cases = [read_case(path) for path in options.cases or sorted(CASES.glob("*.toml"))]
        if not cases:
            raise InputError("there is no case", where=str(CASES), wanted="*.toml")
        target = options.target or target_here()
    except EdgekitError as error:
        print(f"{error.what}: {error.where} {error.got} {error.hint}", file=sys.stderr)
        return error.exit_code
    out = options.out.resolve()
    try:
        return worst([run_case(case, target, out) for case in cases])
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
