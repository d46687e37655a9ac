"""What ranks do around the steps of a ``fit``, for the tests of fits that begin and end together."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras

from keras_cases.models import built, compiled
from keras_cases.outcomes import outcome
from keras_cases.runs import distributed, job, left_at_the_end
from keras_cases.training import BATCH, WORKERS, Training, examples, validation

__all__ = [
    "alone",
    "backed_up",
    "differing",
    "evaluated_by_rank_0",
    "raising",
    "stopped_early",
    "uneven",
    "watched",
]

PART = BATCH // WORKERS


def watched(training: Training, rank: int, address: str, folder: str) -> dict[str, Any]:
    """Fit with callbacks that write and decide, and evaluate afterwards; tell what each left."""
    own = _own_folder(folder, rank)
    callbacks = [
        keras.callbacks.ModelCheckpoint(str(own / "best.weights.h5"), save_weights_only=True),
        keras.callbacks.CSVLogger(str(own / "log.csv")),
        keras.callbacks.ReduceLROnPlateau(monitor="val_loss", factor=0.5, patience=1, min_delta=1e3),
    ]

    def run(model: Any) -> dict[str, Any]:
        fitted = _fitted(training, model, rank, callbacks=callbacks, verbose=2)
        results = model.evaluate(*validation(rank), batch_size=PART, verbose=0, return_dict=True)
        rate = float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))
        written = sorted(each.name for each in own.iterdir())
        return {"evaluated": results, "rate": rate, "written": written, **outcome(model, fitted.history)}

    return _as_rank(training, rank, address, run)


def alone(training: Training) -> dict[str, Any]:
    """Return the metrics of one process with whole batches, without DistNet."""
    keras.backend.clear_session()
    model = built(training, 0)
    compiled(training, model)
    fitted = _fitted(training, model, None)
    results = model.evaluate(*validation(None), batch_size=BATCH, verbose=0, return_dict=True)
    return {"evaluated": results, **outcome(model, fitted.history)}


def stopped_early(training: Training, rank: int, address: str) -> dict[str, Any]:
    """Fit until ``EarlyStopping`` ends it, with the best weights restored."""
    stopping = keras.callbacks.EarlyStopping(
        monitor="val_loss", patience=1, min_delta=1e3, restore_best_weights=True, start_from_epoch=0
    )

    def run(model: Any) -> dict[str, Any]:
        fitted = _fitted(training, model, rank, callbacks=[stopping])
        restored = outcome(model, {})["weights"]
        again = _fitted(training, model, rank, epochs=1)
        return {"epochs": len(fitted.history["loss"]), "restored": restored, **outcome(model, again.history)}

    return _as_rank(training, rank, address, run)


def differing(training: Training, rank: int, address: str, each: list[dict[str, Any]]) -> dict[str, Any]:
    """Fit with arguments of this rank's own."""
    return _as_rank(training, rank, address, lambda model: _fitted(training, model, rank, **each[rank]).history)


def uneven(training: Training, rank: int, address: str, steps: list[int]) -> dict[str, Any]:
    """Fit from a generator, whose number of steps nobody knows beforehand."""
    x, y = examples(training, rank)

    def batches() -> Iterator[Any]:
        for step in range(steps[rank]):
            yield x[step * PART : (step + 1) * PART], y[step * PART : (step + 1) * PART]

    def run(model: Any) -> dict[str, Any]:
        history: dict[str, Any] = model.fit(batches(), epochs=1, verbose=0).history
        return history

    return _as_rank(training, rank, address, run)


def raising(training: Training, rank: int, address: str) -> dict[str, Any]:
    """Fit; on rank 1 a callback raises at the end of the first epoch."""

    class Raise(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            raise ArithmeticError("a callback of the program's own")

    callbacks = [Raise()] if rank == 1 else []
    return _as_rank(
        training, rank, address, lambda model: _fitted(training, model, rank, callbacks=callbacks, epochs=2).history
    )


def evaluated_by_rank_0(training: Training, rank: int, address: str) -> dict[str, Any]:
    """Fit together, and have rank 0 evaluate when the other has left."""

    def run(model: Any) -> dict[str, Any]:
        _fitted(training, model, rank)
        if rank == 1:
            return {}
        client = model.optimizer.client
        while len(client.stats()[0].sessions) > 1:
            pass
        results: dict[str, Any] = model.evaluate(*validation(0), batch_size=PART, verbose=0, return_dict=True)
        own = keras.Model(model.inputs, model.outputs)
        own.compile(loss="mse", metrics=["mae"], jit_compile=False)
        return {"seen": results, "own": own.evaluate(*validation(0), batch_size=PART, verbose=0, return_dict=True)}

    return _as_rank(training, rank, address, run)


def backed_up(training: Training, rank: int, address: str, folder: str, stops_in: int | None) -> dict[str, Any]:
    """Fit with ``BackupAndRestore``; ended by an error at the beginning of an epoch, if one is named."""
    begun: list[int] = []

    class Stop(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            begun.append(epoch)
            if epoch == stops_in:
                raise ArithmeticError("the power was cut")

    def run(model: Any) -> dict[str, Any]:
        callbacks = [keras.callbacks.BackupAndRestore(str(_own_folder(folder, rank) / "backup")), Stop()]
        first: list[Any] = []
        callbacks.append(keras.callbacks.LambdaCallback(on_train_batch_begin=_once(first, model)))
        with contextlib.suppress(ArithmeticError):
            _fitted(training, model, rank, callbacks=callbacks)
        return {"begun": begun, "first": first, **outcome(model, {})}

    return _as_rank(training, rank, address, run)


def _once(found: list[Any], model: Any) -> Callable[..., None]:
    def note(batch: int, logs: Any = None) -> None:
        if not found and keras.backend.backend() != "jax":
            found.append(outcome(model, {})["weights"])

    return note


def _as_rank(training: Training, rank: int, address: str, run: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    said = io.StringIO()
    with job(rank, address), contextlib.redirect_stderr(said):
        model = distributed(training, rank)
        with left_at_the_end(model):
            result = run(model)
    return {**result, "said": said.getvalue()}


def _fitted(training: Training, model: Any, rank: int | None, **changed: Any) -> Any:
    x, y = examples(training, rank)
    how = {"epochs": training.epochs, "validation_data": validation(rank), "verbose": 0, "shuffle": False, **changed}
    count = how.pop("examples", len(x))
    return model.fit(x[:count], y[:count], batch_size=BATCH if rank is None else PART, **how)


def _own_folder(folder: str, rank: int) -> Path:
    own = Path(folder) / f"rank{rank}"
    own.mkdir(exist_ok=True)
    return own
