"""The server's optimizers once more, in TensorFlow: what the baseline trains with.

A baseline that ran on DistNet's own engine would prove little. These follow the same formulas (PyTorch's) from the same
settings, inside the compiled step of one process.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from distnet.errors import ConfigError

__all__ = ["LOCAL_OPTIMIZERS", "LocalOptimizer", "scheduled_learning_rate"]

Settings = Mapping[str, float]

_DIALECTS: Final = (
    "amsgrad",
    "centered",
    "dampening",
    "decoupled_weight_decay",
    "eps_before_correction",
    "eps_inside_root",
    "velocity_holds_rate",
)


class LocalOptimizer:
    """Applies gradients to variables, and keeps a moving average of these.

    Args:
        spec: ``to_spec()`` of one of :mod:`distnet.optimizers`.
        variables: what to train.
        ema_decay: decay of the moving average, 0 for none; it ramps up as the server's:
            ``min(decay, (1 + n) / (10 + n))``.

    Attributes:
        ema: variables that hold the moving average; empty without one.
    """

    def __init__(self, spec: Mapping[str, Any], variables: Sequence[Any], *, ema_decay: float) -> None:
        if spec["name"] not in LOCAL_OPTIMIZERS:
            raise ConfigError(f"the baseline has no optimizer {spec['name']!r}; it has {', '.join(LOCAL_OPTIMIZERS)}")
        self._spec = spec
        self._settings: Settings = spec["settings"]
        if dialect := [name for name in _DIALECTS if self._settings.get(name)]:
            raise ConfigError(f"the baseline's {spec['name']} has no {', '.join(dialect)}; leave it out")
        self._variables = variables
        self._rule, vectors = LOCAL_OPTIMIZERS[spec["name"]]
        initial = self._settings.get("initial_accumulator_value", 0.0)
        self._state = [
            [tf.Variable(tf.fill(v.shape, initial), trainable=False) for _ in range(vectors)] for v in variables
        ]
        self._decay = ema_decay
        self.ema = [tf.Variable(v, trainable=False) for v in variables] if ema_decay else []

    def state(self, vectors: int) -> list[list[NDArray[np.float32]]]:
        """Return copies of so many of the state vectors, in the order of the server's: for checkpoints."""
        return [[np.array(of_variable[vector].numpy()) for of_variable in self._state] for vector in range(vectors)]

    def scalars(self, update: int) -> tuple[Any, Any, Any]:
        """Return learning_rate, ordinal (from 1) and decay of update number ``update`` (from 0), for :meth:`apply`."""
        learning_rate = scheduled_learning_rate(self._spec["schedule"], update)
        decay = min(self._decay, (1 + update) / (10 + update))
        return (
            tf.constant(learning_rate, tf.float32),
            tf.constant(update + 1.0, tf.float32),
            tf.constant(decay, tf.float32),
        )

    def apply(self, gradients: Sequence[Any], scalars: tuple[Any, Any, Any]) -> None:
        """Update all variables; to be called inside a compiled step."""
        learning_rate, ordinal, decay = scalars
        for index, (variable, gradient) in enumerate(zip(self._variables, self._clipped(gradients), strict=True)):
            decayed = self._settings.get("weight_decay", 0.0)
            if decayed and self._spec["name"] not in ("adamw", "lion"):
                gradient = gradient + decayed * variable
            self._rule(variable, gradient, self._state[index], learning_rate, ordinal, self._settings)
        for average, variable in zip(self.ema, self._variables, strict=bool(self.ema)):
            average.assign_sub((1.0 - decay) * (average - variable))

    def _clipped(self, gradients: Sequence[Any]) -> Sequence[Any]:
        if self._spec.get("clip_norm"):
            gradients, _ = tf.clip_by_global_norm(gradients, self._spec["clip_norm"])
        limit = self._spec.get("clip_value")
        return [tf.clip_by_value(gradient, -limit, limit) for gradient in gradients] if limit else gradients


def scheduled_learning_rate(schedule: Mapping[str, Any], update: int) -> float:
    """Return the learning rate of update number ``update``, counted from 0, as :mod:`distnet.optimizers` defines it."""
    warmup = int(schedule.get("warmup_updates") or 0)
    if update < warmup:
        start: float = schedule.get("warmup_learning_rate") or 0.0
        return start + (scheduled_learning_rate({**schedule, "warmup_updates": 0}, 0) - start) * update / warmup
    update -= warmup
    learning_rate: float = schedule["learning_rate"]
    if schedule["kind"] == "exponential":
        periods = update / schedule["period_updates"]
        return learning_rate * math.pow(
            schedule["factor"], math.floor(periods) if schedule.get("staircase") else periods
        )
    if schedule["kind"] == "cosine":
        final: float = schedule.get("final_learning_rate") or 0.0
        done = min(1.0, update / schedule["period_updates"])
        return final + (learning_rate - final) * 0.5 * (1.0 + math.cos(math.pi * done))
    if schedule["kind"] == "piecewise":
        return float(schedule["values"][sum(update >= boundary for boundary in schedule["boundaries"])])
    return learning_rate


def _sgd(
    variable: Any, gradient: Any, state: Sequence[Any], learning_rate: Any, ordinal: Any, settings: Settings
) -> None:
    variable.assign_sub(learning_rate * gradient)


def _momentum(
    variable: Any, gradient: Any, state: Sequence[Any], learning_rate: Any, ordinal: Any, settings: Settings
) -> None:
    momentum = settings.get("momentum", 0.9)
    velocity = state[0].assign(momentum * state[0] + gradient)
    variable.assign_sub(learning_rate * (gradient + momentum * velocity if settings.get("nesterov") else velocity))


def _adagrad(
    variable: Any, gradient: Any, state: Sequence[Any], learning_rate: Any, ordinal: Any, settings: Settings
) -> None:
    total = state[0].assign_add(gradient * gradient)
    learning_rate = learning_rate / (1.0 + (ordinal - 1.0) * settings.get("learning_rate_decay", 0.0))
    variable.assign_sub(learning_rate * gradient / (tf.sqrt(total) + settings.get("eps", 1e-10)))


def _rmsprop(
    variable: Any, gradient: Any, state: Sequence[Any], learning_rate: Any, ordinal: Any, settings: Settings
) -> None:
    alpha = settings.get("alpha", 0.99)
    square = state[0].assign(alpha * state[0] + (1.0 - alpha) * gradient * gradient)
    change = gradient / (tf.sqrt(square) + settings.get("eps", 1e-8))
    momentum = settings.get("momentum", 0.0)
    variable.assign_sub(learning_rate * (state[1].assign(momentum * state[1] + change) if momentum else change))


def _adam(
    variable: Any, gradient: Any, state: Sequence[Any], learning_rate: Any, ordinal: Any, settings: Settings
) -> None:
    beta1, beta2 = settings.get("beta1", 0.9), settings.get("beta2", 0.999)
    first = state[0].assign(beta1 * state[0] + (1.0 - beta1) * gradient)
    second = state[1].assign(beta2 * state[1] + (1.0 - beta2) * gradient * gradient)
    root = tf.sqrt(second) / tf.sqrt(1.0 - tf.pow(beta2, ordinal)) + settings.get("eps", 1e-8)
    variable.assign_sub(learning_rate / (1.0 - tf.pow(beta1, ordinal)) * first / root)


def _adamw(
    variable: Any, gradient: Any, state: Sequence[Any], learning_rate: Any, ordinal: Any, settings: Settings
) -> None:
    variable.assign_sub(learning_rate * settings.get("weight_decay", 0.01) * variable)
    _adam(variable, gradient, state, learning_rate, ordinal, settings)


def _nadam(
    variable: Any, gradient: Any, state: Sequence[Any], learning_rate: Any, ordinal: Any, settings: Settings
) -> None:
    beta1, beta2 = settings.get("beta1", 0.9), settings.get("beta2", 0.999)
    decay = settings.get("momentum_decay", 4e-3)
    share, next_share = (beta1 * (1.0 - 0.5 * tf.pow(0.96, n * decay)) for n in (ordinal, ordinal + 1.0))
    product = state[2].assign(tf.where(ordinal > 1.0, state[2], tf.ones_like(state[2])) * share)
    first = state[0].assign(beta1 * state[0] + (1.0 - beta1) * gradient)
    second = state[1].assign(beta2 * state[1] + (1.0 - beta2) * gradient * gradient)
    step = (1.0 - share) / (1.0 - product) * gradient + next_share / (1.0 - product * next_share) * first
    root = tf.sqrt(second / (1.0 - tf.pow(beta2, ordinal))) + settings.get("eps", 1e-8)
    variable.assign_sub(learning_rate * step / root)


def _lion(
    variable: Any, gradient: Any, state: Sequence[Any], learning_rate: Any, ordinal: Any, settings: Settings
) -> None:
    beta1, beta2 = settings.get("beta1", 0.9), settings.get("beta2", 0.99)
    direction = tf.sign(beta1 * state[0] + (1.0 - beta1) * gradient)
    state[0].assign(beta2 * state[0] + (1.0 - beta2) * gradient)
    variable.assign_sub(learning_rate * (direction + settings.get("weight_decay", 0.0) * variable))


def _outer_nesterov(
    variable: Any, gradient: Any, state: Sequence[Any], learning_rate: Any, ordinal: Any, settings: Settings
) -> None:
    _momentum(variable, gradient, state, learning_rate, ordinal, {**settings, "nesterov": 1.0})


LOCAL_OPTIMIZERS: Final[Mapping[str, tuple[Callable[..., None], int]]] = MappingProxyType(
    {
        "sgd": (_sgd, 0),
        "momentum": (_momentum, 1),
        "adagrad": (_adagrad, 1),
        "rmsprop": (_rmsprop, 2),
        "adam": (_adam, 2),
        "adamw": (_adamw, 2),
        "nadam": (_nadam, 3),
        "lion": (_lion, 1),
        "outer_nesterov": (_outer_nesterov, 1),
    }
)
"""By the server's names: ``(variable, gradient, state, learning_rate, ordinal, settings)``; how many state vectors."""
