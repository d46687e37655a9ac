"""Adam, AdamW and NAdam."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from distnet.optimizers.optimizer import DIALECT, Optimizer, checked_betas
from distnet.schedules import LearningRate

__all__ = ["Adam", "AdamW", "NAdam"]


@dataclasses.dataclass(frozen=True)
class Adam(Optimizer):
    """Adam: the mean of gradients over the root of the mean of their squares, both corrected for their start at 0.

    With ``t`` counting a shard's updates from 1::

        g = g + weight_decay * p
        m = m + (1 - beta1) * (g - m)
        v = beta2 * v + (1 - beta2) * g * g
        p = p - learning_rate / (1 - beta1 ** t) * m / (sqrt(v) / sqrt(1 - beta2 ** t) + eps)

    With ``amsgrad``, ``w = max(w, v)`` stands for ``v`` in the last line. With ``eps_before_correction`` that line is
    Keras's::

        p = p - learning_rate * sqrt(1 - beta2 ** t) / (1 - beta1 ** t) * m / (sqrt(v) + eps)

    Args:
        learning_rate: a float of at least 0, or a schedule.
        betas: what is kept of the two moving means, ``(beta1, beta2)``, both below 1.
        eps: added to the divisor.
        weight_decay: L2 penalty, added to the gradient.
        amsgrad: divide by the largest mean of squares so far, which takes a vector more.
        eps_before_correction: add ``eps`` to the root as it is, before its start at 0 is corrected.

    Example:
        >>> store = distnet.MutexStore(np.zeros(2, np.float32), distnet.Adam(0.5))
        >>> store.apply(np.array([3.0, -0.5], np.float32))
        >>> out = np.empty(2, np.float32)
        >>> store.read(out), out.round(5).tolist()
        (1, [-0.5, 0.5])

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015.
    """

    name: ClassVar[str] = "adam"
    state_names: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")

    learning_rate: LearningRate = 1e-3
    betas: tuple[float, float] = dataclasses.field(default=(0.9, 0.999), kw_only=True)
    eps: float = dataclasses.field(default=1e-8, kw_only=True)
    weight_decay: float = dataclasses.field(default=0.0, kw_only=True)
    amsgrad: bool = dataclasses.field(default=False, kw_only=True, metadata=DIALECT)
    eps_before_correction: bool = dataclasses.field(default=False, kw_only=True, metadata=DIALECT)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "betas", checked_betas(self._field("betas"), self.betas))

    @classmethod
    def _kept(cls, settings: Mapping[str, Any]) -> tuple[str, ...]:
        return cls.state_names if settings.get("amsgrad") else cls.state_names[:2]


@dataclasses.dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay.

    Before the step of :class:`Adam`, which is taken without a penalty in the gradient::

        p = p * (1 - learning_rate * weight_decay)

    Args:
        weight_decay: the share, times the learning rate, that every parameter loses in an update.

    Example:
        >>> optimizer = distnet.AdamW(0.5, weight_decay=0.5)
        >>> store = distnet.MutexStore(np.array([8.0], np.float32), optimizer)
        >>> store.apply(np.zeros(1, np.float32))
        >>> out = np.empty(1, np.float32)
        >>> store.read(out), out.tolist()
        (1, [6.0])

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019.
    """

    name: ClassVar[str] = "adamw"

    weight_decay: float = dataclasses.field(default=1e-2, kw_only=True)


@dataclasses.dataclass(frozen=True)
class NAdam(Optimizer):
    """Adam with Nesterov's momentum.

    With ``t`` counting a shard's updates from 1::

        g = g + weight_decay * p
        m = m + (1 - beta1) * (g - m)
        v = v + (1 - beta2) * (g * g - v)
        mu(i) = beta1 * (1 - 0.5 * 0.96 ** (i * momentum_decay))
        a = (1 - mu(t)) / (1 - mu(1) * ... * mu(t)) * g
        b = mu(t + 1) / (1 - mu(1) * ... * mu(t + 1)) * m
        p = p - learning_rate * (a + b) / (sqrt(v / (1 - beta2 ** t)) + eps)

    It is ``torch.optim.NAdam``. Keras's has a ``momentum_decay`` of 1. The product of all ``mu`` follows from ``t``
    alone, so it is no state that a checkpoint would have to hold.

    Args:
        learning_rate: a float of at least 0, or a schedule.
        betas: what is kept of the two moving means, ``(beta1, beta2)``, both below 1.
        eps: added to the divisor.
        weight_decay: L2 penalty, added to the gradient.
        momentum_decay: how fast ``mu`` rises from half of ``beta1`` to ``beta1``.
        decoupled_weight_decay: in place of the penalty, ``p`` loses ``learning_rate * weight_decay`` of itself before
            the step.

    Example:
        >>> optimizer = distnet.NAdam(0.5, betas=(0.0, 0.999))
        >>> store = distnet.MutexStore(np.zeros(2, np.float32), optimizer)
        >>> store.apply(np.array([3.0, -0.5], np.float32))
        >>> out = np.empty(2, np.float32)
        >>> store.read(out), out.round(5).tolist()
        (1, [-0.5, 0.5])

    Source: Dozat, "Incorporating Nesterov Momentum into Adam", ICLR workshop 2016.
    """

    name: ClassVar[str] = "nadam"
    state_names: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    learning_rate: LearningRate = 2e-3
    betas: tuple[float, float] = dataclasses.field(default=(0.9, 0.999), kw_only=True)
    eps: float = dataclasses.field(default=1e-8, kw_only=True)
    weight_decay: float = dataclasses.field(default=0.0, kw_only=True)
    momentum_decay: float = dataclasses.field(default=4e-3, kw_only=True)
    decoupled_weight_decay: bool = dataclasses.field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "betas", checked_betas(self._field("betas"), self.betas))
