"""The trainable executor against ONNX's own conformance suite: the node cases, by operator.

    python benchmarks/conformance.py [--all] [--failures]

Each case's model is run by the executor on the suite's inputs and compared with the suite's
outputs, at the suite's own tolerances. `--all` shows operators outside the promised list too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "models"))
from conformance import LISTED, Outcome, run_all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--failures", action="store_true", help="name each case that fails")
    options = parser.parse_args()
    by_operator: dict[str, list[Outcome]] = {}
    for outcome in run_all():
        by_operator.setdefault(outcome.operator, []).append(outcome)
    shown = sorted(by_operator if options.all else set(by_operator) & LISTED)
    for operator in shown:
        outcomes = by_operator[operator]
        failed = [outcome for outcome in outcomes if outcome.reason]
        print(f"{operator:28} {len(outcomes) - len(failed):4} of {len(outcomes):4}")
        for outcome in failed if options.failures else ():
            print(f"    {outcome.case}: {outcome.reason}")
    listed = [o for name, outcomes in by_operator.items() if name in LISTED for o in outcomes]
    passed = sum(not outcome.reason for outcome in listed)
    print(f"listed operators: {passed} of {len(listed)} cases pass ({passed / len(listed):.1%})")
    everything = [o for outcomes in by_operator.values() for o in outcomes]
    passed = sum(not outcome.reason for outcome in everything)
    print(f"whole suite: {passed} of {len(everything)} ({passed / len(everything):.1%})")


if __name__ == "__main__":
    main()
