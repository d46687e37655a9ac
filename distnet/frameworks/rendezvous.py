"""Where ranks on several hosts leave words for each other without a framework: at the place that MASTER_ADDR names."""

from __future__ import annotations

import numpy as np

from distnet._private.launcher_env import Master, Placement
from distnet.errors import ConfigError, ConnectError
from distnet.frameworks.job import Store
from distnet.process_group import GroupCoordinator, ProcessGroup

__all__ = ["store_at_master"]

_MEET_WITHIN_S = 300.0  # as long as a worker waits for a server


def store_at_master(placement: Placement) -> Store | None:
    """Return a store at ``MASTER_ADDR`` and ``MASTER_PORT``, where the ranks need one to find rank 0's servers.

    Returns:
        The store. None: the environment names no such place, or the ranks find each other by the name of their job.
    """
    if placement.master is None or (placement.one_host and placement.job is not None):
        return None
    return _Words(placement, placement.master)


class _Words:
    """Words of rank 0, which all ranks hear together: each is a broadcast in a group of its own.

    Thread safety: one thread.
    """

    def __init__(self, placement: Placement, master: Master) -> None:
        self._placement, self._master = placement, master

    def set(self, key: str, value: str) -> None:
        """Leave a word; returns when all ranks have heard it.

        Raises:
            ConfigError: the port is taken, such as by torchrun, which keeps a store of its own there.
            DistNetError: not all ranks came, or one was lost.
        """
        try:
            coordinator = GroupCoordinator(f"tcp://0.0.0.0:{self._master.port}")
        except ConnectError as error:
            raise ConfigError(
                f"rank 0 cannot meet the others at MASTER_PORT {self._master.port}: {error}. Set it to a port that is "
                "free, the same on all ranks; or start `distnet serve`, and set DISTNET_ADDRESS to its address"
            ) from None
        with coordinator:
            self._broadcast(key, value.encode())

    def get(self, key: str) -> bytes:
        """Wait for a word, and return it.

        Raises:
            DistNetError: rank 0, or another rank, did not come, or was lost.
        """
        return self._broadcast(key, b"")

    def _broadcast(self, key: str, said: bytes) -> bytes:
        placed = self._placement
        address = f"tcp://{self._master.address}:{self._master.port}"
        with ProcessGroup(address, placed.rank, placed.size, name=key, timeout=_MEET_WITHIN_S) as group:
            word = group.broadcast(np.frombuffer(said, np.uint8) if placed.rank == 0 else None)
            return bytes(word.tobytes())
