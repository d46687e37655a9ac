"""A worker's share of the data, whatever kind Keras trains on."""

from __future__ import annotations

import sys
import types
from typing import Any

import keras

from distnet.errors import ConfigError
from distnet.keras.sharing.arrays import is_made_of_arrays, share_of_arrays
from distnet.keras.sharing.py_dataset import SharedPyDataset
from distnet.keras.sharing.share import Share
from distnet.keras.sharing.tf_data import is_dataset, share_of_dataset

__all__ = ["shard"]


def shard(data: Any, *, rank: int | None = None, workers: int | None = None) -> Any:
    """Return this worker's share of training or validation data, of the same kind as the data.

    Examples are dealt out in turn, one to each worker; where the data are batches already, batches are. So a batch of
    all workers together is what one worker with a batch that much larger would read. Every worker has equally many:
    what is left over at the end, fewer than there are workers, is left out, as a synchronous round would wait for a
    push that never comes. Batch sizes are each worker's own.

    - **Arrays** (NumPy, tensors of TensorFlow, JAX and PyTorch, pandas), alone or in tuples, lists and dicts, which
      stay such: each ``workers``-th example. ``fit(shuffle=True)`` then shuffles the share by itself, anew in each
      epoch.
    - ``tf.data.Dataset``: each ``workers``-th element. One without an end stays so. A ``shuffle()`` before the share
      needs a seed, the same on all workers; after it, any will do.
    - Keras ``PyDataset``: each ``workers``-th batch; the others are not made. Where it shuffles itself between
      epochs, it must do so alike on all workers, by a seed.
    - PyTorch ``DataLoader``: a loader of each ``workers``-th example of its sampler's order, or of each
      ``workers``-th batch of a batch sampler's. Samplers of PyTorch without a generator are given one, with seed 0:
      all workers then draw the same order, another one in each epoch. Datasets of PyTorch, as well.

    Args:
        data: what ``fit`` would be given, or its ``(x, y)`` or ``(x, y, sample_weight)`` in a tuple.
        rank: of this worker, from 0. None: this process's in its job, with ``workers``.
        workers: how many there are. None: those of the job.

    Returns:
        The share. Arrays of NumPy are views, and datasets read from the one that was given.

    Raises:
        ConfigError: data that no share can be taken of, such as a generator; arrays of differing lengths; fewer
            examples than workers; an order that would differ between workers; or no job.

    Thread safety: any thread.

    Example:
        >>> x, y = np.arange(10), np.arange(10) * 2
        >>> distnet.keras.shard((x, y), rank=1, workers=3)
        (array([1, 4, 7]), array([ 2,  8, 14]))
    """
    share = Share.of(rank, workers)
    if is_dataset(data):
        return share_of_dataset(data, share)
    if isinstance(data, keras.utils.PyDataset):
        return SharedPyDataset(data, share)
    if "torch" in sys.modules:
        from distnet.keras.sharing.torch import share_of_torch

        shared = share_of_torch(data, share)
        if shared is not None:
            return shared
    if is_made_of_arrays(data):
        return share_of_arrays(data, share)
    raise ConfigError(_why_not(data))


def _why_not(data: Any) -> str:
    kinds = "arrays, a tf.data.Dataset, a PyDataset or a DataLoader"
    if isinstance(data, types.GeneratorType) or (hasattr(data, "__next__") and hasattr(data, "__iter__")):
        return (
            "data is a generator: to know which items are its own a worker would have to make all of them, and no "
            "worker could tell beforehand whether they are equally many, which epochs need. Make it a "
            "keras.utils.PyDataset or a tf.data.Dataset and shard that; or give fit() a generator that makes this "
            "worker's items alone, with the same steps_per_epoch on every worker"
        )
    if isinstance(data, tuple | list | dict):
        return (
            f"data is a {type(data).__name__} in which not everything is an array with examples along its first axis; "
            "expected arrays (np.asarray() makes one of a list of numbers); share datasets by a call each"
        )
    return f"data is a {type(data).__name__}; expected {kinds}"
