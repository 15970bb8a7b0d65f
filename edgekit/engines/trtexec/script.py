"""The script that builds, checks and measures an engine on a device that has none of our Python.

POSIX sh, readable, and the only way by which edgekit uses trtexec, on this machine or over ssh.
What it leaves in `results/` is read by `trtexec_results.py`. It has run with a program that prints
what trtexec prints, never on a Jetson.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from edgekit.engines.trtexec.flags import Run
from edgekit.engines.trtexec.script_parts import (
    CLOCKS_FILE,
    ENGINE_FILE,
    ORIGINAL_ENGINE_FILE,
    RESULTS_FOLDER,
    ScriptBuild,
    Times,
    answers,
    build_choice,
    generations_of,
    measures,
)

SCRIPT_FILE = "build.sh"
_PLACES = ("trtexec", "/usr/src/tensorrt/bin/trtexec")


@dataclass(frozen=True, kw_only=True)
class ScriptPlan:
    """What a script does. `runs` are the golden batches; the first is what is measured on.

    `sha256` is of the files that must be there, by name; `seconds` of measuring are shared out
    among the rounds; `stamp` names the recipe in the results. With `has_original` the original is
    built too, and measured in turn.
    """

    about: str
    stamp: str
    sha256: Mapping[str, str]
    builds: tuple[ScriptBuild, ...]
    runs: tuple[Run, ...]
    trtexec: str
    batch: int
    seconds: float
    rounds: int
    warmup_seconds: float
    has_original: bool = False


def script(plan: ScriptPlan) -> str:
    """The text of build.sh.

    The engine and every result appear whole or not at all. Exit codes: 2 not what it should be,
    5 no trtexec, 6 disk full, 130 interrupted, else trtexec's.
    """
    places = dict.fromkeys(place for place in (plan.trtexec, *_PLACES) if place)
    sums = "\n".join(f"{digest}  {name}" for name, digest in plan.sha256.items())
    known = ", ".join(dict.fromkeys(build.version for build in plan.builds))
    generations = generations_of(plan.builds)
    times = Times(seconds=plan.seconds, rounds=plan.rounds, warmup_seconds=plan.warmup_seconds)
    original = (
        f'made "$results/{ORIGINAL_ENGINE_FILE}" build_original\n' if plan.has_original else ""
    )
    return f"""#!/bin/sh
# {" ".join(plan.about.split())}
# Builds the engine on the device, runs it on golden inputs, and measures it.
# Made by edgekit. It needs a POSIX shell, sha256sum and NVIDIA's trtexec; TRTEXEC names the latter
# where it is not found. Everything that it makes lies in {RESULTS_FOLDER}/.
set -eu
asked=${{TRTEXEC:-}}
case "$asked" in
*/*) asked=$(cd -- "$(dirname -- "$asked")" 2>/dev/null && pwd || true)/${{asked##*/}} ;;
esac
cd -- "$(dirname -- "$0")"
export LC_ALL=C

stamp={plan.stamp}
results={RESULTS_FOLDER}
child=
watcher=

say() {{ echo "edgekit: $*" >&2; }}

# Whatever ends this script ends what it started.
leave() {{
    [ -z "$child" ] || kill "$child" 2>/dev/null || true
    [ -z "$watcher" ] || kill "$watcher" 2>/dev/null || true
}}
trap leave EXIT
# First of all what was started: whoever would read the words may be gone, and that ends a shell.
trap 'leave; say "interrupted; the next run goes on from here"; exit 130' HUP INT TERM
trap 'leave; exit 130' PIPE

# start LOG COMMAND...: runs it with its log in LOG; `code` is how it ended.
start() {{
    log=$1
    shift
    "$@" >"$log" 2>&1 </dev/null &
    child=$!
    code=0
    wait "$child" || code=$?
    child=
    if [ "$code" -eq 0 ] && grep -q '^&&&& FAILED' "$log"; then code=1; fi
}}

# run LOG COMMAND...: as `start`, and ends this script where the command fails.
run() {{
    start "$@"
    [ "$code" -ne 0 ] || return 0
    grep -e '\\[E\\]' -e 'No space left' "$log" | tail -n 20 >&2 || true
    tail -n 5 "$log" >&2
    if grep -qi 'no space left on device' "$log"; then
        say "the disk is full here"
        exit 6
    fi
    say "trtexec failed; its log is $log"
    exit "$code"
}}

# --- what is here -------------------------------------------------------------------------------

trtexec=$asked
if [ -z "$trtexec" ]; then
    for place in {" ".join(map(shlex.quote, places))}; do
        if command -v "$place" >/dev/null 2>&1; then
            trtexec=$place
            break
        fi
    done
fi
if [ -z "$trtexec" ] || ! command -v "$trtexec" >/dev/null 2>&1; then
    say "there is no ${{TRTEXEC:-trtexec}} here: set TRTEXEC to its path"
    exit 5
fi

if ! sha256sum -c - >/dev/null 2>&1 <<'SUMS'
{sums}
SUMS
then
    say "a file of this recipe is not the one that was written: copy all of it again"
    exit 2
fi

# trtexec's banner says 8502 for TensorRT 8.5.2, and 100300 for 10.3.0.
banner=$("$trtexec" --help 2>&1 </dev/null |
    sed -n 's/.*\\[TensorRT v\\([0-9][0-9]*\\)\\].*/\\1/p' | head -n 1)
number=${{banner:-0}}
if [ "${{#number}}" -eq 4 ]; then number=$((number / 1000 * 10000 + number % 1000)); fi

mkdir -p "$results" 2>/dev/null || {{ say "this folder cannot be written"; exit 2; }}
if [ "$(cat "$results/stamp" 2>/dev/null)" != "$stamp-$banner" ]; then
    rm -rf "$results"
    mkdir -p "$results"
    echo "$stamp-$banner" >"$results/stamp" || {{ say "the disk is full here"; exit 6; }}
fi

# What this device says of itself, for whoever reads the results elsewhere.
for file in /proc/device-tree/model /proc/device-tree/compatible \\
    /proc/device-tree/nvidia,dtsfilename /proc/device-tree/nvidia,boardids \\
    /etc/nv_tegra_release /etc/nvpmodel.conf /var/lib/nvpmodel/status; do
    if [ -r "$file" ]; then
        mkdir -p "$results/root${{file%/*}}"
        cat "$file" >"$results/root$file" 2>/dev/null || true
    fi
done
if command -v nvidia-smi >/dev/null 2>&1; then
    mkdir -p "$results/root"
    nvidia-smi --query-gpu=name,compute_cap,driver_version --format=csv,noheader \\
        >"$results/root/gpus" 2>/dev/null || true
fi
if command -v jetson_clocks >/dev/null 2>&1; then
    mkdir -p "$results/root"
    jetson_clocks --show >"$results/root/{CLOCKS_FILE}" 2>/dev/null || true
fi
{{
    echo "machine: $(uname -m)"
    echo "system: $(uname -sr)"
    echo "host: $(uname -n)"
    echo "trtexec: $trtexec"
    if command -v nvpmodel >/dev/null 2>&1; then
        nvpmodel -q 2>/dev/null | sed -n 's/^NV Power Mode: */power_mode: /p'
    fi
}} >"$results/device.txt"

# --- the engine ---------------------------------------------------------------------------------

{build_choice(generations, known, has_original=plan.has_original)}
# made FILE BUILD: an engine that is there already, whole and of this recipe, is not built again.
made() {{
    if [ -s "$1" ] && [ "$(cat "$1.sha256" 2>/dev/null)" = "$(sha256sum "$1" | cut -c1-64)" ]; then
        say "${{1##*/}} is built already"
        return 0
    fi
    say "building ${{1##*/}}; this takes minutes"
    rm -f "$1" "$1.sha256" "$results"/answer-*
    "$2"
    mv -f "$1.partial" "$1"
    sha256sum "$1" | cut -c1-64 >"$1.sha256"
}}

made "$results/{ENGINE_FILE}" build
{original}
# --- what it answers to the golden inputs -------------------------------------------------------

{answers(plan.runs, generations)}
# --- how fast it is -----------------------------------------------------------------------------

# The memory that is available while trtexec runs, once a second; the first line is before.
watch_memory() {{
    while kill -0 $$ 2>/dev/null; do
        sed -n 's/^MemAvailable: *\\([0-9]*\\) kB$/\\1/p' /proc/meminfo
        sleep 1
    done
}}

measured() {{
    name=$1
    shift
    watch_memory >"$results/$name.memory" 2>/dev/null &
    watcher=$!
    date +%s >"$results/$name.date"
    run "$results/$name.log" "$@"
    kill "$watcher" 2>/dev/null || true
    watcher=
    mv -f "$results/$name.partial" "$results/$name.json"
}}

rm -f "$results"/times-*
{measures(plan.runs[0], generations, times, has_original=plan.has_original)}
qps=$(sed -n 's/.*Throughput: \\([0-9.]*\\) qps.*/\\1/p' "$results"/times-[0-9]*.log |
    sort -g | head -n 1)
if [ -n "$qps" ]; then
    fps=$(awk "BEGIN {{ printf \\"%.1f FPS, \\", $qps * {plan.batch} }}" || true)
    say "the slowest round: $fps$qps queries a second, {plan.batch} at a time"
fi
say "done. Copy $results/ into this recipe's folder on the build host, and judge it there:"
say "    edgekit build --from RECIPE --results RECIPE/$results"
"""
