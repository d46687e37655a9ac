"""Which part of the work is whose, the same for workers of every framework.

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
    """Return how many of so many steps are a rank's.

    Over all ranks the shares sum to the total, and they differ by one at most.

    Args:
        total: number of steps, at least 0.
        rank: from 0 to ``workers`` - 1.
        workers: number of workers, at least 1.

    Returns:
        The rank's number of steps.

    Raises:
        ConfigError: ``rank`` is out of range, or ``total`` is negative.

    Thread safety: any thread.

    Example:
        >>> [distnet.steps_of(10, rank, workers=4) for rank in range(4)]
        [3, 3, 2, 2]
    """
    _check_rank(rank, workers)
    if total < 0:
        raise ConfigError(f"total is {total}; expected a number of steps, 0 or more")
    return total // workers + (1 if rank < total % workers else 0)


def shard_indices(count: int, rank: int, workers: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the examples of one epoch that are a rank's, in the order to read them.

    Every rank shuffles all examples alike (by ``seed`` and ``epoch``) and takes every ``workers``-th one from
    its own rank on: shares are disjoint, cover everything, and differ in size by one at most.

    Args:
        count: number of examples.
        rank: from 0 to ``workers`` - 1.
        workers: number of workers, at least 1.
        seed: the seed of the shuffle, at least 0; the same for all ranks.
        epoch: from 0; each has an order of its own.

    Returns:
        int64 indices in ``0 … count - 1``, shape (share,), newly allocated.

    Raises:
        ConfigError: ``rank`` is out of range, or there are fewer examples than workers.

    Thread safety: any thread.

    Example:
        >>> shares = [distnet.shard_indices(10, rank, 3, seed=1, epoch=0) for rank in range(3)]
        >>> [len(share) for share in shares], sorted(np.concatenate(shares).tolist())
        ([4, 3, 3], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
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
