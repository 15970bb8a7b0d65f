"""The parts of build.sh that depend on the model, and on which versions of trtexec it is for."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edgekit.engines.trtexec.flags import (
    GENERATIONS,
    TIMING_CACHE_FILE,
    Run,
    answer_arguments,
    generation_of,
    measure_arguments,
    profile_arguments,
)

CLOCKS_FILE = "clocks"
RESULTS_FOLDER = "results"
ENGINE_FILE = "model.engine"
ORIGINAL_ENGINE_FILE = "original.engine"
RAW_STEM = "golden/batch-"
"""How the files of golden inputs begin, before the number of their batch."""

_MOST_ROUNDS = 5  # a round starts trtexec anew, which takes seconds before it measures


@dataclass(frozen=True, kw_only=True)
class ScriptBuild:
    """trtexec's arguments to build with one version of TensorRT, and to build the original."""

    version: str
    jetpack: str
    arguments: Sequence[str]
    original: Sequence[str]


def answer_name(batch: int) -> str:
    """The outputs of a golden batch, as trtexec exports them; the log has `.log` for `.json`."""
    return f"answer-{batch}.json"


def times_name(turn: int, *, original: bool = False) -> str:
    """The times of a round's queries; the log has `.log` for `.json`."""
    return f"times-{'original-' if original else ''}{turn}.json"


def rounds_of(rounds: int) -> int:
    """How many rounds trtexec takes where a recipe asks for so many."""
    return min(rounds, _MOST_ROUNDS)


Fitting = tuple[ScriptBuild, int, int]
"""A build with the TensorRT versions that it is for, as numbers: from, and below."""


@dataclass(frozen=True, kw_only=True)
class Times:
    """How long to measure in all, in how many rounds, and how long to warm up in each."""

    seconds: float
    rounds: int
    warmup_seconds: float


def generations_of(builds: Sequence[ScriptBuild]) -> list[Fitting]:
    """Each build with the TensorRT versions that it is for; the first for each generation."""
    found: list[Fitting] = []
    for build in builds:
        place = GENERATIONS.index(generation_of(build.version))
        later = GENERATIONS[place + 1 :]
        least = GENERATIONS[place].since
        above = later[0].since if later else (1000, 0)
        if all(earlier != _number(least) for _, earlier, _ in found):
            found.append((build, _number(least), _number(above)))
    return found


def _number(version: tuple[int, int]) -> int:
    return version[0] * 10000 + version[1] * 100


def build_choice(generations: Sequence[Fitting], known: str, *, has_original: bool) -> str:
    """Functions to build with the TensorRT that is here, and `version` for what follows."""
    parts: list[str] = []
    for place, (build, least, above) in enumerate(generations):
        word = "elif" if parts else "if"
        of = f"JetPack {build.jetpack}, " if build.jetpack else ""
        command = _command('run "$results/build.log" "$trtexec"', _into_results(build.arguments))
        parts.append(
            f'{word} [ "$number" -ge {least} ] && [ "$number" -lt {above} ]; then\n'
            f"    version={place}\n"
            f"    # {of}TensorRT {build.version}\n"
            f"    build() {{\n{_indented(command, 8)}\n    }}\n"
        )
        if has_original:
            command = _command(
                'run "$results/original.log" "$trtexec"', _into_results(build.original)
            )
            parts[-1] += f"    build_original() {{\n{_indented(command, 8)}\n    }}\n"
    wanted = generations[0][0].version
    return (
        'if [ "$number" -eq 0 ]; then\n'
        f'    say "trtexec does not say its version: taken for TensorRT {wanted}"\n'
        f"    number={_number_of(wanted)}\n"
        "fi\n" + "".join(parts) + "else\n"
        f'    say "this recipe has settings for TensorRT {known}; here is $banner"\n'
        "    exit 2\nfi\n"
    )


def _number_of(version: str) -> int:
    major, minor = (int(part) for part in [*version.split("."), "0"][:2])
    return _number((major, minor))


def _into_results(arguments: Sequence[str]) -> list[str]:
    found = []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option == "--saveEngine":
            value = f"{RESULTS_FOLDER}/{value}.partial"
        elif option == "--timingCacheFile":
            value = f"{RESULTS_FOLDER}/{TIMING_CACHE_FILE}"
        found.append(f"{option}{equals}{value}")
    return found


def answers(runs: Sequence[Run], generations: Sequence[Fitting]) -> str:
    """Runs every golden batch once, each where its answer is not there yet.

    The batches differ by nothing but the number in their files' names.
    """
    place = f"{RESULTS_FOLDER}/{answer_name(0).removesuffix('.json')}".replace("-0", "-$batch")

    def command(version: str) -> str:
        arguments = answer_arguments(_here(runs[0]), version=version, output="OUTPUT")
        text = _command('run "$answer.log" "$trtexec"', arguments)
        return text.replace("--exportOutput=OUTPUT", '--exportOutput="$answer.partial"')

    numbers = " ".join(str(k) for k in range(len(runs)))
    return (
        f"for batch in {numbers}; do\n"
        f"    answer={place}\n"
        '    [ ! -s "$answer.json" ] || continue\n'
        f'    say "golden inputs, batch $((batch + 1)) of {len(runs)}"\n'
        f"{_indented(_of_batch(_by_version(generations, command)), 4)}"
        '    mv -f "$answer.partial" "$answer.json"\n'
        "done\n"
    )


def _of_batch(text: str) -> str:
    """The command of the first batch as that of `$batch`, inside single quotes or outside."""
    lines = []
    for line in text.splitlines(keepends=True):
        is_quoted = line.lstrip().startswith("'")
        number = "'\"$batch\"'" if is_quoted else '"$batch"'
        lines.append(line.replace(f"{RAW_STEM}0-", f"{RAW_STEM}{number}-"))
    return "".join(lines)


def measures(
    run: Run, generations: Sequence[Fitting], times: Times, *, has_original: bool
) -> str:  # fmt: skip
    """Measures in rounds, each a run of its own, the original in turn; then looks at the layers."""
    rounds = rounds_of(times.rounds)

    def original(version: str) -> str:
        here = f"{RESULTS_FOLDER}/{ENGINE_FILE}"
        there = f"{RESULTS_FOLDER}/{ORIGINAL_ENGINE_FILE}"
        return command(version).replace(here, there).replace("times-$turn", "times-original-$turn")

    def command(version: str) -> str:
        arguments = measure_arguments(
            _here(run), version=version, seconds=math.ceil(times.seconds / rounds),
            warmup_seconds=times.warmup_seconds, times="TIMES",
        )  # fmt: skip
        return _command('measured "times-$turn" "$trtexec"', arguments).replace(
            "--exportTimes=TIMES", '--exportTimes="$results/times-$turn.partial"'
        )

    def layers(version: str) -> str:
        arguments = profile_arguments(
            _here(run), version=version, profile=f"{RESULTS_FOLDER}/profile.json",
            layers=f"{RESULTS_FOLDER}/layers.json",
        )  # fmt: skip
        return _command('start "$results/profile.log" "$trtexec"', arguments)

    turns = " ".join(str(turn) for turn in range(rounds))
    return (
        f"for turn in {turns}; do\n"
        f'    say "measuring, round $((turn + 1)) of {rounds}"\n'
        f"{_indented(_by_version(generations, command), 4)}"
        + (_indented(_by_version(generations, original), 4) if has_original else "")
        + "done\n\n"
        "# Times of layers are for people: a version that cannot tell them is no failure.\n"
        f"{_by_version(generations, layers)}"
        '[ "$code" -eq 0 ] || say "no times of layers: see $log"\n'
    )


def _here(run: Run) -> Run:
    return replace(run, engine=f"{RESULTS_FOLDER}/{ENGINE_FILE}")


def _by_version(generations: Sequence[Fitting], command: Callable[[str], str]) -> str:
    """The command of the version that is here; one for all where they do not differ."""
    texts = [command(build.version) for build, _, _ in generations]
    if len(set(texts)) == 1:
        return f"{texts[0]}\n"
    cases = "".join(f"{k})\n{_indented(text, 4)}\n    ;;\n" for k, text in enumerate(texts))
    return f'case "$version" in\n{cases}esac\n'


def _command(first: str, arguments: Sequence[str]) -> str:
    return " \\\n    ".join([first, *(shlex.quote(argument) for argument in arguments)])


def _indented(text: str, spaces: int) -> str:
    return "".join(f"{' ' * spaces}{line}" for line in text.splitlines(keepends=True))
