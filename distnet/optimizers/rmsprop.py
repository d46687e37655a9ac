"""RMSProp, plain, centred and with momentum."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from distnet.optimizers.optimizer import DIALECT, Optimizer
from distnet.schedules import LearningRate, check_number

__all__ = ["RMSProp"]


@dataclasses.dataclass(frozen=True)
class RMSProp(Optimizer):
    """RMSProp: gradients over the root of a moving mean of their squares.

    ::

        g = g + weight_decay * p
        s = alpha * s + (1 - alpha) * g * g
        p = p - learning_rate * g / (sqrt(s) + eps)     or, with a momentum above 0:
        v = momentum * v + g / (sqrt(s) + eps)
        p = p - learning_rate * v

    With ``centered``, ``a`` is a moving mean of the gradients, and ``sqrt(s - a * a)`` stands for ``sqrt(s)``::

        a = a + (1 - alpha) * (g - a)

    Keras has ``sqrt(s + eps)`` for ``sqrt(s) + eps``, and its velocity holds the rate: ``eps_inside_root`` and
    ``velocity_holds_rate`` do so.

    Args:
        learning_rate: a float of at least 0, or a schedule.
        alpha: what is kept of the moving mean, below 1.
        eps: added to the divisor.
        momentum: what is kept of the velocity. 0: there is none, and no vector for it.
        weight_decay: L2 penalty, added to the gradient.
        centered: divide by the root of the variance.
        eps_inside_root: add ``eps`` before the root is taken.
        velocity_holds_rate: the velocity is a sum of steps:
            ``v = momentum * v + learning_rate * g / (sqrt(s) + eps)``, and ``p = p - v``.

    Example:
        >>> optimizer = distnet.RMSProp(1.0, alpha=0.75)
        >>> store = distnet.MutexStore(np.zeros(1, np.float32), optimizer)
        >>> store.apply(np.array([8.0], np.float32))  # s = 0.25 * 64
        >>> out = np.empty(1, np.float32)
        >>> store.read(out), out.round(5).tolist()
        (1, [-2.0])

    Source: Tieleman and Hinton, "Neural Networks for Machine Learning", lecture 6.5, 2012.
    """

    name: ClassVar[str] = "rmsprop"
    state_names: ClassVar[tuple[str, ...]] = ("square_avg", "momentum_buffer", "grad_avg")

    learning_rate: LearningRate = 1e-2
    alpha: float = dataclasses.field(default=0.99, kw_only=True)
    eps: float = dataclasses.field(default=1e-8, kw_only=True)
    momentum: float = dataclasses.field(default=0.0, kw_only=True)
    weight_decay: float = dataclasses.field(default=0.0, kw_only=True)
    centered: bool = dataclasses.field(default=False, kw_only=True, metadata=DIALECT)
    eps_inside_root: bool = dataclasses.field(default=False, kw_only=True, metadata=DIALECT)
    velocity_holds_rate: bool = dataclasses.field(default=False, kw_only=True, metadata=DIALECT)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self._field("alpha"), self.alpha, below=1.0)

    @classmethod
    def _kept(cls, settings: Mapping[str, Any]) -> tuple[str, ...]:
        has = {"square_avg": True, "momentum_buffer": settings.get("momentum"), "grad_avg": settings.get("centered")}
        return tuple(name for name in cls.state_names if has[name])
