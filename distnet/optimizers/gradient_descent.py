"""Gradient descent, plain and with momentum."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from distnet.errors import ConfigError
from distnet.optimizers.optimizer import DIALECT, Optimizer
from distnet.schedules import LearningRate

__all__ = ["SGD", "Momentum"]


@dataclasses.dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent.

    ::

        g = g + weight_decay * p
        p = p - learning_rate * g

    Args:
        learning_rate: a float of at least 0, or a schedule.
        weight_decay: L2 penalty, added to the gradient.
        decoupled_weight_decay: in place of the penalty, ``p`` loses ``learning_rate * weight_decay`` of itself before
            the step.

    Example:
        >>> store = distnet.MutexStore(np.array([1.0, 2.0], np.float32), distnet.SGD(0.5))
        >>> store.apply(np.array([4.0, -4.0], np.float32))
        >>> out = np.empty(2, np.float32)
        >>> store.read(out), out.tolist()
        (1, [-1.0, 4.0])

    Source: Robbins and Monro, "A Stochastic Approximation Method", 1951.
    """

    name: ClassVar[str] = "sgd"

    learning_rate: LearningRate = 1e-3
    weight_decay: float = dataclasses.field(default=0.0, kw_only=True)
    decoupled_weight_decay: bool = dataclasses.field(default=False, kw_only=True, metadata=DIALECT)


@dataclasses.dataclass(frozen=True)
class Momentum(Optimizer):
    """Gradient descent with momentum.

    ::

        g = g + weight_decay * p
        v = momentum * v + (1 - dampening) * g          at the first update: v = g
        p = p - learning_rate * v                       or, Nesterov's:
        p = p - learning_rate * (g + momentum * v)

    It is ``torch.optim.SGD`` with a momentum. With ``velocity_holds_rate`` it is that of Keras, which differs where the
    learning rate changes::

        v = momentum * v - learning_rate * g
        p = p + v                                       or, Nesterov's:
        p = p + momentum * v - learning_rate * g

    Args:
        learning_rate: a float of at least 0, or a schedule.
        momentum: what is kept of the velocity.
        nesterov: take the step that looks ahead.
        weight_decay: L2 penalty, added to the gradient.
        dampening: what the velocity does not take of a gradient. Update 0 of a shard takes it whole, as PyTorch does.
            Not with ``nesterov``.
        velocity_holds_rate: the velocity is a sum of steps, in place of one of gradients.
        decoupled_weight_decay: in place of the penalty, ``p`` loses ``learning_rate * weight_decay`` of itself before
            the step.

    Example:
        >>> optimizer = distnet.Momentum(1.0, momentum=0.5)
        >>> store = distnet.MutexStore(np.zeros(1, np.float32), optimizer)
        >>> out, seen = np.empty(1, np.float32), []
        >>> for gradient in (4.0, 0.0, 0.0):
        ...     store.apply(np.array([gradient], np.float32))
        ...     version = store.read(out)
        ...     seen.append(float(out[0]))
        >>> seen
        [-4.0, -6.0, -7.0]

    Source: Polyak, "Some methods of speeding up the convergence of iteration methods", 1964; Sutskever et al., "On the
    importance of initialization and momentum in deep learning", ICML 2013, for Nesterov's in this form.
    """

    name: ClassVar[str] = "momentum"
    state_names: ClassVar[tuple[str, ...]] = ("momentum_buffer",)

    learning_rate: LearningRate = 1e-3
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = dataclasses.field(default=0.0, kw_only=True)
    dampening: float = dataclasses.field(default=0.0, kw_only=True, metadata=DIALECT)
    velocity_holds_rate: bool = dataclasses.field(default=False, kw_only=True, metadata=DIALECT)
    decoupled_weight_decay: bool = dataclasses.field(default=False, kw_only=True, metadata=DIALECT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nesterov and self.dampening != 0:
            raise ConfigError(f"{self._field('dampening')} is {self.dampening!r}; expected 0 with nesterov")
