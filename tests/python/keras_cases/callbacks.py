"""Callbacks that change the learning rate, and a rate that is a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras

__all__ = ["CALLBACKS", "own_rate"]


def own_rate() -> float:
    """Return a learning rate, as a function that an optimizer is given may."""
    return 0.05


def _by_epoch() -> Any:
    return keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * 0.5 ** min(epoch, 1))


def _on_plateau() -> Any:
    # No epoch is better by so much: the rate falls after each.
    return keras.callbacks.ReduceLROnPlateau(monitor="loss", factor=0.5, patience=1, min_delta=1e3, cooldown=0)


class _EachBatch(keras.callbacks.Callback):  # type: ignore[misc]  # Keras is Any here
    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self.model.optimizer.learning_rate = 0.1 / (1 + batch)


CALLBACKS: Mapping[str, Callable[[], Any]] = {
    "by epoch": _by_epoch,
    "on plateau": _on_plateau,
    "each batch": _EachBatch,
}
