"""The outer step of DiLoCo."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from distnet.optimizers.optimizer import Optimizer
from distnet.schedules import LearningRate

__all__ = ["OuterNesterov"]


@dataclasses.dataclass(frozen=True)
class OuterNesterov(Optimizer):
    """The outer step of DiLoCo: workers take steps of their own, and add how far they came every so often.

    A change ``c`` of the parameters, or the mean of a round's changes, is taken for a gradient against its direction::

        v = momentum * v - c
        p = p - learning_rate * (momentum * v - c)

    Every other optimizer leaves a change as it is: ``p = p + c``. A gradient that is pushed counts as the change
    against its direction. A change is never clipped.

    Args:
        learning_rate: a float of at least 0, or a schedule by the count of outer steps.
        momentum: what is kept of the velocity.

    Example:
        >>> optimizer = distnet.OuterNesterov(0.5, momentum=0.5)
        >>> store = distnet.MutexStore(np.zeros(1, np.float32), optimizer)
        >>> out, seen = np.empty(1, np.float32), []
        >>> for change in (4.0, 0.0, 0.0):
        ...     store.add(np.array([change], np.float32))
        ...     version = store.read(out)
        ...     seen.append(float(out[0]))
        >>> seen
        [3.0, 3.5, 3.75]

    Source: Douillard et al., "DiLoCo: Distributed Low-Communication Training of Language Models", 2023.
    """

    name: ClassVar[str] = "outer_nesterov"
    state_names: ClassVar[tuple[str, ...]] = ("momentum_buffer",)

    learning_rate: LearningRate = 0.7
    momentum: float = 0.9
