"""AlexNet through Keras's ``fit``, on a model that :func:`distnet.keras.distribute` has put over a server."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from distnet.alexnet.local_optimizer import scheduled_learning_rate
from distnet.alexnet.loops import ResumableClient, batches_of
from distnet.alexnet.network_keras import AlexNet
from distnet.alexnet.network_tensorflow import Precision
from distnet.alexnet.place import Place, steps_done
from distnet.alexnet.recipes import Recipe
from distnet.alexnet.records import StepCounter, StepRecord, TrainingResult
from distnet.data.cifar10 import TrainingData
from distnet.keras import distribute
from distnet.optimizers import SGD, Momentum, Optimizer
from distnet.tensorflow import prepare

__all__ = ["train_by_fit"]


def train_by_fit(
    client: ResumableClient,
    *,
    data: TrainingData,
    recipe: Recipe,
    optimizer: Optimizer,
    rank: int,
    workers: int,
    steps: int,
    seed: int = 0,
    batch_size: int | None = None,
    threads: int | None = None,
    precision: Precision = "float32",
    semantics: str = "",
    on_step: Callable[[StepRecord], None] | None = None,
) -> TrainingResult:
    """Run the steps of one rank by ``model.fit``: the same as :func:`distnet.alexnet.loops.train_worker` runs.

    The network, the images and their distortions are the same to the bit, and a resumed rank goes on in the same way.
    The compiled optimizer's learning rate follows the schedule by the server's updates, as the server's own does. What
    differs is momentum where that rate changes: Keras's velocity is a sum of steps, not of gradients. The first step
    compiles, while others may wait for it.

    Args:
        client: of :func:`distnet.connect`, to a server whose optimizer is that which Keras's is translated to.
        optimizer: that the job trains with, its schedule included.
        data, recipe, rank, workers, steps, seed, batch_size, threads, precision, semantics, on_step: as for
            :func:`~distnet.alexnet.loops.train_worker`.

    Raises:
        ConfigError: a setting that makes no sense, one that is not that of the checkpoint which the server was restored
            from, an optimizer that Keras has not, or TensorFlow started before with other threads.
        DistNetError: what the client raises.
    """
    device = prepare(rank=rank, threads=threads)
    size = batch_size if batch_size is not None else recipe.batch_size
    place = Place(
        step=0,
        steps=steps,
        workers=workers,
        batch_size=size,
        images=len(data.train_images),
        seed=seed,
        recipe=recipe.name,
        semantics=semantics,
    )
    done = steps_done(client.saved, place)
    with tf.device(device):
        model = AlexNet(seed=seed, weight_decay=recipe.weight_decay, precision=precision)
    model.compile(
        _of_keras(optimizer),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=False,  # "auto" takes XLA, whose convolutions on a CPU take several times as long
    )
    timed = _TimedClient(client)
    distribute(model, client=timed)
    counter = StepCounter(size, on_step, done)
    if done < steps:
        batches = batches_of(
            data, recipe, rank=rank, workers=workers, batch_size=size, seed=seed, steps=steps, first=done
        )
        watch = _Watch(timed, place, counter, optimizer)
        model.fit(batches, steps_per_epoch=steps - done, shuffle=False, verbose=0, callbacks=[watch])
    return counter.result(model.trainable_variables, None, ())


def _of_keras(optimizer: Optimizer) -> Any:
    """Return an optimizer of DistNet as Keras has it, at its largest learning rate.

    Raises:
        ConfigError: Keras has none that is the same.
    """
    rate = optimizer.to_spec()["schedule"]["learning_rate"]
    clipping = {"global_clipnorm": optimizer.clip_norm or None, "clipvalue": optimizer.clip_value or None}
    if type(optimizer) is SGD:
        return keras.optimizers.SGD(rate, **clipping)
    assert isinstance(optimizer, Momentum)
    return keras.optimizers.SGD(rate, momentum=optimizer.momentum, nesterov=optimizer.nesterov, **clipping)


class _Watch(keras.callbacks.Callback):  # type: ignore[misc]  # mypy sees no types of Keras
    """Before each step sets its learning rate and says where this rank is; after it tells what it did."""

    def __init__(self, client: _TimedClient, place: Place, counter: StepCounter, optimizer: Optimizer) -> None:
        super().__init__()
        self._client, self._place, self._counter = client, place, counter
        self._schedule = optimizer.to_spec()["schedule"]
        self._ended_s = time.perf_counter()

    def on_train_begin(self, logs: Any = None) -> None:
        self._ended_s = time.perf_counter()

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._client.save_with(dataclasses.replace(self._place, step=self._counter.steps + 1).to_bytes())
        self.model.optimizer.learning_rate = scheduled_learning_rate(self._schedule, self._client.version)
        self.model.reset_metrics()  # so that the loss that is told is of this step, and not the epoch's mean
        self._client.exchanging_s = 0.0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        now_s, exchanging_s = time.perf_counter(), self._client.exchanging_s
        self._counter.stepped(
            loss=float((logs or {})["loss"]),
            staleness=self._client.staleness,
            version=self._client.version,
            computing_s=now_s - self._ended_s - exchanging_s,
            exchanging_s=exchanging_s,
        )
        self._ended_s = now_s


class _TimedClient:
    """A client that counts the seconds of its exchanges.

    Attributes:
        exchanging_s: those since it was last set to 0.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self.exchanging_s = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def push_pull(self, *arguments: Any, **named: Any) -> Any:
        """Push and pull, timed."""
        begun_s = time.perf_counter()
        try:
            return self._client.push_pull(*arguments, **named)
        finally:
            self.exchanging_s += time.perf_counter() - begun_s
