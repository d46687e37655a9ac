"""CIFAR-10 pictures: the official binary files, Keras's copy, or a generated stand-in."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

__all__ = ["TrainingData"]

CLASSES = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Pictures and labels to train and test with.

    Attributes:
        train_images: uint8 ``[N, 32, 32, 3]``, red, green, blue.
        train_labels: int32 ``[N]``, 0 to 9.
        test_images: uint8 ``[M, 32, 32, 3]``.
        test_labels: int32 ``[M]``.
        name: what they are, for reports: ``"cifar10"`` or ``"generated"``.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int32]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int32]
    name: str
