"""A training by one process with stock Keras, and by one of the workers of a job, in the same lines."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from typing import Any

import keras

import distnet
import distnet.keras
from keras_cases.callbacks import CALLBACKS
from keras_cases.models import built, compiled
from keras_cases.outcomes import outcome
from keras_cases.steps import LOOPS
from keras_cases.training import BATCH, WORKERS, Training, examples, validation

__all__ = ["alone", "distributed", "initial", "job", "left_at_the_end", "over_a_client", "together"]


def alone(training: Training) -> dict[str, Any]:
    """Train with whole batches, without DistNet."""
    keras.backend.clear_session()
    model = built(training, 0)
    compiled(training, model)
    return outcome(model, _driven(training, model, None))


def together(training: Training, rank: int, address: str) -> dict[str, Any]:
    """Train as a worker of the job whose servers are at the address, with this rank's part of each batch."""
    said = io.StringIO()
    with job(rank, address), contextlib.redirect_stderr(said):
        model = distributed(training, rank)
        with left_at_the_end(model):
            history = _driven(training, model, rank)
            if training.finished:
                model.optimizer.finish()
            result = outcome(model, history)
    return {**result, "said": said.getvalue()}


def initial(training: Training) -> dict[str, Any]:
    """Return the values that rank 0's model begins with, by the names that a server has."""
    keras.backend.clear_session()
    return {each.path: each.numpy().tolist() for each in built(training, 0).trainable_variables}


def over_a_client(training: Training, rank: int, address: str) -> dict[str, Any]:
    """Train over a client of the script's own, which stays open."""
    with distnet.connect(address, rank) as client:
        model = distributed(training, rank, client=client)
        history = _driven(training, model, rank)
        model.optimizer.close()
        assert not client.closed
        return outcome(model, history)


def distributed(training: Training, rank: int, **changed: Any) -> Any:
    """Return a model that is compiled and distributed, in the order that the training says."""
    keras.backend.clear_session()
    how = {**training.distributed, **changed}
    model = built(training, rank)
    if training.compiled_last:
        distnet.keras.distribute(model, **how)
        compiled(training, model)
    else:
        compiled(training, model)
        assert distnet.keras.distribute(model, **how) is model
    return model


@contextlib.contextmanager
def job(rank: int, address: str, workers: int = WORKERS) -> Iterator[None]:
    """Let this process be a rank of a job, as its launcher does."""
    said = {"DISTNET_ADDRESS": address, "DISTNET_RANK": str(rank), "DISTNET_WORKERS": str(workers)}
    os.environ.update(said)
    try:
        yield
    finally:
        for name in said:
            os.environ.pop(name)


@contextlib.contextmanager
def left_at_the_end(model: Any) -> Iterator[None]:
    """Leave the job: in order, or as a process does that an exception ends."""
    try:
        yield
    except BaseException as error:
        client = getattr(model.optimizer, "client", None)
        if client is not None:
            client.__exit__(type(error), error, error.__traceback__)
        raise
    finally:
        if hasattr(model.optimizer, "close"):
            model.optimizer.close()


def _driven(training: Training, model: Any, rank: int | None) -> dict[str, list[float]]:
    """Train, and return the history of all fits."""
    x, y = examples(training, rank)
    size = BATCH if rank is None else BATCH // WORKERS
    history: dict[str, list[float]] = {}
    for _ in range(training.fits):
        if training.drive == "fit":
            more = _fitted(training, model, rank, x, y, size)
        else:
            more = _stepped(training, model, x, y, size)
        for name, values in more.items():
            history.setdefault(name, []).extend(float(value) for value in values)
    return history


def _fitted(training: Training, model: Any, rank: int | None, x: Any, y: Any, size: int) -> dict[str, Any]:
    callbacks = [CALLBACKS[name]() for name in training.callbacks]
    data = {"validation_data": validation(rank)} if training.validated else {}
    fitted = model.fit(
        x, y, batch_size=size, epochs=training.epochs, shuffle=False, verbose=0, callbacks=callbacks, **data
    )
    history: dict[str, Any] = fitted.history
    return history


def _stepped(training: Training, model: Any, x: Any, y: Any, size: int) -> dict[str, Any]:
    on_batch = training.drive == "train_on_batch"
    step = model.train_on_batch if on_batch else LOOPS[training.drive](model)
    for _ in range(training.epochs):
        for start in range(0, len(x), size):
            step(x[start : start + size], y[start : start + size])
    return {}
