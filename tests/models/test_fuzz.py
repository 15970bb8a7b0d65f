"""Damaged files by the hundred: each is a Model or an EdgekitError, whatever is done with it.

`benchmarks/fuzz.py` does the same by the thousand.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest

from tests.conftest import residual_graph
from tests.models.everything import everything
from tests.models.mutations import mutated, outcome_of

FILES = 240


@pytest.mark.parametrize("source", ["residual", "everything"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_damaged_file_is_a_model_or_an_error(tmp_path: Path, source: str) -> None:
    made = residual_graph(channels=4) if source == "residual" else everything()
    content = made.SerializeToString()
    path = tmp_path / "net.onnx"
    (tmp_path / "weights.bin").write_bytes(bytes(1000))
    outcomes: Counter[str] = Counter()
    for seed in range(FILES):
        path.write_bytes(mutated(content, random.Random(seed)))
        outcomes[outcome_of(path)] += 1
    assert outcomes["model"] > FILES / 40
    assert len(outcomes) > 5, outcomes
    assert not any("InternalError" in outcome for outcome in outcomes), outcomes
