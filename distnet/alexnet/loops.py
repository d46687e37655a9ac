"""Training loops: one rank against a server, and the baseline that has none."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
import tensorflow as tf

from distnet._private.arrays import Array
from distnet.alexnet.images import central_crops, training_batches
from distnet.alexnet.local_optimizer import LocalOptimizer
from distnet.alexnet.network import in_order, initial_parameters
from distnet.alexnet.network_tensorflow import Precision, cross_entropy, forward, gradients
from distnet.alexnet.place import Place, steps_done
from distnet.alexnet.recipes import Recipe
from distnet.alexnet.records import Snapshot, StepCounter, StepRecord, TrainingResult
from distnet.data.cifar10 import TrainingData
from distnet.errors import ConfigError
from distnet.frameworks.client_protocol import ParameterClient
from distnet.optimizers import state_vectors
from distnet.tensorflow import TensorFlowWorker, prepare

if TYPE_CHECKING:
    from distnet.optimizers import Optimizer

__all__ = [
    "Evaluation",
    "ResumableClient",
    "Snapshot",
    "StepRecord",
    "TrainingResult",
    "batches_of",
    "evaluate",
    "initial_parameters",
    "train_local",
    "train_worker",
]

EVALUATION_BATCH: Final = 500


class ResumableClient(ParameterClient, Protocol):
    """What :func:`train_worker` needs of :class:`distnet.client.Client`."""

    @property
    def saved(self) -> bytes | None: ...
    def save_with(self, data: bytes) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How well parameters do on the test images."""

    accuracy: float
    loss: float
    examples: int


def train_worker(
    client: ResumableClient,
    *,
    data: TrainingData,
    recipe: Recipe,
    rank: int,
    workers: int,
    steps: int,
    seed: int = 0,
    batch_size: int | None = None,
    threads: int | None = None,
    overlap: bool = False,
    precision: Precision = "float32",
    semantics: str = "",
    on_step: Callable[[StepRecord], None] | None = None,
) -> TrainingResult:
    """Run the steps of one rank against a server that holds AlexNet's parameters, up to ``steps`` of them.

    Compiles before the first step, so that no round and no clock waits for it. The client stays the caller's to close.

    Each push carries this rank's place in its data (:class:`distnet.alexnet.place.Place`). Against a server that was
    restored from a checkpoint the rank goes on after the last step whose push is in it, with the same examples in the
    same order and the same distortions. In ``sync``, with deterministic operations, without ``overlap`` and with
    formats that lose nothing, its parameters are then those of a run without an interruption, bit for bit.

    Args:
        client: of :func:`distnet.connect`.
        data: the images; this rank reads its share of them only.
        recipe: batch size and weight decay; the optimizer is the server's.
        rank: 0 … ``workers`` - 1.
        workers: how many share the images.
        steps: of this rank, those before a resume included; see :func:`distnet.data.shares.steps_of`.
        seed: the job's; the same on all ranks.
        batch_size: instead of the recipe's.
        threads: of the CPU for TensorFlow; None leaves TensorFlow as it is.
        overlap: exchange one step's gradient while the next is computed.
        precision: of the convolutions.
        semantics: what this worker was told that the job is, for the server's end to compare.
        on_step: told after every step.

    Raises:
        ConfigError: a setting that makes no sense, one that is not that of the checkpoint which the server was restored
            from, or TensorFlow started before with other threads.
        DistNetError: what the client raises; a NaN loss ends as NonFiniteGradient before anything is sent.
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
    batches = batches_of(data, recipe, rank=rank, workers=workers, batch_size=size, seed=seed, steps=steps, first=done)
    with tf.device(device):
        variables = _variables(initial_parameters(seed))

    def step(batch: Any) -> tuple[Any, Sequence[Any]]:
        return gradients(variables, *batch, weight_decay=recipe.weight_decay, precision=precision)

    with TensorFlowWorker(variables, client, step=step, device=device, overlap=overlap) as worker:
        if done < steps:
            worker.compile(_signature(size))
        worker.pull()  # others may have trained meanwhile
        loop = StepCounter(size, on_step, done)
        for batch in batches:
            client.save_with(dataclasses.replace(place, step=loop.steps + 1).to_bytes())
            metrics = worker.step(batch)
            loop.stepped(
                loss=metrics.loss,
                staleness=metrics.staleness,
                version=metrics.version,
                computing_s=metrics.computing_s,
                exchanging_s=metrics.exchanging_s,
            )
    return loop.result(variables, None, ())


def train_local(
    *,
    data: TrainingData,
    recipe: Recipe,
    steps: int,
    seed: int = 0,
    batch_size: int | None = None,
    threads: int | None = None,
    precision: Precision = "float32",
    optimizer: Optimizer | None = None,
    on_step: Callable[[StepRecord], None] | None = None,
    snapshot_steps: int = 0,
    on_snapshot: Callable[[Snapshot], None] | None = None,
) -> TrainingResult:
    """Train in this process alone, without a server: the baseline that others are compared with.

    The same images, network, recipe and formulas as :func:`train_worker` with one worker; gradients are applied by
    TensorFlow inside the compiled step.

    Args:
        data, recipe, steps, seed, batch_size, threads, precision, on_step: as for :func:`train_worker`.
        optimizer: instead of the recipe's.
        snapshot_steps: steps between snapshots; 0 for none.
        on_snapshot: told then; its time counts into ``elapsed_s``.

    Raises:
        ConfigError: a setting that makes no sense.
        ArithmeticError: the loss became NaN or infinite.
    """
    device = prepare(rank=0, threads=threads)
    size = batch_size if batch_size is not None else recipe.batch_size
    batches = batches_of(data, recipe, rank=0, workers=1, batch_size=size, seed=seed, steps=steps)
    used = optimizer or recipe.optimizer(examples=max(1, steps * size), effective_batch=size)
    with tf.device(device):
        variables = _variables(initial_parameters(seed))
        updater = LocalOptimizer(used.to_spec(), variables, ema_decay=recipe.ema_decay)

    @tf.function  # type: ignore[untyped-decorator]
    def step(images: Any, labels: Any, scalars: tuple[Any, Any, Any]) -> Any:
        with tf.device(device):
            loss, found = gradients(variables, images, labels, weight_decay=recipe.weight_decay, precision=precision)
            updater.apply(found, scalars)
        return loss

    step.get_concrete_function(*_signature(size), updater.scalars(0))
    loop = StepCounter(size, on_step)
    for batch in batches:
        begin = time.perf_counter()
        loss = float(step(*batch, updater.scalars(loop.steps)))
        if not np.isfinite(loss):
            raise ArithmeticError(f"the loss became {loss} at step {loop.steps + 1}; lower the learning rate")
        loop.stepped(loss=loss, staleness=0, version=loop.steps + 1, computing_s=time.perf_counter() - begin)
        if on_snapshot is not None and snapshot_steps and loop.steps % snapshot_steps == 0:
            on_snapshot(loop.snapshot(updater.ema or variables))
    return loop.result(variables, updater.ema or None, updater.state(state_vectors(used)))


def evaluate(
    arrays: Mapping[str, Array] | Sequence[Array], data: TrainingData, *, examples: int | None = None
) -> Evaluation:
    """Return accuracy and mean cross-entropy on the central crops of the test images.

    Args:
        arrays: AlexNet's parameters, usually their moving average, by name or in the order of
            :data:`distnet.alexnet.network.TENSORS`.
        data: whose test images to use.
        examples: only the first so many of them.

    Raises:
        ManifestMismatch: these are not AlexNet's parameters.
        ConfigError: ``examples`` is below 1.
    """
    variables = [tf.constant(array) for array in in_order(arrays)]
    count = len(data.test_images) if examples is None else min(examples, len(data.test_images))
    if count < 1:
        raise ConfigError(f"examples is {examples}; expected at least 1, and test images to score")
    correct, loss = 0, 0.0
    for start in range(0, count, EVALUATION_BATCH):
        part = slice(start, min(start + EVALUATION_BATCH, count))
        hits, part_loss = _score(variables, central_crops(data.test_images[part]), data.test_labels[part])
        correct += int(hits)
        loss += float(part_loss) * (part.stop - part.start)
    return Evaluation(accuracy=correct / count, loss=loss / count, examples=count)


def batches_of(
    data: TrainingData,
    recipe: Recipe,
    *,
    rank: int,
    workers: int,
    batch_size: int,
    seed: int,
    steps: int,
    first: int = 0,
) -> Any:
    """Return the batches of one rank from step ``first`` on, distorted as the recipe says."""
    return training_batches(
        data.train_images,
        data.train_labels,
        rank=rank,
        workers=workers,
        batch_size=batch_size,
        seed=seed,
        steps=steps,
        first=first,
        contrast=recipe.contrast,
    )


def _signature(batch_size: int) -> tuple[Any, Any]:
    return tf.TensorSpec([batch_size, 24, 24, 3], tf.float32), tf.TensorSpec([batch_size], tf.int32)


def _variables(parameters: Mapping[str, Array]) -> list[Any]:
    return [tf.Variable(array, name=name) for name, array in parameters.items()]


@tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
def _score(variables: list[Any], images: Any, labels: Any) -> tuple[Any, Any]:
    logits = forward(variables, images)
    hits = tf.equal(tf.argmax(logits, 1, tf.int32), labels)
    return tf.math.count_nonzero(hits), cross_entropy(logits, labels)
