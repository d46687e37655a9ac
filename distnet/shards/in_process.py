"""A shard in this process, with the methods of one that has a process of its own (``distnet.shards.owner``)."""

from __future__ import annotations

from typing import Any

from distnet import _native

__all__ = ["LocalShard"]


class LocalShard:
    """A shard in this process."""

    def __init__(self, settings: dict[str, Any], endpoint: str) -> None:
        self._native = _native.ShardServer(settings, endpoint)
        self.initialise = self._native.initialise
        self.restore = self._native.restore
        self.set_directory = self._native.set_directory
        self.start = self._native.start
        self.stop = self._native.stop
        self.excuse = self._native.excuse
        self.stats_json = self._native.stats_json
        self.memory_json = self._native.memory_json
        self.endpoint = self._native.endpoint

    def failure(self) -> str | None:
        """Return None: it lives as long as this process."""
        return None
