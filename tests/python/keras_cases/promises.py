"""Programs that do with a distributed model what Keras allows; each function returns what came of it."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np

from keras_cases.runs import distributed, job, left_at_the_end
from keras_cases.training import BATCH, Training, examples

__all__ = ["excluded_late", "fitted_twice_with_a_list", "loaded_late", "set_from_parameters"]


def set_from_parameters(training: Training, rank: int, address: str) -> dict[str, Any]:
    """Set another model, such as a target network, from a model that trains on; say what it had and has."""
    with job(rank, address, 1):
        model = distributed(training, rank)
        with left_at_the_end(model):
            x, y = examples(training, rank)
            model.fit(x, y, batch_size=BATCH, verbose=0)
            other = keras.models.clone_model(model)
            for own, trained in zip(other.trainable_variables, model.trainable_variables, strict=True):
                own.assign(trained)
            before = [np.array(value).tolist() for value in other.get_weights()]
            model.fit(x, y, batch_size=BATCH, epochs=2, verbose=0)
            return {"before": before, "after": [value.tolist() for value in other.get_weights()]}


def excluded_late(training: Training, rank: int, address: str) -> None:
    """Leave variables out of the weight decay once the server knows the optimizer."""
    with job(rank, address, 1):
        model = distributed(training, rank)
        with left_at_the_end(model):
            model.optimizer.exclude_from_weight_decay(var_names=["bias"])


def fitted_twice_with_a_list(training: Training, rank: int, address: str) -> int:
    """Give a CallbackList to two fits; return how many callbacks it has in the end."""
    with job(rank, address, 1):
        model = distributed(training, rank)
        with left_at_the_end(model):
            x, y = examples(training, rank)
            callbacks = keras.callbacks.CallbackList([], add_history=True, model=model)
            for _ in range(2):
                model.fit(x, y, batch_size=BATCH, epochs=np.int64(1), verbose=0, callbacks=callbacks)
            return len(callbacks.callbacks)


def loaded_late(training: Training, rank: int, address: str) -> dict[str, Any]:
    """Put values into a model between steps, and between fits; return what is told of each."""
    with job(rank, address, 1):
        model = distributed(training, rank)
        with left_at_the_end(model):
            x, y = examples(training, rank)
            model.fit(x, y, batch_size=BATCH, verbose=0)
            told = {}
            for way in ("fit", "train_on_batch"):
                model.set_weights([value + 1 for value in model.get_weights()])
                with warnings.catch_warnings(record=True) as caught:
                    warnings.simplefilter("always")
                    model.fit(x, y, batch_size=BATCH, verbose=0) if way == "fit" else model.train_on_batch(x, y)
                told[way] = [str(each.message) for each in caught if each.category.__name__ == "DistNetWarning"]
            return told
