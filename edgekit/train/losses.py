"""Losses by which one network teaches another."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def soft_targets(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The mean over samples of T^2 KL(p || q), p and q the softened teacher and student.

        q_i = exp(z_i / T) / sum_j exp(z_j / T)        (n, classes) logits z

    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015), eq. 1; the factor
    T^2 keeps the size of the gradients as T changes (section 2).
    """
    log_q = functional.log_softmax(student / temperature, dim=1)
    log_p = functional.log_softmax(teacher / temperature, dim=1)
    return temperature**2 * functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")


def matched_logits(student: Tensor, teacher: Tensor) -> Tensor:
    """Half the mean squared difference of the logits.

    For zero-mean logits it is what `soft_targets` tend to at a high temperature (section 2.1
    there); unlike them it sees a shift of all logits of a sample.
    """
    return 0.5 * functional.mse_loss(student, teacher)


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared error over the teacher's mean square: for outputs that are no classes."""
    return functional.mse_loss(student, teacher) / teacher.square().mean().clamp_min(1e-12)


def imitation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """How far the student is from the teacher, for one output.

    Of class scores (n, classes) the sum of `soft_targets`, which weigh the classes in question, and
    `matched_logits`, which keep the scores themselves; of anything else the `relative_error`.
    """
    if teacher.ndim == 2 and teacher.shape[1] > 1:
        return soft_targets(student, teacher, temperature) + matched_logits(student, teacher)
    return relative_error(student, teacher)
