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


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """The mean squared error over the teacher's mean square: for outputs that are no classes."""
    return functional.mse_loss(student, teacher) / teacher.square().mean().clamp_min(1e-12)


def imitation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """`soft_targets` for class scores (n, classes), `relative_error` for anything else."""
    if teacher.ndim == 2 and teacher.shape[1] > 1:
        return soft_targets(student, teacher, temperature)
    return relative_error(student, teacher)
