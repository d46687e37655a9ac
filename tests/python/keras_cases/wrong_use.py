"""Scripts that do something wrong with ``distnet.keras``; each function raises what its user sees."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

import distnet.keras
from keras_cases.models import built, compiled
from keras_cases.runs import distributed, job, left_at_the_end
from keras_cases.training import BATCH, WORKERS, Training, examples

__all__ = ["distribute", "fit", "fit_after_a_change", "without_a_job"]


def distribute(training: Training, rank: int, address: str, wrong: str = "", workers: int = WORKERS) -> None:
    """Do something wrong before a model is distributed, then distribute it and leave."""
    keras.backend.clear_session()
    with job(rank, address, workers):
        model = built(training, rank)
        if wrong == "no model":
            distnet.keras.distribute(model.layers[1], **training.distributed)
        if wrong == "another model" and rank == 1:
            model = keras.Sequential([model, keras.layers.Dense(2, name="more")])
        if wrong == "an optimizer of its own":
            model.compile(optimizer=_own_optimizer(), loss="mse")
        else:
            compiled(training, model)
        if wrong == "fitted before":
            model.fit(*examples(training, None), batch_size=BATCH, shuffle=False, verbose=0)
        distnet.keras.distribute(model, **training.distributed)
        with left_at_the_end(model):
            if wrong == "twice":
                distnet.keras.distribute(model, **training.distributed)


def _own_optimizer() -> Any:
    class Mine(keras.optimizers.Adam):  # type: ignore[misc]  # Keras is Any here
        def update_step(self, gradient: Any, variable: Any, learning_rate: Any) -> None:
            variable.assign_sub(gradient * learning_rate)

    return Mine(0.01)


def without_a_job(training: Training) -> None:
    """Train where no launcher has started the process, and no server runs."""
    model = distributed(training, 0)
    model.fit(*examples(training, None), batch_size=BATCH, verbose=0)


def fit(
    training: Training, rank: int, address: str, wrong: str, wrong_rank: int | None = None, workers: int = WORKERS
) -> dict[str, Any]:
    """Fit a distributed model while something goes wrong on one rank, or on all of them."""
    goes_wrong = wrong_rank is None or rank == wrong_rank
    with job(rank, address, workers):
        model = distributed(training, rank)
        with left_at_the_end(model):
            x, y = examples(training, rank)
            callbacks = []
            if goes_wrong and wrong == "fewer steps":
                x, y = x[: len(x) // 2], y[: len(y) // 2]
            elif goes_wrong and wrong == "a gradient that is not finite":
                x[len(x) // 2] = np.nan
            elif goes_wrong and wrong in _CALLBACKS:
                callbacks.append(_CALLBACKS[wrong](training))
            model.fit(
                x,
                y,
                batch_size=BATCH // WORKERS,
                epochs=training.epochs,
                shuffle=False,
                verbose=0,
                callbacks=callbacks,
            )
            return {"iterations": int(keras.ops.convert_to_numpy(model.optimizer.iterations))}


def fit_after_a_change(training: Training, rank: int, address: str, wrong: str, workers: int = WORKERS) -> None:
    """Fit, change something that the server was told of, and fit again."""
    with job(rank, address, workers):
        model = distributed(training, rank)
        with left_at_the_end(model):
            x, y = examples(training, rank)
            model.fit(x, y, batch_size=BATCH // WORKERS, shuffle=False, verbose=0)
            if wrong == "another optimizer":
                model.compile(optimizer=keras.optimizers.Adam(0.01), loss="mse")
            elif wrong == "an optimizer that was put there":
                model.optimizer = keras.optimizers.Adam(0.01)
                model.train_function = None
            elif wrong == "a layer that trains now":
                model.get_layer("first").trainable = True
                compiled(training, model)
            elif wrong == "a layer that is frozen now":
                model.get_layer("first").trainable = False
                compiled(training, model)
            model.fit(x, y, batch_size=BATCH // WORKERS, shuffle=False, verbose=0)


class _Replaces(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self, training: Training) -> None:
        super().__init__()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            self.model.optimizer = keras.optimizers.SGD(0.1)


class _Compiles(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self, training: Training) -> None:
        super().__init__()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            self.model.compile(optimizer=keras.optimizers.Adam(0.01), loss="mse")
            self.model.make_train_function()


class _Raises(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self, training: Training) -> None:
        super().__init__()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        if batch == 3:
            raise ArithmeticError("this rank has given up")


class _Stops(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self, training: Training) -> None:
        super().__init__()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.stop_training = True


_CALLBACKS: dict[str, Callable[[Training], Any]] = {
    "an optimizer that is replaced": _Replaces,
    "a model that is compiled anew": _Compiles,
    "an error": _Raises,
    "stopped": _Stops,
}
