"""Metrics by hand arithmetic, and what is said where one cannot be computed."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from edgekit.data.metrics import agreement, fidelity, load_metric, sqnr_db, top1
from edgekit.errors import InputError
from edgekit.values import Array, Unknown

HERE = Path()


def out(*rows: object) -> dict[str, Array]:
    return {"y": np.array(rows, np.float32)}


SCORES = out([1, 5, 2], [3, 0, 1], [0, 0, 9], [1, 2, 0])


def test_top1_is_the_share_of_right_answers() -> None:
    assert top1(SCORES, np.array([1, 0, 2, 0]), SCORES) == 0.75
    assert load_metric("top1", HERE)(SCORES, np.array([1, 0, 2, 1]), SCORES) == 1.0


@pytest.mark.parametrize(
    ("outputs", "labels", "what"),
    [
        (SCORES, None, "needs labels"),
        (SCORES, np.array([1, 0, 2]), "one label a sample"),
        (SCORES, np.zeros((4, 3)), "one label a sample"),
        (out([[1, 2]], [[3, 4]]), np.array([0, 1]), "one row of class scores"),
        (SCORES, np.array([1, 0, 3, 0]), "no class of the model"),
        (SCORES, np.array([1, 0, -1, 0]), "no class of the model"),
    ],
)
def test_top1_refuses_what_it_cannot_count(
    outputs: dict[str, Array], labels: Array | None, what: str
) -> None:
    with pytest.raises(InputError, match=what) as caught:
        top1(outputs, labels, outputs)
    assert caught.value.hint


def test_fidelity_is_one_minus_the_relative_energy_of_the_error() -> None:
    reference = {"a": np.array([3.0, 4.0]), "b": np.array([[2.0]])}
    outputs = {"a": np.array([3.0, 5.0]), "b": np.array([[1.0]])}
    assert fidelity(outputs, None, reference) == pytest.approx((1 - 1 / 25 + 1 - 1 / 4) / 2)
    assert fidelity(reference, None, reference) == 1.0


def test_fidelity_of_an_output_that_is_zero_throughout() -> None:
    zero = {"a": np.zeros(3)}
    assert fidelity(zero, None, zero) == 1.0
    assert fidelity({"a": np.ones(3)}, None, zero) == 0.0


def test_fidelity_is_summed_in_double_precision() -> None:
    reference = {"a": np.full(1_000_000, 1000, np.float16)}
    outputs = {"a": np.full(1_000_000, 1001, np.float16)}
    assert fidelity(outputs, None, reference) == pytest.approx(1 - 1e-6, abs=1e-12)


def test_outputs_of_another_shape_are_refused() -> None:
    with pytest.raises(InputError, match="shape"):
        fidelity(out([1, 2]), None, out([1], [2]))


def test_agreement_is_the_share_of_the_same_top_class() -> None:
    other = out([1, 5, 2], [0, 3, 1], [0, 0, 9], [1, 2, 0])
    assert agreement(other, SCORES) == 0.75


def test_sqnr_by_hand() -> None:
    # Signal 9 + 16 = 25, noise 0.25: a ratio of 100 is 20 dB.
    assert sqnr_db(out([3.5, 4]), out([3, 4])) == pytest.approx(20)


def test_what_has_no_sqnr_says_why() -> None:
    assert sqnr_db(SCORES, SCORES) == Unknown("the outputs are identical")
    assert isinstance(sqnr_db(out([1, 2]), out([0, 0])), Unknown)


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(InputError) as caught:
        load_metric("fidelty", HERE)
    assert caught.value.hint == 'Did you mean "fidelity"?'
    assert "top1" in caught.value.wanted


def test_a_users_metric_gets_outputs_and_labels(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "def within_one(outputs, labels):\n"
        "    return (abs(outputs['y'].argmax(1) - labels) <= 1).mean()\n"
    )
    metric = load_metric("mine.py:within_one", tmp_path)
    assert metric(SCORES, np.array([0, 0, 0, 0]), SCORES) == 0.75
    assert metric.digest != load_metric("top1", tmp_path).digest


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("1 / 0", "ZeroDivisionError"),
        ("'much'", "ValueError"),
        ("None", "TypeError"),
        ("float('nan')", "nan"),
        ("float('inf')", "inf"),
    ],
)
def test_a_users_metric_must_give_a_finite_number(tmp_path: Path, body: str, said: str) -> None:
    name = f"metric_{math.prod(map(ord, said))}.py"
    (tmp_path / name).write_text(f"def score(outputs, labels):\n    return {body}\n")
    with pytest.raises(InputError) as caught:
        load_metric(f"{name}:score", tmp_path)(SCORES, None, SCORES)
    assert said in caught.value.got
