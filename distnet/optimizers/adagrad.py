"""Adagrad."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from distnet.optimizers.optimizer import DIALECT, Optimizer
from distnet.schedules import LearningRate

__all__ = ["Adagrad"]


@dataclasses.dataclass(frozen=True)
class Adagrad(Optimizer):
    """Adagrad: each element's own learning rate, which falls with the sum of its squared gradients.

    ::

        g = g + weight_decay * p
        s = s + g * g
        p = p - learning_rate / (1 + update * learning_rate_decay) * g / (sqrt(s) + eps)

    Keras divides by ``sqrt(s + eps)``: ``eps_inside_root`` does.

    Args:
        learning_rate: a float of at least 0, or a schedule.
        learning_rate_decay: how fast the learning rate falls with the count of updates (``lr_decay`` in PyTorch).
        initial_accumulator_value: where ``s`` starts.
        eps: added to the divisor.
        weight_decay: L2 penalty, added to the gradient.
        eps_inside_root: add ``eps`` before the root is taken.

    Example:
        The first update does not depend on the size of the gradient.

        >>> store = distnet.MutexStore(np.zeros(2, np.float32), distnet.Adagrad(1.0))
        >>> store.apply(np.array([3.0, -0.5], np.float32))
        >>> out = np.empty(2, np.float32)
        >>> store.read(out), out.round(5).tolist()
        (1, [-1.0, 1.0])

    Source: Duchi et al., "Adaptive Subgradient Methods for Online Learning and Stochastic Optimization", JMLR 2011.
    """

    name: ClassVar[str] = "adagrad"
    state_names: ClassVar[tuple[str, ...]] = ("sum",)

    learning_rate: LearningRate = 1e-2
    learning_rate_decay: float = dataclasses.field(default=0.0, kw_only=True)
    initial_accumulator_value: float = dataclasses.field(default=0.0, kw_only=True)
    eps: float = dataclasses.field(default=1e-10, kw_only=True)
    weight_decay: float = dataclasses.field(default=0.0, kw_only=True)
    eps_inside_root: bool = dataclasses.field(default=False, kw_only=True, metadata=DIALECT)
