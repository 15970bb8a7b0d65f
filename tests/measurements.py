"""Measurements made by hand: known latencies under known conditions."""

from __future__ import annotations

import numpy as np

from edgekit.values import Measurement

CONDITIONS = {
    "engine_sha256": "a" * 64, "runtime": "onnxruntime 1.20", "host": "board", "cpu": "A CPU",
    "cpu_flags": "avx2", "threads": "2", "governor": "performance", "load_average": "0.10",
}  # fmt: skip


def made(
    seconds: float = 0.002, *, arm: str = "int8", noise: float = 0.01, rounds: int = 12,
    calls: int = 1200, seed: int = 0, engine: str = "a" * 64, **options: object,
) -> Measurement:  # fmt: skip
    """A run of log-normal latencies of that median; `conditions` are added to CONDITIONS."""
    rng = np.random.default_rng(seed)
    samples = seconds * np.exp(noise * rng.standard_normal(calls))
    given = options.pop("conditions", {})
    conditions = {**CONDITIONS, "engine_sha256": engine, **given}  # type: ignore[dict-item]
    return Measurement(
        **{  # type: ignore[arg-type]
            "arm": arm, "quantity": "latency", "unit": "s",
            "samples": tuple(samples.tolist()), "rounds": tuple(range(0, calls, calls // rounds)),
            "batch": 1, "taken_at": 1_800_000_000.0,
            "figures": {"peak_memory_bytes": 50e6, "file_bytes": 280e3},
            "conditions": conditions, **options,
        }
    )  # fmt: skip
