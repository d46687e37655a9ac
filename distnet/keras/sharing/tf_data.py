"""Shares of a ``tf.data.Dataset``. TensorFlow is not imported: who has such a dataset has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from distnet.errors import ConfigError
from distnet.keras.sharing.share import Share

__all__ = ["is_dataset", "share_of_dataset"]

_INFINITE, _UNKNOWN = -1, -2  # tf.data.INFINITE_CARDINALITY and UNKNOWN_CARDINALITY


def is_dataset(data: Any) -> bool:
    """Return whether it is a ``tf.data.Dataset``, without an import of TensorFlow."""
    return any(
        each.__name__ == "DatasetV2" and each.__module__.startswith("tensorflow.") for each in type(data).__mro__
    )


def share_of_dataset(dataset: Any, share: Share) -> Any:
    """Return a dataset of this worker's elements: batches, where it is one of batches.

    Raises:
        ConfigError: its order would differ between workers, or it has fewer elements than there are workers.
    """
    _check_ordered(dataset)
    cardinality = int(dataset.cardinality())
    if cardinality == _INFINITE:
        return dataset.shard(share.workers, share.rank)
    if cardinality == _UNKNOWN:
        return _of_complete_rounds(dataset, share)
    size = share.size(cardinality, "elements (batches, where it is batched) in the dataset")
    return dataset.take(size * share.workers).shard(share.workers, share.rank)


def _of_complete_rounds(dataset: Any, share: Share) -> Any:
    """Return this worker's element of each round, where nobody knows how many there are before they are read."""

    def own(*parts: Any) -> Any:
        windows = parts[0] if len(parts) == 1 else parts
        return dataset.zip(windows).skip(share.rank).take(1)

    return dataset.window(share.workers, drop_remainder=True).flat_map(own)


def _check_ordered(dataset: Any) -> None:
    """Raise ConfigError where each worker would see another order: their shares would overlap and leave examples out.

    A shuffle is told by TensorFlow's own class, whose seeds are both 0 where neither it nor the program has one.
    """
    for each in _with_its_inputs(dataset):
        seeds = getattr(each, "_seed", None), getattr(each, "_seed2", None)
        if "Shuffle" in type(each).__name__ and seeds[0] is not None and _are_zero(seeds):
            raise ConfigError(
                "the dataset is shuffled without a seed: each worker would deal out another order, and their shares "
                "would overlap. Give shuffle() the same seed on every worker, or take the share first: "
                "distnet.keras.shard(dataset).shuffle(...)"
            )
    if dataset.options().deterministic is False:
        raise ConfigError(
            "the dataset's options say deterministic=False: each worker would deal out another order, and their "
            "shares would overlap. Leave it True, or set it after the share was taken"
        )


def _are_zero(seeds: tuple[Any, Any]) -> bool:
    try:
        return all(int(seed) == 0 for seed in seeds)
    except (TypeError, ValueError):
        return False  # seeds that are known only where the dataset's graph runs


def _with_its_inputs(dataset: Any) -> Iterator[Any]:
    found = [dataset]
    while found:
        each = found.pop()
        yield each
        inputs = getattr(each, "_inputs", None)
        found += inputs() if inputs is not None else []
