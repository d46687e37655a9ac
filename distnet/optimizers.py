"""Optimizers that the servers apply, as frozen values.

The engine does the arithmetic (``csrc/optim``, one file an optimizer); here stands only what is asked of it. Formulas,
defaults and order of operations are PyTorch's, so each agrees with ``torch.optim`` to float32 rounding. The first
argument is always the learning rate: a float, or a schedule by update count::

    distnet.Momentum(distnet.CosineDecay(0.1, updates=10_000), nesterov=True, weight_decay=1e-4)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from distnet.errors import ConfigError
from distnet.schedules import (
    CosineDecay,
    ExponentialDecay,
    LearningRate,
    PiecewiseConstant,
    Schedule,
    Warmup,
    check_flag,
    check_learning_rate,
    check_number,
    learning_rate_from_spec,
    learning_rate_to_spec,
)

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "CosineDecay",
    "ExponentialDecay",
    "Group",
    "Momentum",
    "Optimizer",
    "PiecewiseConstant",
    "RMSProp",
    "LearningRate",
    "Schedule",
    "Warmup",
    "from_spec",
    "state_names",
    "state_vectors",
]


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What all optimizers share.

    Attributes:
        learning_rate: a finite float of at least 0, or a schedule.
        clip_value: on the server, each element of a gradient is clamped to plus or minus this; ``None``: not.
        clip_norm: on the client, a gradient whose Euclidean norm, over all tensors and shards, exceeds this is scaled
            down to it; ``None``: not.
    """

    name: ClassVar[str] = ""
    state_names: ClassVar[tuple[str, ...]] = ()  # of the vectors that it keeps, in order, as PyTorch names them

    learning_rate: LearningRate
    clip_value: float | None = dataclasses.field(default=None, kw_only=True)
    clip_norm: float | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_learning_rate(self._field("learning_rate"), self.learning_rate)
        for clip in ("clip_value", "clip_norm"):
            if getattr(self, clip) is not None:
                check_number(self._field(clip), getattr(self, clip), above=0.0)
        for field in dataclasses.fields(self):
            if field.type in ("float", float):
                check_number(self._field(field.name), getattr(self, field.name))
            elif field.type in ("bool", bool):
                check_flag(self._field(field.name), getattr(self, field.name))

    def to_spec(self) -> dict[str, Any]:
        """Return the optimizer as plain data that JSON can hold; :func:`from_spec` is the way back."""
        return {
            "name": self.name,
            "settings": self._settings(),
            "schedule": learning_rate_to_spec(self.learning_rate),
            "clip_value": 0.0 if self.clip_value is None else float(self.clip_value),
            "clip_norm": 0.0 if self.clip_norm is None else float(self.clip_norm),
        }

    def _settings(self) -> dict[str, float]:
        settings: dict[str, float] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "betas":
                settings["beta1"], settings["beta2"] = (float(beta) for beta in value)
            elif field.name not in ("learning_rate", "clip_value", "clip_norm"):
                settings[field.name] = float(value)
        return settings

    def _field(self, field: str) -> str:
        return f"{type(self).__name__}.{field}"


@dataclasses.dataclass(frozen=True)
class SGD(Optimizer):
    """Stochastic gradient descent: ``p -= learning_rate * (g + weight_decay * p)``.

    Attributes:
        weight_decay: L2 penalty, added to the gradient.
    """

    name: ClassVar[str] = "sgd"

    learning_rate: LearningRate = 1e-3
    weight_decay: float = dataclasses.field(default=0.0, kw_only=True)


@dataclasses.dataclass(frozen=True)
class Momentum(Optimizer):
    """Gradient descent with momentum: ``v = momentum * v + g; p -= learning_rate * v``.

    Nesterov's: ``p -= learning_rate * (g + momentum * v)``. Polyak (1964); Sutskever et al. (2013). As
    ``torch.optim.SGD`` with ``dampening=0``.

    Attributes:
        momentum: what is kept of the velocity.
        nesterov: take the step that looks ahead.
        weight_decay: L2 penalty, added to the gradient.
    """

    name: ClassVar[str] = "momentum"
    state_names: ClassVar[tuple[str, ...]] = ("momentum_buffer",)

    learning_rate: LearningRate = 1e-3
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = dataclasses.field(default=0.0, kw_only=True)


@dataclasses.dataclass(frozen=True)
class Adagrad(Optimizer):
    """Adagrad: ``s += g * g; p -= learning_rate * g / (sqrt(s) + eps)``.

    Duchi et al. (2011).

    Attributes:
        learning_rate_decay: the learning rate is divided by ``1 + update * learning_rate_decay`` (``lr_decay`` in
            PyTorch).
        initial_accumulator_value: where ``s`` starts.
        eps: added to the divisor.
        weight_decay: L2 penalty, added to the gradient.
    """

    name: ClassVar[str] = "adagrad"
    state_names: ClassVar[tuple[str, ...]] = ("sum",)

    learning_rate: LearningRate = 1e-2
    learning_rate_decay: float = dataclasses.field(default=0.0, kw_only=True)
    initial_accumulator_value: float = dataclasses.field(default=0.0, kw_only=True)
    eps: float = dataclasses.field(default=1e-10, kw_only=True)
    weight_decay: float = dataclasses.field(default=0.0, kw_only=True)


@dataclasses.dataclass(frozen=True)
class RMSProp(Optimizer):
    """RMSProp: ``s = alpha * s + (1 - alpha) * g * g; p -= learning_rate * g / (sqrt(s) + eps)``.

    Tieleman and Hinton (2012).

    Attributes:
        alpha: what is kept of the moving mean of squares.
        eps: added to the divisor.
        momentum: above 0: ``v = momentum * v + g / (sqrt(s) + eps); p -= learning_rate * v``.
        weight_decay: L2 penalty, added to the gradient.
    """

    name: ClassVar[str] = "rmsprop"
    state_names: ClassVar[tuple[str, ...]] = ("square_avg", "momentum_buffer")  # the second with a momentum

    learning_rate: LearningRate = 1e-2
    alpha: float = dataclasses.field(default=0.99, kw_only=True)
    eps: float = dataclasses.field(default=1e-8, kw_only=True)
    momentum: float = dataclasses.field(default=0.0, kw_only=True)
    weight_decay: float = dataclasses.field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number(self._field("alpha"), self.alpha, below=1.0)


@dataclasses.dataclass(frozen=True)
class Adam(Optimizer):
    """Adam: the mean of gradients over the root of the mean of their squares, both corrected for their start at 0.

    Kingma and Ba (2015).

    Attributes:
        betas: what is kept of the two moving means.
        eps: added to the divisor.
        weight_decay: L2 penalty, added to the gradient.
    """

    name: ClassVar[str] = "adam"
    state_names: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")

    learning_rate: LearningRate = 1e-3
    betas: tuple[float, float] = dataclasses.field(default=(0.9, 0.999), kw_only=True)
    eps: float = dataclasses.field(default=1e-8, kw_only=True)
    weight_decay: float = dataclasses.field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "betas", tuple(self.betas))
        if len(self.betas) != 2:
            raise ConfigError(f"{self._field('betas')} is {self.betas!r}; expected two numbers")
        for beta in self.betas:
            check_number(self._field("betas"), beta, below=1.0)


@dataclasses.dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay: ``p *= 1 - learning_rate * weight_decay``, then Adam's step without it.

    Loshchilov and Hutter (2019).

    Attributes:
        weight_decay: the share, times the learning rate, that every parameter loses in a step.
    """

    name: ClassVar[str] = "adamw"

    weight_decay: float = dataclasses.field(default=1e-2, kw_only=True)


OPTIMIZERS: Mapping[str, type[Optimizer]] = MappingProxyType(
    {optimizer.name: optimizer for optimizer in (SGD, Momentum, Adagrad, RMSProp, Adam, AdamW)}
)


@dataclasses.dataclass(frozen=True)
class Group:
    """Settings of the tensors whose names match a pattern (``ParameterServer(groups={pattern: Group(...)})``).

    Attributes:
        learning_rate_multiplier: what the optimizer's learning rate is multiplied by.
        weight_decay: instead of the optimizer's own; ``None``: as the optimizer has it.
    """

    learning_rate_multiplier: float = 1.0
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        check_number("Group.learning_rate_multiplier", self.learning_rate_multiplier)
        if self.weight_decay is not None:
            check_number("Group.weight_decay", self.weight_decay)


def from_spec(spec: Mapping[str, Any]) -> Optimizer:
    """Return the optimizer whose :meth:`Optimizer.to_spec` this is; settings left out have their defaults.

    Raises:
        ConfigError: an unknown optimizer or setting, or a value out of range.
    """
    unknown = sorted(set(spec) - {"name", "settings", "schedule", "clip_value", "clip_norm"})
    if unknown:
        raise ConfigError(f"an optimizer's specification has no {', '.join(unknown)}")
    kind = OPTIMIZERS.get(spec.get("name", ""))
    if kind is None:
        raise ConfigError(f"unknown optimizer {spec.get('name')!r}; expected one of {', '.join(OPTIMIZERS)}")
    settings: dict[str, Any] = dict(spec.get("settings", {}))
    if "nesterov" in settings:
        settings["nesterov"] = bool(settings["nesterov"])
    if "beta1" in settings or "beta2" in settings:
        settings["betas"] = (settings.pop("beta1", 0.9), settings.pop("beta2", 0.999))
    fields = {field.name for field in dataclasses.fields(kind)} - {"learning_rate", "clip_value", "clip_norm"}
    unknown = sorted(set(settings) - fields)
    if unknown:
        raise ConfigError(
            f"optimizer {kind.name!r} has no setting {', '.join(unknown)}; expected {', '.join(sorted(fields))}"
        )
    if "schedule" in spec:
        settings["learning_rate"] = learning_rate_from_spec(spec["schedule"])
    return kind(clip_value=spec.get("clip_value") or None, clip_norm=spec.get("clip_norm") or None, **settings)


def state_vectors(optimizer: Optimizer) -> int:
    """Return how many vectors an optimizer keeps."""
    without_momentum = isinstance(optimizer, RMSProp) and optimizer.momentum == 0
    return 1 if without_momentum else len(optimizer.state_names)


def state_names(spec: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Return names for so many state vectors of the optimizer whose :meth:`Optimizer.to_spec` this is.

    They are PyTorch's: ``momentum_buffer``, ``sum``, ``square_avg``, ``exp_avg``, ``exp_avg_sq``; beyond those, and for
    an optimizer that is not known here, ``state0``, ``state1`` and so on.
    """
    kind = OPTIMIZERS.get(spec.get("name", ""))
    known = kind.state_names[:count] if kind is not None else ()
    return (*known, *(f"state{index}" for index in range(len(known), count)))
