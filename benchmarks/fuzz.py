"""Damaged and hostile files by the thousand: every one is a Model or an EdgekitError.

python benchmarks/fuzz.py [3000] [--seed 0] [--from NET.onnx ...]

Prints how many ended how, the slowest, and the memory at the end. Ends with 1 and the seeds of the
files where anything else got out: `--only SEED` makes one of them again.
"""

from __future__ import annotations

import argparse
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.conftest import residual_graph
from tests.models.everything import everything
from tests.models.mutations import mutated, outcome_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    parser.add_argument("--from", dest="sources", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    contents = [residual_graph(channels=4).SerializeToString(), everything().SerializeToString()]
    contents += [path.read_bytes() for path in options.sources]
    seeds = range(options.seed, options.seed + options.count)
    outcomes: Counter[str] = Counter()
    escaped: list[int] = []
    slowest, begun = (0.0, -1), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "net.onnx")
        path.with_name("weights.bin").write_bytes(bytes(1000))
        for seed in seeds if options.only is None else [options.only]:
            rng = random.Random(seed)
            path.write_bytes(mutated(contents[seed % len(contents)], rng))
            start = time.perf_counter()
            try:
                outcomes[outcome_of(path)] += 1
            except Exception as error:  # the finding that this program is for
                frame = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{Path(frame.filename).name}:{frame.lineno}"
                outcomes[f"ESCAPED {type(error).__name__} at {place}: {error!s:.90}"] += 1
                escaped.append(seed)
                if options.only is not None:
                    traceback.print_exc()
            slowest = max(slowest, (time.perf_counter() - start, seed))
    for outcome, count in outcomes.most_common():
        print(f"{count:6d}  {outcome}")
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(
        f"{sum(outcomes.values())} files in {time.perf_counter() - begun:.0f} s; slowest "
        f"{slowest[0]:.2f} s (seed {slowest[1]}); peak memory {peak_mb} MB"
    )
    if escaped:
        print("escaped:", *escaped)
    sys.exit(1 if escaped else 0)


if __name__ == "__main__":
    main()
