"""PyTorch's store, in which the ranks of a job leave words for each other."""

from __future__ import annotations

from typing import Any

import torch.distributed

from distnet._private.launcher_env import Placement
from distnet.errors import ConfigError, DeadlineExceeded
from distnet.frameworks.job import Store

__all__ = ["store_of_job"]


def store_of_job(placement: Placement) -> Store | None:
    """Return the store of the default process group, or else the one at MASTER_ADDR and MASTER_PORT.

    Returns:
        The store. None: there is no process group, and the environment says no place to meet.

    Raises:
        ConfigError: the process group has another rank or size than the launcher gave this process.
        DeadlineExceeded: nobody was there.
    """
    if not torch.distributed.is_available():
        return None
    if torch.distributed.is_initialized():
        group = (torch.distributed.get_rank(), torch.distributed.get_world_size())
        if group != (placement.rank, placement.size):
            raise ConfigError(
                f"the process group says rank {group[0]} of {group[1]}, and this is {placement}; expected the same"
            )
        return _Words(torch.distributed.distributed_c10d._get_default_store())
    if placement.master is None:
        return None
    url = f"tcp://{placement.master.address}:{placement.master.port}"
    if placement.by == "torchrun":
        url = "env://"  # torchrun may hold the store itself
    try:
        store, _, _ = next(torch.distributed.rendezvous(url, placement.rank, placement.size))
    except torch.distributed.DistError as error:
        raise DeadlineExceeded(f"the ranks did not meet at {placement.master}: {error}") from None
    return _Words(store)


class _Words:
    """A store of PyTorch as a place for words."""

    def __init__(self, store: Any) -> None:
        self._store = store

    def set(self, key: str, value: str) -> None:
        """Leave a word."""
        self._store.set(key, value)

    def get(self, key: str) -> bytes:
        """Wait for a word, at most as long as the store's own timeout, and return it."""
        try:
            word: bytes = self._store.get(key)
        except torch.distributed.DistError as error:
            raise DeadlineExceeded(f"rank 0 has not said where the servers are: {error}") from None
        return word
