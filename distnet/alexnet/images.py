"""From uint8 images to minibatches: distorted for training, central crops for evaluation.

Training distorts an image as the tutorial does: a random 24 × 24 crop, a flip, brightness ±63, contrast 0.2 to 1.8
(about each channel's mean), then standardisation of the image (mean 0, deviation 1). What follows the crop is one
affine map a channel, and that is what is computed. With a crop's channel means ``m_c``, their mean ``M``, contrast
``f`` and brightness ``b``, brightness and contrast make ``f (x - m_c) + m_c + b``; standardisation takes away ``M + b``
and divides by ``s = sqrt(f² within + between)``, where ``within`` is the mean of the channels' variances and
``between`` the variance of the ``m_c``:

    ``x → (f (x - m_c) + m_c - M) / s``

Brightness cancels exactly (nothing clips between it and standardisation, in the tutorial as here); no number is drawn
for it. All of this runs in TensorFlow's own threads, beside the step, and never takes Python's lock for long.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from distnet.alexnet.network import INPUT_PIXELS
from distnet.data.shares import shard_indices
from distnet.errors import ConfigError

__all__ = ["BRIGHTNESS", "CONTRAST", "central_crops", "distort", "training_batches"]

PIXELS: Final = 32
CHANNELS: Final = 3
VALUES: Final = INPUT_PIXELS * INPUT_PIXELS * CHANNELS  # of a crop
CONTRAST: Final = (0.2, 1.8)
BRIGHTNESS: Final = 63.0  # what the cancelled brightness of the tutorial ranges over; the tests draw it


def training_batches(
    images: NDArray[np.uint8],
    labels: NDArray[np.int32],
    *,
    rank: int,
    workers: int,
    batch_size: int,
    seed: int,
    steps: int,
    first: int = 0,
    contrast: tuple[float, float] = CONTRAST,
) -> Any:
    """Return a ``tf.data.Dataset`` of the minibatches ``first … steps - 1`` of one rank's share, epoch after epoch.

    Every epoch is shuffled and shared anew (:func:`distnet.shard_indices`); a minibatch may span two epochs, so
    all of them are full. ``contrast`` is the range that an image's contrast is drawn from. A minibatch depends on its
    number and not on ``first``: a worker that goes on at a step reads what it would have read there.

    Returns:
        Pairs of float32 ``[batch_size, 24, 24, 3]`` and int32 ``[batch_size]``.

    Raises:
        ConfigError: sizes or a rank that make no sense.
    """
    if batch_size < 1 or steps < 0 or first < 0:
        raise ConfigError(f"batch_size is {batch_size}, steps {steps} and first {first}; expected at least 1, 0 and 0")
    shard_indices(len(images), rank, workers, seed, 0)  # raises here, not in TensorFlow's thread
    pixels, answers = tf.constant(images.reshape(-1, CHANNELS)), tf.constant(labels)

    def indices() -> Iterator[NDArray[np.int64]]:
        batches = _index_batches(len(images), rank, workers, batch_size, seed, steps)
        yield from itertools.islice(batches, first, None)

    def minibatch(number: Any, chosen: Any) -> tuple[Any, Any]:
        crops = _random_crops(pixels, chosen, _seed(seed, rank, number, 0), batch_size)
        factors = tf.random.stateless_uniform([batch_size], _seed(seed, rank, number, 1), *contrast)
        return distort(crops, factors), tf.gather(answers, chosen)

    dataset = tf.data.Dataset.from_generator(indices, output_signature=tf.TensorSpec([batch_size], tf.int64)).enumerate(
        start=first
    )
    dataset = dataset.map(minibatch).prefetch(4)
    return dataset.with_options(_one_thread())


def distort(crops: Any, contrast: Any) -> Any:
    """Return crops with their contrast changed, standardised.

    Sums and sums of squares stay below 2^24, so products with a matrix of ones give them exactly, and fast.

    Args:
        crops: uint8 ``[B, 24, 24, 3]``.
        contrast: float32 ``[B]``; 1 leaves an image as it is.
    """
    values = tf.reshape(tf.cast(crops, tf.float32), [-1, VALUES]) - 128.0
    channels = tf.constant(np.tile(np.eye(CHANNELS, dtype=np.float32), (VALUES // CHANNELS, 1)))
    count = float(VALUES // CHANNELS)
    channel_means = tf.cast(tf.matmul(values, channels), tf.float64) / count
    squares = tf.cast(tf.matmul(values * values, channels), tf.float64) / count
    within = tf.reduce_mean(squares - channel_means * channel_means, 1, keepdims=True)
    offset = channel_means - tf.reduce_mean(channel_means, 1, keepdims=True)
    between = tf.reduce_mean(offset * offset, 1, keepdims=True)
    factor = tf.cast(tf.reshape(contrast, [-1, 1]), tf.float64)
    deviation = tf.maximum(tf.sqrt(factor * factor * within + between), VALUES**-0.5)  # of one colour: as tf.image
    slope = tf.cast(factor / deviation, tf.float32)
    shift = tf.cast((offset - factor * channel_means) / deviation, tf.float32)
    standard = values * slope + tf.matmul(shift, channels, transpose_b=True)
    return tf.reshape(standard, [-1, INPUT_PIXELS, INPUT_PIXELS, CHANNELS])


def central_crops(images: NDArray[np.uint8]) -> Any:
    """Return the standardised central 24 × 24 of images uint8 ``[B, 32, 32, 3]``, for evaluation."""
    start = (PIXELS - INPUT_PIXELS) // 2
    crops = images[:, start : start + INPUT_PIXELS, start : start + INPUT_PIXELS]
    return distort(crops, tf.ones([len(images)]))


def _index_batches(
    count: int, rank: int, workers: int, batch_size: int, seed: int, steps: int
) -> Iterator[NDArray[np.int64]]:
    waiting = np.empty(0, np.int64)
    epoch = 0
    for _ in range(steps):
        while len(waiting) < batch_size:
            waiting = np.concatenate([waiting, shard_indices(count, rank, workers, seed, epoch)])
            epoch += 1
        yield waiting[:batch_size]
        waiting = waiting[batch_size:]


def _random_crops(pixels: Any, chosen: Any, seed: Any, batch_size: int) -> Any:
    """Gather a random crop of each chosen image, half of them mirrored, from pixels ``[N * 1024, 3]``."""
    room = PIXELS - INPUT_PIXELS + 1
    drawn = tf.random.stateless_uniform([3, batch_size], seed, 0, room * 2, tf.int32)
    top, left, mirrored = drawn[0] // 2, drawn[1] // 2, drawn[2] < room
    across = tf.range(INPUT_PIXELS)
    columns = tf.where(mirrored[:, None], INPUT_PIXELS - 1 - across, across) + left[:, None]
    rows = (across + top[:, None]) * PIXELS
    base = tf.cast(chosen, tf.int32) * (PIXELS * PIXELS)
    return tf.gather(pixels, base[:, None, None] + rows[:, :, None] + columns[:, None, :])


def _seed(seed: int, rank: int, number: Any, purpose: int) -> Any:
    """Return the two-part seed of one draw: no two minibatches, ranks or purposes share one."""
    return tf.stack([tf.constant(seed * 1_000_003 + rank * 2 + purpose, tf.int64), number])


def _one_thread() -> Any:
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    options.autotune.enabled = False
    return options
