"""What bounds the memory of all shards of a server together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["bound_over"]

_TERMS = ("versions", "optimizer", "snapshot", "in_flight", "sessions", "tables")
_REST_BYTES = 64 << 20  # of a shard: code, the interpreter with NumPy, and what is allocated and freed again


def bound_over(
    shards: Sequence[Mapping[str, Any]], *, expected: int, workers: int | None, observers: int | None
) -> dict[str, int]:
    """Return the most bytes that all shards take, by what they are for, as ``ParameterServer.memory()`` describes it.

    Args:
        shards: what each says of itself: its fixed terms, those of a worker and of an observer, and the most of either
            that there were at one time.
        expected: how many workers the server was told of.
        workers: sessions of workers; None: as many as expected, or as there were if that is more.
        observers: the same for observers; None: as there were, and at least one.
    """
    bound = dict.fromkeys(_TERMS, 0)
    for shard in shards:
        working = max(expected, shard["most_workers"]) if workers is None else workers
        observing = max(1, shard["most_observers"]) if observers is None else observers
        for term in bound:
            bound[term] += shard["fixed"][term] + working * shard["worker"][term] + observing * shard["observer"][term]
    bound["rest"] = len(shards) * _REST_BYTES
    return bound | {"total": sum(bound.values())}
