"""Lion."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from distnet.optimizers.optimizer import Optimizer, checked_betas
from distnet.schedules import LearningRate

__all__ = ["Lion"]


@dataclasses.dataclass(frozen=True)
class Lion(Optimizer):
    """Lion: steps of one size, in the direction of a momentum's sign.

    ::

        c = beta1 * m + (1 - beta1) * g
        m = beta2 * m + (1 - beta2) * g
        p = p - learning_rate * (sign(c) + weight_decay * p)

    Args:
        learning_rate: a float of at least 0, or a schedule; about a tenth of what Adam takes.
        betas: what is kept of the momentum in the step and in the momentum itself, both below 1.
        weight_decay: the share, times the learning rate, that every parameter loses in an update.

    Example:
        >>> store = distnet.MutexStore(np.zeros(3, np.float32), distnet.Lion(0.5))
        >>> store.apply(np.array([3.0, -0.1, 0.0], np.float32))
        >>> out = np.empty(3, np.float32)
        >>> store.read(out), out.tolist()
        (1, [-0.5, 0.5, 0.0])

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms", NeurIPS 2023.
    """

    name: ClassVar[str] = "lion"
    state_names: ClassVar[tuple[str, ...]] = ("exp_avg",)

    learning_rate: LearningRate = 1e-4
    betas: tuple[float, float] = dataclasses.field(default=(0.9, 0.99), kw_only=True)
    weight_decay: float = dataclasses.field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "betas", checked_betas(self._field("betas"), self.betas))
