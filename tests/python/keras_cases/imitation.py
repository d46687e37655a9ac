"""What workers do, imitated by one process with stock Keras: it computes the halves of each batch in turn."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from keras_cases.models import built, optimizer_of
from keras_cases.outcomes import outcome
from keras_cases.steps import gradients_of
from keras_cases.training import BATCH, WORKERS, Array, Training, examples, validation

__all__ = ["halves", "local"]

_CLIPS = ("clipnorm", "clipvalue", "global_clipnorm")


def halves(training: Training) -> list[dict[str, Any]]:
    """Compute each rank's gradients by itself, and step once with their mean; return what each rank ends with."""
    ranks = _ranks(training)
    scalers = [_Scaler(training) for _ in ranks]
    gradients = [gradients_of(model, compiled=_in_xla(training), scaled=training.scales) for model in ranks]
    unclipped = {name: None for name in _CLIPS if name in training.settings}
    optimizer = optimizer_of(_unscaled(training), ranks[0], **unclipped)
    history: dict[str, list[float]] = {}
    for _ in range(training.epochs * training.fits):
        losses = []
        for step in range(training.steps):
            found = []
            for rank, compute in enumerate(gradients):
                loss, mine = scalers[rank].scaled(compute, *_batch(training, rank, step))
                losses.append(loss)
                if mine is not None:
                    found.append(_clipped(training, mine))
            if found:
                mean = [sum(parts[1:], parts[0]) / np.float32(len(found)) for parts in zip(*found, strict=True)]
                optimizer.apply([keras.ops.convert_to_tensor(each) for each in mean], ranks[0].trainable_variables)
                _take(ranks, [keras.ops.convert_to_numpy(each) for each in ranks[0].trainable_variables])
        _end_epoch(training, ranks, losses, history)
    return _outcomes(ranks, optimizer, history)


def local(training: Training) -> list[dict[str, Any]]:
    """Let each rank step by its own optimizer, and give all the mean of their parameters every so many steps."""
    every = training.distributed.get("every", 1)
    ranks = _ranks(training)
    history: dict[str, list[float]] = {}
    for model in ranks:
        model.optimizer = optimizer_of(training, model)
    gradients = [gradients_of(model) for model in ranks]
    for epoch in range(training.epochs * training.fits):
        losses = []
        for step in range(training.steps):
            for rank, model in enumerate(ranks):
                loss, mine = gradients[rank](*_batch(training, rank, step))
                losses.append(loss)
                model.optimizer.apply([keras.ops.convert_to_tensor(each) for each in mine], model.trainable_variables)
            if (epoch * training.steps + step + 1) % every == 0:
                _mix(ranks)
        _end_epoch(training, ranks, losses, history)
    _mix(ranks)
    return _outcomes(ranks, ranks[0].optimizer, history)


class _Scaler:
    """The loss scale of one rank, as ``LossScaleOptimizer`` keeps it."""

    def __init__(self, training: Training) -> None:
        told = training.scaled or {}
        self._scales = training.scales
        self._scale = float(told.get("initial_scale", 2.0**15 if self._scales else 1.0))
        self._growth = told.get("dynamic_growth_steps", 2000)
        self._finite_steps = 0

    def scaled(self, compute: Any, x: Array, y: Array) -> tuple[float, list[Array] | None]:
        """Return the loss and the gradients; none where one of them is not finite."""
        loss, found = compute(x, y, self._scale)
        if not self._scales:
            return loss, found
        if not all(np.isfinite(each).all() for each in found):
            self._scale, self._finite_steps = self._scale / 2, 0
            return loss, None
        found = [each / np.float32(self._scale) for each in found]
        self._finite_steps += 1
        if self._finite_steps == self._growth:
            self._scale, self._finite_steps = self._scale * 2, 0
        return loss, found


def _in_xla(training: Training) -> bool:
    return bool(training.compiled.get("jit_compile", False))


def _unscaled(training: Training) -> Training:
    return Training(**{**training.told(), "scaled": None})


def _ranks(training: Training) -> list[Any]:
    """Return the models of all ranks, which begin with rank 0's values."""
    keras.backend.clear_session()
    ranks = []
    for rank in range(WORKERS):
        model = built(training, rank)
        model.compile(optimizer="sgd", loss="mse", metrics=["mae"], jit_compile=False)
        ranks.append(model)
    ranks[1].set_weights(_with_own_seeds(ranks[0], ranks[1]))
    return ranks


def _with_own_seeds(first: Any, other: Any) -> list[Any]:
    """Return the weights of the first model; seeds are no weights."""
    return list(first.get_weights()[: len(other.get_weights())])


def _batch(training: Training, rank: int, step: int) -> tuple[Array, Array]:
    size = BATCH // WORKERS
    x, y = examples(training, rank)
    return x[step * size : (step + 1) * size], y[step * size : (step + 1) * size]


def _clipped(training: Training, gradients: list[Array]) -> list[Array]:
    settings = training.settings
    if value := settings.get("clipvalue"):
        return [np.clip(each, -value, value) for each in gradients]
    if norm := settings.get("clipnorm"):
        return [each * np.float32(norm / max(norm, np.linalg.norm(each))) for each in gradients]
    if norm := settings.get("global_clipnorm"):
        whole = np.sqrt(sum(np.sum(np.square(each)) for each in gradients))
        return [each * np.float32(norm / max(norm, whole)) for each in gradients]
    return gradients


def _take(ranks: list[Any], values: list[Array]) -> None:
    for model in ranks:
        for variable, value in zip(model.trainable_variables, values, strict=True):
            variable.assign(value)


def _mix(ranks: list[Any]) -> None:
    parts = zip(*(model.trainable_variables for model in ranks), strict=True)
    _take(ranks, [np.mean([keras.ops.convert_to_numpy(each) for each in part], axis=0) for part in parts])


def _mix_state(training: Training, ranks: list[Any]) -> None:
    """Give all ranks the mean of their moving statistics, or rank 0's."""
    for part in zip(*(model.non_trainable_variables for model in ranks), strict=True):
        if "float" not in keras.backend.standardize_dtype(part[0].dtype):
            continue
        values = [keras.ops.convert_to_numpy(each) for each in part]
        mixed = values[0] if training.distributed.get("state") == "rank0" else np.mean(values, axis=0)
        for variable in part:
            variable.assign(mixed)


def _end_epoch(training: Training, ranks: list[Any], losses: list[float], history: dict[str, list[float]]) -> None:
    _mix_state(training, ranks)
    history.setdefault("loss", []).append(float(np.mean(losses)))
    if training.validated:
        x, y = validation(None)
        history.setdefault("val_loss", []).append(float(ranks[0].evaluate(x, y, verbose=0)[0]))


def _outcomes(ranks: list[Any], optimizer: Any, history: dict[str, list[float]]) -> list[dict[str, Any]]:
    outcomes = []
    for model in ranks:
        model.optimizer = optimizer
        outcomes.append(outcome(model, history))
    return outcomes
