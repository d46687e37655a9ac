"""Models of a few layers, and how a script compiles them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras

from keras_cases.callbacks import own_rate
from keras_cases.steps import OwnStep
from keras_cases.training import FEATURES, OUTPUTS, Training

__all__ = ["built", "compiled", "optimizer_of"]


def _dense(rank: int) -> list[Any]:
    return [
        keras.layers.Dense(8, activation="tanh", name="first"),
        keras.layers.Dense(OUTPUTS, name="last"),
    ]


def _batch_norm(rank: int) -> list[Any]:
    first, last = _dense(rank)
    return [first, keras.layers.BatchNormalization(momentum=0.8, name="norm"), last]


def _dropout(rank: int) -> list[Any]:
    first, last = _dense(rank)
    return [first, keras.layers.Dropout(0.5, seed=20 + rank, name="drop"), last]


def _frozen(rank: int) -> list[Any]:
    first, last = _dense(rank)
    first.trainable = False
    return [first, last]


def _constrained(rank: int) -> list[Any]:
    first = keras.layers.Dense(8, activation="tanh", kernel_constraint=keras.constraints.MaxNorm(0.5), name="first")
    return [first, _dense(rank)[1]]


def _convolutional(rank: int) -> list[Any]:
    return [
        keras.layers.Reshape((FEATURES, 1)),
        keras.layers.Conv1D(4, 3, padding="same", use_bias=False, name="convolution"),
        keras.layers.BatchNormalization(momentum=0.8, name="norm"),
        keras.layers.Activation("tanh"),
        keras.layers.GlobalAveragePooling1D(),
        keras.layers.Dropout(0.25, seed=20 + rank, name="drop"),
        keras.layers.Dense(OUTPUTS, name="last"),
    ]


_LAYERS: Mapping[str, Callable[[int], list[Any]]] = {
    "dense": _dense,
    "own step": _dense,
    "batch norm": _batch_norm,
    "dropout": _dropout,
    "frozen": _frozen,
    "constrained": _constrained,
    "convolutional": _convolutional,
}


def built(training: Training, rank: int) -> Any:
    """Return a model that is not compiled. Each rank's values are its own, as in a script that sets no seed."""
    keras.config.set_dtype_policy(training.dtype)
    keras.utils.set_random_seed(7 + rank)
    entry = keras.Input((FEATURES,), name="entry")
    x = entry
    for layer in _LAYERS[training.model](rank):
        x = layer(x)
    kind = OwnStep if training.model == "own step" else keras.Model
    return kind(entry, x)


def optimizer_of(training: Training, model: Any, **changed: Any) -> Any:
    """Return a new optimizer as the training says it, with some settings changed."""
    settings: dict[str, Any] = {**training.settings, **changed}
    rate = settings.get("learning_rate")
    if rate == "own":
        settings["learning_rate"] = own_rate
    elif isinstance(rate, list | tuple):
        settings["learning_rate"] = getattr(keras.optimizers.schedules, rate[0])(**rate[1])
    optimizer = getattr(keras.optimizers, training.optimizer)(**settings)
    excluded = dict(training.excluded)
    if excluded:
        names = excluded.pop("var_list", None)
        if names is not None:
            excluded["var_list"] = [variable for variable in model.trainable_variables if variable.path in names]
        optimizer.exclude_from_weight_decay(**excluded)
    if training.scaled is not None:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, **training.scaled)
    return optimizer


def compiled(training: Training, model: Any) -> None:
    """Compile a model as a script does."""
    metrics = None if training.model == "own step" else ["mae"]  # its step returns what is wanted
    model.compile(optimizer=optimizer_of(training, model), loss="mse", metrics=metrics, **training.compiled)
