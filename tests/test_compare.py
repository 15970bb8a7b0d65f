"""Stored measurements beside each other: the ratio, and what is not comparable, by name."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from measurements import made
from typer.testing import CliRunner

from edgekit.bench.comparison import barriers, compare, ratio_by_original, ratio_of_rates
from edgekit.bench.measurement import save_measurements
from edgekit.bench.noise_floor import NoiseFloor, store
from edgekit.cli import app
from edgekit.errors import InputError
from edgekit.values import Measurement, Unknown


def test_a_faster_a_slower_and_an_equal_release() -> None:
    old = made(0.002, seed=1)
    for factor, said in ((1.2, "slower"), (0.8, "faster"), (1.0, "no clear difference")):
        (found,) = compare([old], [made(0.002 * factor, seed=2)], 0.01)
        assert found.said == said
        assert found.ratio.value == pytest.approx(1 / factor, rel=0.01)


def test_constant_runs_have_the_ratio_as_their_interval() -> None:
    (found,) = compare([made(0.002, noise=0.0)], [made(0.0025, noise=0.0)], 0.0)
    assert not isinstance(found.ratio.interval, Unknown)
    assert found.ratio.interval == pytest.approx((0.8, 0.8))


def test_the_interval_covers_the_true_ratio_as_often_as_it_says() -> None:
    """Independent log-normal runs, a true ratio of 0.9, no floor: 95% with a binomial's slack."""
    covered = 0
    for seed in range(400):
        old, new = made(0.0018, seed=2 * seed, noise=0.1), made(0.002, seed=2 * seed + 1, noise=0.1)
        found = ratio_of_rates(new, old, 0.0)
        assert not isinstance(found.interval, Unknown)
        covered += found.interval[0] <= 0.9 <= found.interval[1]
    assert 0.92 <= covered / 400 <= 0.985


def test_the_ratio_of_a_swapped_pair_is_the_inverse() -> None:
    one, other = made(0.002, seed=1, noise=0.05), made(0.003, seed=2, noise=0.05)
    for floor in (0.0, 0.07):
        there, back = ratio_of_rates(one, other, floor), ratio_of_rates(other, one, floor)
        assert not isinstance(there.interval, Unknown)
        assert not isinstance(back.interval, Unknown)
        assert there.value * back.value == pytest.approx(1)
        assert there.interval[0] * back.interval[1] == pytest.approx(1, rel=0.01)


def test_a_slower_machine_cancels_beside_the_original() -> None:
    def run(slow: float, seed: int) -> tuple[Measurement, Measurement]:
        """Candidate and original in turn, while the machine itself wanders by a tenth."""
        rng = np.random.default_rng(seed)
        drift = np.repeat(slow * (1 + 0.1 * rng.random(12)), 100)
        return tuple(  # type: ignore[return-value]
            made(arm=arm, engine=arm[0] * 64, seed=seed).__class__(
                **{
                    **made(arm=arm, engine=arm[0] * 64).__dict__,
                    "samples": tuple((drift * base * np.exp(0.01 * noise)).tolist()),
                }
            )
            for arm, base, noise in (
                ("int8", 0.002, rng.standard_normal(1200)),
                ("original", 0.004, rng.standard_normal(1200)),
            )
        )

    (old, old_original), (new, new_original) = run(1.0, 1), run(1.7, 2)
    found = ratio_by_original(new, new_original, old, old_original)
    assert not isinstance(found.interval, Unknown)
    assert found.interval[0] <= 1 <= found.interval[1]
    assert math.log(found.interval[1] / found.interval[0]) < 0.02
    assert ratio_of_rates(new, old, 0.0).value == pytest.approx(1 / 1.7, rel=0.05)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"quantity": "compute"}, "quantity: latency and compute"),
        ({"unit": "ms"}, "unit: s and ms"),
        ({"batch": 8}, "batch: 1 and 8"),
        ({"conditions": {"host": "other"}}, "host: board and other"),
        ({"conditions": {"cpu": "B CPU"}}, "cpu: A CPU and B CPU"),
        ({"conditions": {"governor": "powersave"}}, "governor: performance and powersave"),
        ({"conditions": {"power_mode": "MAXN"}}, "power_mode: not known and MAXN"),
        ({"conditions": {"threads": "1"}}, "threads: 2 and 1"),
        ({"broken": ("throttled",)}, "the new run is invalid"),
    ],
)
def test_what_is_not_comparable_is_refused_by_name(change: dict[str, object], named: str) -> None:
    old, new = made(), made(**change)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="not comparable") as refusal:
        compare([old], [new], 0.01)
    assert named in refusal.value.got


def test_every_barrier_is_named_at_once() -> None:
    new = made(batch=4, conditions={"host": "other", "governor": "powersave"})
    assert [d.what for d in barriers(made(), new)] == ["batch", "governor", "host"]


def test_what_a_release_changes_is_compared_and_told() -> None:
    new = made(engine="f" * 64, conditions={"runtime": "onnxruntime 1.32", "load_average": "7.0"})
    (found,) = compare([made()], [new], 0.01)
    assert [d.what for d in found.changed] == ["engine_sha256", "runtime"]


def test_arms_are_matched_by_name_and_a_lone_arm_by_itself() -> None:
    both = [made(arm="original"), made(arm="int8")]
    assert [c.arm for c in compare(both, [made(arm="int8")], 0.0)] == ["int8"]
    assert [c.arm for c in compare([made(arm="fp32")], [made(arm="int8")], 0.0)] == ["fp32, int8"]
    with pytest.raises(InputError, match="no arm in common"):
        compare(both, [made(arm="fp16")], 0.0)
    with pytest.raises(InputError, match="no arm in common"):
        compare(both, [], 0.0)


def test_one_round_has_no_interval() -> None:
    (found,) = compare([made(rounds=1)], [made()], 0.01)
    assert isinstance(found.ratio.interval, Unknown)
    assert found.said.startswith("nobody can say")


def test_the_verb_compares_refuses_and_says_what_it_does_not_know(tmp_path: Path) -> None:
    old, new, other = (tmp_path / f"{name}.json" for name in ("old", "new", "other"))
    save_measurements([made(0.002, seed=1, doubts=("busy",))], old)
    save_measurements([made(0.003, seed=2)], new)
    save_measurements([made(conditions={"host": "other"})], other)

    def asked(*arguments: object) -> tuple[int, str, str]:
        done = CliRunner().invoke(app, ["compare", *map(str, arguments)])
        return done.exit_code, done.stdout, " ".join(done.stderr.split())

    code, out, _ = asked(old, new, "--noise-floor", 0.02, "--json")
    (arm,) = json.loads(out)["arms"]
    assert code == 0
    assert arm["said"] == "slower"
    assert arm["interval"][0] < 2 / 3 < arm["interval"][1]
    assert arm["doubts"] == {"old": ["busy"], "new": []}
    assert asked(old, new, "--noise-floor", 0.02)[0] == 0
    code, _, err = asked(old, other)
    assert (code, "host: board and other" in err) == (2, True)
    assert asked(old, tmp_path / "missing.json")[0] == 2


def test_the_verb_takes_the_floor_that_is_stored_for_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    save_measurements([made(0.002, seed=1)], old)
    save_measurements([made(0.003, seed=2)], new)
    # Without one nobody can say how much two times differ.
    assert CliRunner().invoke(app, ["compare", str(old), str(new), "-t", "cpu"]).exit_code == 3
    store(NoiseFloor(
        target="cpu", share=0.6, taken_at=0.0, plan="", engine="", machine={"host": "board"}
    ))  # fmt: skip
    done = CliRunner().invoke(app, ["compare", str(old), str(new), "-t", "cpu", "--json"])
    assert done.exit_code == 0
    (arm,) = json.loads(done.stdout)["arms"]
    assert arm["said"] == "no clear difference"  # half as slow again, and the floor is more
