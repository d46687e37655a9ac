"""What workers of every framework share: which part of the work is theirs.

::

    for epoch in range(epochs):
        mine = distnet.shard_indices(len(x), client.rank, client.workers, seed=1, epoch=epoch)
        for begin in range(0, len(mine), batch):
            train_on(x[mine[begin : begin + batch]])
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from distnet.errors import ConfigError

__all__ = ["shard_indices", "steps_of"]


def steps_of(total: int, rank: int, workers: int) -> int:
    """Return how many of ``total`` steps are ``rank``'s: over all ranks they sum to it, and differ by one at most.

    Raises:
        ConfigError: ``rank`` is not in ``0 … workers - 1``, or ``total`` is negative.
    """
    _check_rank(rank, workers)
    if total < 0:
        raise ConfigError(f"total is {total}; expected a number of steps, 0 or more")
    return total // workers + (1 if rank < total % workers else 0)


def shard_indices(count: int, rank: int, workers: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the examples of one epoch that are ``rank``'s, in the order to read them.

    Every rank shuffles all ``count`` examples alike (by ``seed`` and ``epoch``) and takes every ``workers``-th one from
    its own rank on: shares are disjoint, cover everything, and differ in size by one at most.

    Returns:
        int64 indices in ``0 … count - 1``, newly allocated.

    Raises:
        ConfigError: ``rank`` is not in ``0 … workers - 1``, or there are fewer examples than workers.
    """
    _check_rank(rank, workers)
    if count < workers:
        raise ConfigError(f"{count} examples cannot be shared by {workers} workers; expected at least one each")
    order = np.random.default_rng([seed, epoch]).permutation(count)
    return np.ascontiguousarray(order[rank::workers])


def _check_rank(rank: int, workers: int) -> None:
    if workers < 1:
        raise ConfigError(f"workers is {workers}; expected at least 1")
    if not 0 <= rank < workers:
        raise ConfigError(f"rank is {rank}; expected 0 to {workers - 1} with {workers} workers")
