"""Data of a training: the share of each rank, and readers of data sets."""

from __future__ import annotations

from distnet.data.shares import shard_indices, steps_of

__all__ = ["shard_indices", "steps_of"]
