"""Recipes: everything that decides how well AlexNet learns CIFAR-10, as data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal

from distnet.errors import ConfigError

if TYPE_CHECKING:
    from distnet.optimizers import Optimizer
    from distnet.schedules import LearningRate

__all__ = ["RECIPES", "Recipe"]

BASE_BATCH: Final = 128  # the effective batch that a recipe's learning_rate is meant for
EPOCH_EXAMPLES: Final = 50_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to train.

    The learning rate grows in proportion to the examples that one update joins, so that every example weighs alike
    whether its gradient is applied alone or as part of a round's mean.

    Attributes:
        name: as in :data:`RECIPES`.
        summary: a line for help texts.
        batch_size: examples of one worker's step.
        epochs: a sensible run.
        learning_rate: the (peak) learning rate of an update that joins 128 examples.
        schedule: ``"staircase"``: times 0.1 every ``period_epochs``; ``"cosine"``: linear warm-up over the first
            ``warmup`` of the run, then a half cosine down to 0 at its end.
        momentum: of SGD; 0 for plain SGD.
        nesterov: whether momentum looks ahead; under stale gradients it stays stable at larger rates.
        clip_norm: what a longer gradient of one worker's step is scaled down to; 0 for no limit.
        ema_decay: decay of the exponential moving average of the parameters that evaluation uses.
        weight_decay: L2 on the weights of the two hidden dense layers, part of the loss.
        contrast: the range that a training image's contrast is drawn from; (1, 1) leaves it as it is.
        period_epochs: of 50,000 examples; staircase only.
        warmup: a fraction of the run; cosine only.
    """

    name: str
    summary: str
    batch_size: int = BASE_BATCH
    epochs: float
    learning_rate: float
    schedule: Literal["staircase", "cosine"]
    momentum: float = 0.0
    nesterov: bool = False
    clip_norm: float = 0.0
    ema_decay: float
    weight_decay: float = 0.004
    contrast: tuple[float, float] = (0.2, 1.8)
    period_epochs: float = 350.0
    warmup: float = 0.05

    def __post_init__(self) -> None:
        if self.batch_size < 1 or not self.epochs > 0 or not self.learning_rate > 0:
            raise ConfigError("a recipe's batch_size, epochs and learning_rate must be above 0")
        if not (0 <= self.momentum < 1 and 0 <= self.ema_decay < 1 and 0 <= self.warmup < 1):
            raise ConfigError("a recipe's momentum, ema_decay and warmup must be at least 0 and below 1")
        if not 0 <= self.contrast[0] <= self.contrast[1]:
            raise ConfigError(f"a recipe's contrast is {self.contrast}; expected two rising numbers of at least 0")
        if not self.clip_norm >= 0:
            raise ConfigError(f"a recipe's clip_norm is {self.clip_norm}; it must be above 0, or 0 for no limit")

    def peak_learning_rate(self, *, effective_batch: int) -> float:
        """Return the largest learning rate of a run whose updates join ``effective_batch`` examples each."""
        return self.learning_rate * effective_batch / BASE_BATCH

    def optimizer(self, *, examples: int, effective_batch: int) -> Optimizer:
        """Return the server's optimizer for a run over ``examples``, of which an update joins ``effective_batch``.

        Raises:
            ConfigError: a number that is not above 0.
        """
        constant = self.constant_optimizer(effective_batch=effective_batch)
        learning_rate = self.peak_learning_rate(effective_batch=effective_batch)
        schedule = self.schedule_from(learning_rate, examples=examples, effective_batch=effective_batch)
        return dataclasses.replace(constant, learning_rate=schedule)

    def constant_optimizer(self, *, effective_batch: int) -> Optimizer:
        """Return the optimizer at its largest learning rate, without the schedule."""
        from distnet.optimizers import SGD, Momentum

        learning_rate = self.peak_learning_rate(effective_batch=effective_batch)
        clip_norm = self.clip_norm or None
        if self.momentum:
            return Momentum(learning_rate, self.momentum, nesterov=self.nesterov, clip_norm=clip_norm)
        return SGD(learning_rate, clip_norm=clip_norm)

    def schedule_from(self, learning_rate: float, *, examples: int, effective_batch: int) -> LearningRate:
        """Return the schedule of such a run whose largest learning rate is this.

        Raises:
            ConfigError: a number that is not above 0.
        """
        from distnet.schedules import CosineDecay, ExponentialDecay, Warmup

        if examples < 1 or effective_batch < 1:
            raise ConfigError(f"examples is {examples} and effective_batch {effective_batch}; expected at least 1 each")
        if self.schedule == "staircase":
            period = max(1, round(self.period_epochs * EPOCH_EXAMPLES / effective_batch))
            return ExponentialDecay(learning_rate, 0.1, period, staircase=True)
        updates = math.ceil(examples / effective_batch)
        warmup = int(updates * self.warmup)
        cosine = CosineDecay(learning_rate, max(1, updates - warmup))
        return Warmup(warmup, cosine) if warmup else cosine

    def rate_rule(self, *, effective_batch: int) -> str:
        """Say in words how the learning rate of such a run comes about."""
        learning_rate = f"{self.peak_learning_rate(effective_batch=effective_batch):g}"
        if effective_batch != BASE_BATCH:
            learning_rate += f" ({self.learning_rate:g} for each {BASE_BATCH} examples of an update)"
        clipped = f"; gradients clipped to a norm of {self.clip_norm:g}" if self.clip_norm else ""
        if self.schedule == "staircase":
            return f"{learning_rate}, ×0.1 every {self.period_epochs:g} epochs{clipped}"
        return f"warm-up over {self.warmup:.0%} of the run to {learning_rate}, then cosine to 0{clipped}"


_NESTEROV: Final = Recipe(
    name="nesterov",
    summary="small batches, Nesterov's momentum, long gradients clipped: nearly as fast where gradients are stale",
    batch_size=32,
    epochs=24,
    learning_rate=0.05,
    schedule="cosine",
    momentum=0.9,
    nesterov=True,
    clip_norm=3.0,
    ema_decay=0.9995,
)

_ALL: Final = (
    Recipe(
        name="default",
        summary="plain SGD and one cosine: loses least to the staleness of asynchronous updates",
        epochs=10,
        learning_rate=0.1,
        schedule="cosine",
        ema_decay=0.999,
    ),
    Recipe(
        name="momentum",
        summary="momentum and one cosine: the fastest where gradients are fresh (sync, or one worker)",
        epochs=10,
        learning_rate=0.05,
        schedule="cosine",
        momentum=0.9,
        ema_decay=0.999,
    ),
    _NESTEROV,
    dataclasses.replace(
        _NESTEROV,
        name="long",
        summary="as nesterov, with less distortion: forty epochs, whether gradients are fresh or stale",
        epochs=40,
        contrast=(0.6, 1.4),
    ),
    Recipe(
        name="tutorial",
        summary="plain SGD as in TensorFlow's CIFAR-10 tutorial and the 2017 project",
        epochs=350,
        learning_rate=0.1,
        schedule="staircase",
        ema_decay=0.9999,
    ),
)

RECIPES: Final[Mapping[str, Recipe]] = MappingProxyType({recipe.name: recipe for recipe in _ALL})
