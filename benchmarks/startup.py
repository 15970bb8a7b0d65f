"""Wall time of `TOOL --help` for edgekit and whichever peers are installed, taken in turn.

python benchmarks/startup.py [--runs 15]
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

PEERS = ("polygraphy", "onnxsim", "onnxslim", "yolo")


def wall_seconds(command: list[str]) -> float:
    begun = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    here = Path(sys.executable).parent
    tools = {"python -c pass": [sys.executable, "-c", "pass"]}
    for name in ("edgekit", *PEERS):
        place = shutil.which(name, path=str(here)) or shutil.which(name)
        if place:
            tools[f"{name} --help"] = [place, "--help"]
    taken: dict[str, list[float]] = {name: [] for name in tools}
    for command in tools.values():  # once uncounted: the files come into the cache
        wall_seconds(command)
    for _ in range(runs):
        for name, command in tools.items():
            taken[name].append(wall_seconds(command))
    ours = statistics.median(taken["edgekit --help"])
    print(f"{'command':<20} {'median s':>9} {'min':>7} {'max':>7} {'to edgekit':>11}")
    for name, seconds in taken.items():
        median = statistics.median(seconds)
        print(
            f"{name:<20} {median:>9.3f} {min(seconds):>7.3f} {max(seconds):>7.3f} "
            f"{median / ours:>10.2f}x"
        )


if __name__ == "__main__":
    main()
