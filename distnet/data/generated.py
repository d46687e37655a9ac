"""Generated images: ten classes to learn where CIFAR-10 cannot be had.

Each class has three smooth patterns of its own. An image is a random window of one of them, mixed with a weaker window
of a pattern of any class, under its own brightness, with noise on top. One pixel tells nothing and a mean image
little; AlexNet learns them within a few epochs. A stand-in for demonstrations and tests: its accuracy says nothing
about real images.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["TEST_COUNT", "TRAIN_COUNT", "generate"]

TRAIN_COUNT: Final = 20_000
TEST_COUNT: Final = 4_000
CLASSES: Final = 10
PATTERNS: Final = 3  # of a class
PIXELS: Final = 32
CANVAS: Final = 48  # what windows are cut from
COARSE: Final = 9  # points a side that a pattern is drawn through
OWN: Final = 26.0  # deviation of the class's own pattern, in grey levels
OTHER: Final = 18.0  # of the pattern mixed in
NOISE: Final = 48  # noise is uniform over twice this many grey levels
CHUNK: Final = 2_000

Images = tuple[NDArray[np.uint8], NDArray[np.int32]]


def generate(*, seed: int = 0, train_count: int = TRAIN_COUNT, test_count: int = TEST_COUNT) -> tuple[Images, Images]:
    """Return training and test images with their labels.

    The same arguments give the same bytes everywhere; both parts share their patterns and no image.

    Args:
        seed: what all random numbers come from, at least 0.
        train_count: number of training images.
        test_count: number of test images.

    Returns:
        Two pairs, to train and to test with, of images, uint8 ``[N, 32, 32, 3]``, and labels, int32 ``[N]``, 0 to 9.

    Example:
        >>> (images, labels), _ = distnet.data.generated.generate(train_count=4, test_count=2)
        >>> images.shape, images.dtype.name, labels.shape
        ((4, 32, 32, 3), 'uint8', (4,))
    """
    patterns = _patterns(np.random.default_rng([seed, 0]))
    return (
        _images(patterns, train_count, np.random.default_rng([seed, 1])),
        _images(patterns, test_count, np.random.default_rng([seed, 2])),
    )


def _patterns(generator: np.random.Generator) -> NDArray[np.float32]:
    """Return ``[30, 48, 48, 3]``: coarse random colours joined by straight lines, mean 0 and deviation 1 each."""
    coarse = generator.standard_normal((CLASSES * PATTERNS, COARSE, COARSE, 3))
    places = np.arange(CANVAS) * (COARSE - 1) / (CANVAS - 1)
    weights = np.maximum(0.0, 1.0 - np.abs(places[:, None] - np.arange(COARSE)[None, :]))
    smooth = np.einsum("yi,xj,pijc->pyxc", weights, weights, coarse)
    smooth -= smooth.mean(axis=(1, 2, 3), keepdims=True)
    smooth /= smooth.std(axis=(1, 2, 3), keepdims=True)
    patterns: NDArray[np.float32] = smooth.astype(np.float32)
    return patterns


def _images(patterns: NDArray[np.float32], count: int, generator: np.random.Generator) -> Images:
    labels = generator.integers(0, CLASSES, count, np.int32)
    images = np.empty((count, PIXELS, PIXELS, 3), np.uint8)
    for start in range(0, count, CHUNK):
        part = slice(start, min(start + CHUNK, count))
        images[part] = _chunk(patterns, labels[part], generator)
    return images, labels


def _chunk(
    patterns: NDArray[np.float32], labels: NDArray[np.int32], generator: np.random.Generator
) -> NDArray[np.uint8]:
    count = len(labels)
    own = labels * PATTERNS + generator.integers(0, PATTERNS, count)
    other = generator.integers(0, len(patterns), count)
    windows = np.lib.stride_tricks.sliding_window_view(patterns, (PIXELS, PIXELS), axis=(1, 2))
    places = generator.integers(0, CANVAS - PIXELS + 1, (4, count))
    image = OWN * windows[own, places[0], places[1]]  # [count, 3, 32, 32]
    image += OTHER * windows[other, places[2], places[3]]
    image += generator.integers(88, 168, (count, 1, 1, 1)).astype(np.float32)
    noise = generator.integers(0, 256, image.shape, np.uint8)
    image += (noise.astype(np.float32) - 127.5) * (NOISE / 127.5)
    levels: NDArray[np.uint8] = np.clip(image, 0, 255).astype(np.uint8)
    return levels.transpose(0, 2, 3, 1)
