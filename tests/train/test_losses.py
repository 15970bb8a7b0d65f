"""Losses by hand arithmetic."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch", reason="needs the compress extra")
pytestmark = pytest.mark.torch


def test_soft_targets_by_hand() -> None:
    from edgekit.train.losses import soft_targets

    # At T = 2 the teacher says (3/4, 1/4), the student (1/2, 1/2).
    teacher = torch.tensor([[2 * math.log(3), 0.0]])
    student = torch.tensor([[5.0, 5.0]])
    expected = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert soft_targets(student, teacher, 2.0).item() == pytest.approx(4 * expected, rel=1e-6)


def test_soft_targets_are_a_mean_over_samples() -> None:
    from edgekit.train.losses import soft_targets

    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(4, 7, generator=generator) for _ in range(2))
    each = [soft_targets(student[i : i + 1], teacher[i : i + 1], 3.0) for i in range(4)]
    mean = torch.stack(each).mean()
    assert soft_targets(student, teacher, 3.0).item() == pytest.approx(mean.item(), rel=1e-5)


def test_high_temperatures_match_logits() -> None:
    """Hinton et al., section 2.1: the gradient tends to the difference of zero-mean logits / N."""
    from edgekit.train.losses import soft_targets

    generator = torch.Generator().manual_seed(0)
    student = torch.randn(1, 5, generator=generator, dtype=torch.float64).requires_grad_()
    teacher = torch.randn(1, 5, generator=generator, dtype=torch.float64)
    soft_targets(student, teacher, 1e4).backward()
    difference = (student - student.mean()) - (teacher - teacher.mean())
    assert torch.allclose(student.grad, difference.detach() / 5, atol=1e-4)


def test_relative_error_by_hand() -> None:
    from edgekit.train.losses import relative_error

    student, teacher = torch.tensor([[1.0, 5.0]]), torch.tensor([[3.0, 4.0]])
    assert relative_error(student, teacher).item() == pytest.approx((4 + 1) / (9 + 16))


def test_relative_error_does_not_depend_on_the_unit() -> None:
    from edgekit.train.losses import relative_error

    student, teacher = torch.tensor([[1.0, 5.0]]), torch.tensor([[3.0, 4.0]])
    scaled = relative_error(1000 * student, 1000 * teacher)
    assert scaled.item() == pytest.approx(relative_error(student, teacher).item(), rel=1e-6)


def test_relative_error_of_an_output_that_is_zero_is_finite() -> None:
    from edgekit.train.losses import relative_error

    assert math.isfinite(relative_error(torch.ones(2, 3, 4), torch.zeros(2, 3, 4)).item())


@pytest.mark.parametrize(
    ("shape", "softened"), [((4, 10), True), ((4, 1), False), ((4, 3, 8, 8), False), ((4,), False)]
)
def test_class_scores_are_softened_and_other_outputs_are_not(
    shape: tuple[int, ...], softened: bool
) -> None:
    from edgekit.train.losses import imitation, relative_error

    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(*shape, generator=generator) for _ in range(2))
    found = imitation(student, teacher, 4.0).item()
    assert (found == relative_error(student, teacher).item()) != softened
    assert (found == imitation(student, teacher, 2.0).item()) != softened


def test_a_shift_of_all_scores_is_seen() -> None:
    """Soft targets alone are blind to it: the answers would be right and the scores wrong."""
    from edgekit.train.losses import imitation, soft_targets

    teacher = torch.tensor([[1.0, 5.0, 2.0]])
    assert soft_targets(teacher + 3, teacher, 4.0).item() == pytest.approx(0, abs=1e-5)
    assert imitation(teacher + 3, teacher, 4.0).item() == pytest.approx(0.5 * 9, abs=1e-4)
    assert imitation(teacher, teacher, 4.0).item() == pytest.approx(0, abs=1e-5)


def test_matched_logits_are_soft_targets_at_a_high_temperature() -> None:
    from edgekit.train.losses import matched_logits, soft_targets

    generator = torch.Generator().manual_seed(0)
    student, teacher = (
        torch.randn(4, 5, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    student, teacher = student - student.mean(1, True), teacher - teacher.mean(1, True)
    soft = soft_targets(student, teacher, 1e4).item()
    assert matched_logits(student, teacher).item() == pytest.approx(soft, rel=1e-3)
