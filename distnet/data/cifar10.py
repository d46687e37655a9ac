"""CIFAR-10 images: the official binary files, Keras's copy, or a generated stand-in."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
import sys
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from distnet.data.generated import generate
from distnet.errors import ConfigError

__all__ = ["TEST_FILES", "TRAIN_FILES", "TrainingData", "hold_out", "load_data"]

CLASSES: Final = 10
PIXELS: Final = 32
RECORD_BYTES: Final = 1 + 3 * PIXELS * PIXELS  # a label, then the red, green and blue planes
FILE_RECORDS: Final = 10_000
TRAIN_FILES: Final = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
TEST_FILES: Final = ("test_batch.bin",)
SUBFOLDER: Final = "cifar-10-batches-bin"  # what the official archive unpacks to
DOWNLOAD_DEADLINE_S: Final = 15.0  # of silence, not of the whole download

Images = tuple[NDArray[np.uint8], NDArray[np.int32]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Images and labels to train and test with.

    Attributes:
        train_images: uint8 ``[N, 32, 32, 3]``, red, green, blue.
        train_labels: int32 ``[N]``, 0 to 9.
        test_images: uint8 ``[M, 32, 32, 3]``.
        test_labels: int32 ``[M]``.
        name: what they are, for reports, such as ``"cifar10"`` or ``"generated"``.
    """

    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.int32]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.int32]
    name: str


def load_data(source: str | Path, *, seed: int = 0, holdout: int = 0) -> TrainingData:
    """Return the images of a source.

    Args:
        source: ``"cifar10"``: Keras's loader (its cache, or its checked download, with progress on stderr);
            ``"generated"``: the stand-in of :mod:`distnet.data.generated`; else a folder with the six official
            binary files, or that holds ``cifar-10-batches-bin`` with them.
        seed: the seed of generated images.
        holdout: how many training images :func:`hold_out` takes; 0 for none.

    Returns:
        Without a holdout, 50,000 images to train with and 10,000 to test with; 20,000 and 4,000 of the stand-in.

    Raises:
        ConfigError: no such folder, a file missing, cut short or corrupt (named), nothing to be had, or a ``holdout``
            that leaves nothing to train on.

    Source: Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, for CIFAR-10.
    """
    data = _load(source, seed)
    return hold_out(data, holdout) if holdout else data


def hold_out(data: TrainingData, count: int) -> TrainingData:
    """Return data whose last training images are the test images, and no longer trained on.

    This is for choices that must not see the test images, such as that of a recipe.

    Args:
        data: with more than ``count`` training images.
        count: how many, at least 1.

    Returns:
        Data whose arrays are views.

    Raises:
        ConfigError: ``count`` is below 1, or leaves no training images.

    Example:
        >>> images, labels = np.zeros((10, 32, 32, 3), np.uint8), np.arange(10, dtype=np.int32)
        >>> data = distnet.data.cifar10.TrainingData(
        ...     train_images=images,
        ...     train_labels=labels,
        ...     test_images=images,
        ...     test_labels=labels,
        ...     name="zeros",
        ... )
        >>> held_out = distnet.data.cifar10.hold_out(data, 2)
        >>> len(held_out.train_labels), held_out.test_labels.tolist()
        (8, [8, 9])
    """
    left = len(data.train_images) - count
    if count < 1 or left < 1:
        raise ConfigError(f"holdout is {count}; expected 1 to {len(data.train_images) - 1} of the training images")
    return TrainingData(
        train_images=data.train_images[:left],
        train_labels=data.train_labels[:left],
        test_images=data.train_images[left:],
        test_labels=data.train_labels[left:],
        name=f"{data.name}, its last {count:,} training images held out",
    )


def _load(source: str | Path, seed: int) -> TrainingData:
    if source == "generated":
        train, test = generate(seed=seed)
        return _joined(train, test, "generated")
    if source == "cifar10":
        return _joined(*_from_keras(), "cifar10")
    folder = Path(source)
    if not folder.is_dir():
        raise ConfigError(f"there is no folder {folder}; expected 'cifar10', 'generated' or a folder of binary files")
    if not (folder / TRAIN_FILES[0]).exists() and (folder / SUBFOLDER).is_dir():
        folder = folder / SUBFOLDER
    return _joined(_read_files(folder, TRAIN_FILES), _read_files(folder, TEST_FILES), "cifar10")


def _joined(train: Images, test: Images, name: str) -> TrainingData:
    return TrainingData(
        train_images=train[0], train_labels=train[1], test_images=test[0], test_labels=test[1], name=name
    )


def _read_files(folder: Path, names: tuple[str, ...]) -> Images:
    """Return the images of several files, in the files' order."""
    images = np.empty((len(names) * FILE_RECORDS, PIXELS, PIXELS, 3), np.uint8)
    labels = np.empty(len(names) * FILE_RECORDS, np.int32)
    for index, name in enumerate(names):
        records = _read_file(folder / name)
        part = slice(index * FILE_RECORDS, (index + 1) * FILE_RECORDS)
        labels[part] = records[:, 0]
        images[part] = records[:, 1:].reshape(-1, 3, PIXELS, PIXELS).transpose(0, 2, 3, 1)
    return images, labels


def _read_file(path: Path) -> NDArray[np.uint8]:
    expected_bytes = FILE_RECORDS * RECORD_BYTES
    try:
        size_bytes = path.stat().st_size
        if size_bytes != expected_bytes:
            raise ConfigError(
                f"{path} has {size_bytes:,} bytes; expected {expected_bytes:,} ({FILE_RECORDS:,} images): it is "
                "cut short or not a file of CIFAR-10's binary version; unpack the archive again"
            )
        records = np.fromfile(path, np.uint8)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; expected {', '.join((*TRAIN_FILES, *TEST_FILES))} in one folder"
        ) from error
    if records.size != expected_bytes:
        raise ConfigError(f"{path} changed while it was read; expected {expected_bytes:,} bytes")
    records = records.reshape(FILE_RECORDS, RECORD_BYTES)
    wrong = np.flatnonzero(records[:, 0] >= CLASSES)
    if wrong.size:
        raise ConfigError(
            f"{path} is corrupt: image {wrong[0]} has label {records[wrong[0], 0]}; expected 0 to {CLASSES - 1}"
        )
    return records


def _from_keras() -> tuple[Images, Images]:
    """Load by Keras, whose progress bar goes to stderr, and which checks what it downloads against a known SHA-256."""
    try:
        from tensorflow import keras
    except ImportError as error:
        raise ConfigError("CIFAR-10 by way of Keras needs TensorFlow: pip install 'distnet-ps[tensorflow]'") from error
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_DEADLINE_S)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            train, test = keras.datasets.cifar10.load_data()
    except Exception as error:  # Keras raises bare Exception for a failed download
        raise ConfigError(
            f"CIFAR-10 cannot be had: {error}. Three ways to get it: give the folder of its binary files "
            f"({SUBFOLDER}) with --data; put cifar-10-python.tar.gz into Keras's cache "
            "(~/.keras/datasets/cifar-10-batches-py-target_archive); or run once where the network reaches "
            "www.cs.toronto.edu. Or train on generated images"
        ) from error
    finally:
        socket.setdefaulttimeout(before)
    return _as_images(*train), _as_images(*test)


def _as_images(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Images:
    return np.ascontiguousarray(images, np.uint8), labels.reshape(-1).astype(np.int32)
