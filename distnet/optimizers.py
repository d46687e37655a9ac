"""Optimizers that the servers apply, as frozen values.

The engine does the arithmetic (``csrc/optim``, one file an optimizer); these classes only describe it. Formulas,
defaults and order of operations are PyTorch's, so each agrees with ``torch.optim`` to float32 rounding. The first
argument is always the learning rate: a float, or a schedule by update count::

    distnet.Momentum(distnet.CosineDecay(0.1, updates=10_000), nesterov=True, weight_decay=1e-4)

Each of them takes ``clip_value`` and ``clip_norm``, too, which :class:`Optimizer` describes.

In the formulas, ``p`` is an element of the parameters and ``g`` of the gradient. The other letters are elements of
state vectors: float32, as long as the parameters, and 0 at the start unless the text says otherwise.
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
    """What all optimizers share: a learning rate and two ways to clip.

    Args:
        learning_rate: a finite float of at least 0, or a schedule.
        clip_value: on the server, each element of a gradient is clamped to plus or minus this, above 0. None: not.
        clip_norm: on the client, a gradient whose Euclidean norm, over all tensors and shards, exceeds this is scaled
            down to it; above 0. None: not.

    Attributes:
        name: what settings and checkpoints call the optimizer, such as ``"sgd"``.
        state_names: names of its state vectors in order, as PyTorch has them.

    Raises:
        ConfigError: a value that is not finite, of another type, or out of range.

    Thread safety: it never changes.

    Example:
        >>> optimizer = distnet.SGD(0.5, clip_value=1.0)
        >>> store = distnet.MutexStore(np.zeros(2, np.float32), optimizer)
        >>> store.apply(np.array([0.5, -100.0], np.float32))
        >>> out = np.empty(2, np.float32)
        >>> store.read(out), out.tolist()
        (1, [-0.25, 0.5])
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
        """Return the optimizer as plain values that JSON can hold; :func:`from_spec` is the way back.

        Returns:
            A dict of ``"name"``, ``"settings"``, ``"schedule"``, ``"clip_value"`` and ``"clip_norm"``; 0 where nothing
            is clipped.
        """
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
    """Stochastic gradient descent.

    ::

        g = g + weight_decay * p
        p = p - learning_rate * g

    Args:
        learning_rate: a float of at least 0, or a schedule.
        weight_decay: L2 penalty, added to the gradient.

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


@dataclasses.dataclass(frozen=True)
class Momentum(Optimizer):
    """Gradient descent with momentum.

    ::

        g = g + weight_decay * p
        v = momentum * v + g
        p = p - learning_rate * v                       or, Nesterov's:
        p = p - learning_rate * (g + momentum * v)

    It is ``torch.optim.SGD`` with ``dampening=0``.

    Args:
        learning_rate: a float of at least 0, or a schedule.
        momentum: what is kept of the velocity.
        nesterov: take the step that looks ahead.
        weight_decay: L2 penalty, added to the gradient.

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


@dataclasses.dataclass(frozen=True)
class Adagrad(Optimizer):
    """Adagrad: each element's own learning rate, which falls with the sum of its squared gradients.

    ::

        g = g + weight_decay * p
        s = s + g * g
        p = p - learning_rate / (1 + update * learning_rate_decay) * g / (sqrt(s) + eps)

    Args:
        learning_rate: a float of at least 0, or a schedule.
        learning_rate_decay: how fast the learning rate falls with the count of updates (``lr_decay`` in PyTorch).
        initial_accumulator_value: where ``s`` starts.
        eps: added to the divisor.
        weight_decay: L2 penalty, added to the gradient.

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


@dataclasses.dataclass(frozen=True)
class RMSProp(Optimizer):
    """RMSProp: gradients over the root of a moving mean of their squares.

    ::

        g = g + weight_decay * p
        s = alpha * s + (1 - alpha) * g * g
        p = p - learning_rate * g / (sqrt(s) + eps)     or, with a momentum above 0:
        v = momentum * v + g / (sqrt(s) + eps)
        p = p - learning_rate * v

    Args:
        learning_rate: a float of at least 0, or a schedule.
        alpha: what is kept of the moving mean, below 1.
        eps: added to the divisor.
        momentum: what is kept of the velocity. 0: there is none, and no vector for it.
        weight_decay: L2 penalty, added to the gradient.

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

    With ``t`` counting a shard's updates from 1::

        g = g + weight_decay * p
        m = m + (1 - beta1) * (g - m)
        v = beta2 * v + (1 - beta2) * g * g
        p = p - learning_rate / (1 - beta1 ** t) * m / (sqrt(v) / sqrt(1 - beta2 ** t) + eps)

    Args:
        learning_rate: a float of at least 0, or a schedule.
        betas: what is kept of the two moving means, ``(beta1, beta2)``, both below 1.
        eps: added to the divisor.
        weight_decay: L2 penalty, added to the gradient.

    Example:
        >>> store = distnet.MutexStore(np.zeros(2, np.float32), distnet.Adam(0.5))
        >>> store.apply(np.array([3.0, -0.5], np.float32))
        >>> out = np.empty(2, np.float32)
        >>> store.read(out), out.round(5).tolist()
        (1, [-0.5, 0.5])

    Source: Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015.
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


OPTIMIZERS: Mapping[str, type[Optimizer]] = MappingProxyType(
    {optimizer.name: optimizer for optimizer in (SGD, Momentum, Adagrad, RMSProp, Adam, AdamW)}
)


@dataclasses.dataclass(frozen=True)
class Group:
    """Settings of the tensors whose names match a pattern.

    ``ParameterServer(groups={pattern: Group(...)})`` takes them.

    Args:
        learning_rate_multiplier: what the optimizer's learning rate is multiplied by, at least 0.
        weight_decay: counts in place of the optimizer's own, at least 0. None: as the optimizer has it.

    Raises:
        ConfigError: a value that is not finite or below 0.

    Thread safety: it never changes.

    Example:
        >>> model = {name: np.zeros(1, np.float32) for name in ("dense/kernel", "dense/bias")}
        >>> groups = {"*bias": distnet.Group(learning_rate_multiplier=2.0)}
        >>> optimizer = distnet.SGD(0.5)
        >>> with distnet.ParameterServer(model, optimizer=optimizer, groups=groups) as server:
        ...     with distnet.connect(server.address, rank=0) as client:
        ...         client.push({name: np.ones(1, np.float32) for name in model})
        ...     {name: array.tolist() for name, array in server.parameters().items()}
        {'dense/kernel': [-0.5], 'dense/bias': [-1.0]}
    """

    learning_rate_multiplier: float = 1.0
    weight_decay: float | None = None

    def __post_init__(self) -> None:
        check_number("Group.learning_rate_multiplier", self.learning_rate_multiplier)
        if self.weight_decay is not None:
            check_number("Group.weight_decay", self.weight_decay)


def from_spec(spec: Mapping[str, Any]) -> Optimizer:
    """Return the optimizer whose :meth:`Optimizer.to_spec` this is.

    Args:
        spec: what that returned; settings left out have their defaults.

    Returns:
        An optimizer that equals the one it was made of.

    Raises:
        ConfigError: an unknown optimizer or setting, or a value out of range.

    Example:
        >>> optimizer = distnet.Adam(distnet.CosineDecay(0.1, updates=100))
        >>> distnet.optimizers.from_spec(optimizer.to_spec()) == optimizer
        True
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
    """Return how many state vectors an optimizer keeps.

    Args:
        optimizer: any.

    Returns:
        0 for SGD, 2 for Adam and AdamW, 1 for the others; RMSProp with a momentum has 2.
    """
    without_momentum = isinstance(optimizer, RMSProp) and optimizer.momentum == 0
    return 1 if without_momentum else len(optimizer.state_names)


def state_names(spec: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """Return names for so many state vectors of the optimizer whose :meth:`Optimizer.to_spec` this is.

    Args:
        spec: kind, settings and schedule of the optimizer as plain values.
        count: how many names are needed.

    Returns:
        PyTorch's names, which are ``momentum_buffer``, ``sum``, ``square_avg``, ``exp_avg``, ``exp_avg_sq``; beyond
        those, and for an optimizer that is not known here, ``state0``, ``state1`` and so on.

    Example:
        >>> distnet.optimizers.state_names(distnet.Adam().to_spec(), 2)
        ('exp_avg', 'exp_avg_sq')
    """
    kind = OPTIMIZERS.get(spec.get("name", ""))
    known = kind.state_names[:count] if kind is not None else ()
    return (*known, *(f"state{index}" for index in range(len(known), count)))
