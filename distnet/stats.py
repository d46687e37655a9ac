"""What a server counts, as values.

:meth:`distnet.ParameterServer.stats` returns a :class:`ServerStatistics`, :meth:`distnet.Client.stats` a list of
:class:`ShardStatistics`. A field is an attribute and can be read by its name as a key, too::

    stats = server.stats()
    stats.updates, stats["updates"], stats["staleness"]["mean"]
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from distnet.errors import ProtocolError

__all__ = [
    "EndedSession",
    "ServerStatistics",
    "SessionStatistics",
    "ShardStatistics",
    "StalenessStatistics",
    "Statistics",
]

T = TypeVar("T", bound="Statistics")


class Statistics(Mapping[str, Any]):
    """Base of all statistics: a frozen value whose fields are its keys, in order.

    It equals a dict of the same.

    Thread safety: it never changes.

    Example:
        >>> staleness = distnet.stats.StalenessStatistics(max=1, mean=0.5, counts=[2, 2])
        >>> staleness.mean, staleness["mean"], list(staleness)
        (0.5, 0.5, ['max', 'mean', 'counts'])
        >>> staleness == {"max": 1, "mean": 0.5, "counts": [2, 2]}
        True
    """

    def __getitem__(self, name: str) -> Any:
        if name not in _names(type(self)):
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return iter(_names(type(self)))

    def __len__(self) -> int:
        return len(_names(type(self)))

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, for JSON.

        Returns:
            A dict of numbers, texts, lists and dicts.
        """
        return {name: _plain(value) for name, value in self.items()}

    @classmethod
    def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
        """Read what a server sent.

        Args:
            values: the fields by name. Those that this version does not know are ignored.

        Returns:
            The statistics.

        Raises:
            ProtocolError: a field is missing; the message names it.
        """
        types = typing.get_type_hints(cls)
        missing = [name for name in _names(cls) if name not in values]
        if missing:
            raise ProtocolError(
                f"the server's counters lack {', '.join(map(repr, missing))}; install the same DistNet on both sides"
            )
        return cls(**{name: _typed(types[name], values[name]) for name in _names(cls)})


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class StalenessStatistics(Statistics):
    """How many updates came between the version that a push was computed from and its own, over all pushes applied.

    Attributes:
        max: the largest staleness.
        mean: the mean staleness; 0.0 where no push was applied.
        counts: ``counts[s]`` pushes had staleness s. The last of at most 256 holds all from 255 on.
    """

    max: int
    mean: float
    counts: list[int]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SessionStatistics(Statistics):
    """A client's session with one shard, while it is live or away.

    Attributes:
        id: the session's number at this shard, from 1.
        role: ``"worker"`` or ``"observer"``.
        rank: the worker's rank; None for an observer.
        incarnation: counts the sessions that shard 0 granted, from 1.
        presence: ``"live"``, or ``"away"`` while it may still reconnect.
        transport: ``"shm"`` or ``"tcp"``.
        accepted: sequence number of its newest accepted push.
        applied: sequence number of its newest push that was applied or abstained.
        refused: how many of its pushes were refused.
        staleness: in updates, of push number ``applied``.
    """

    id: int
    role: str
    rank: int | None
    incarnation: int
    presence: str
    transport: str
    accepted: int
    applied: int
    refused: int
    staleness: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EndedSession(Statistics):
    """A worker's session that has ended.

    Attributes:
        rank: the worker's rank.
        incarnation: which of the rank's sessions it was.
        how: ``"done"``, ``"died"``, ``"silent"``, ``"fenced"`` or ``"stopped"``.
    """

    rank: int
    incarnation: int
    how: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ShardStatistics(Statistics):
    """The counters of one shard, since it started.

    Attributes:
        updates: updates that were applied: of one push each, or of one round.
        version: the shard's version, which counts them.
        floats: float32 elements of the shard's vector, in which each tensor begins at a multiple of 64 bytes; 0 while
            it has none.
        state_vectors: how many state vectors of that size the optimizer keeps.
        learning_rate: what the next update uses, before groups multiply it, unless a push brings its own. In ``sync``,
            a shard other than the first learns of one that was set with the next round that closes.
        queue_depth: pushes that are accepted and not settled.
        round: the synchronous round that a push which comes now is for, from 0.
        awaited: the ranks that the open round waits for.
        accepted: pushes that were accepted. Each is settled once: applied, refused or abstained.
        applied: pushes that were applied.
        refused: pushes that were refused by a rule of the contract.
        refused_in_part: those of them that a store which updates in place refused because of NaN or infinity. What came
            before the first bad 64 parameters stays applied (4,096 where gradients are encoded or clipped).
        abstained: pushes that brought no gradient, by ``push(None)``.
        rates_differed: synchronous rounds whose pushes named different learning rates; the first shard counts them.
        cut_off: pushes whose worker ended before their last byte. They were never accepted.
        pulls: requests for parameters without a push.
        snapshots: cuts of the shard's state that were made.
        snapshot_pause_last_s: seconds for which the newest of them held pushes.
        snapshot_pause_longest_s: seconds for which a snapshot has held pushes at most.
        workers_done: workers' sessions that ended in order.
        workers_died: workers' sessions that ended without a goodbye.
        workers_silent: workers' sessions that were given up because nothing was heard for their timeout.
        staleness: that of the pushes applied.
        sessions: the sessions that are live or away.
        ended: the newest 64 workers' sessions that have ended, newest last.
        groups: groups of ranks (:class:`distnet.ProcessGroup`) that came together at this shard.
        bytes_received: bytes of requests and gradients, over all connections.
        bytes_sent: bytes of replies and parameters, over all connections.
    """

    updates: int
    version: int
    floats: int
    state_vectors: int
    learning_rate: float
    queue_depth: int
    round: int
    awaited: list[int]
    accepted: int
    applied: int
    refused: int
    refused_in_part: int
    abstained: int
    rates_differed: int
    cut_off: int
    pulls: int
    snapshots: int
    snapshot_pause_last_s: float
    snapshot_pause_longest_s: float
    workers_done: int
    workers_died: int
    workers_silent: int
    staleness: StalenessStatistics
    sessions: list[SessionStatistics]
    ended: list[EndedSession]
    groups: int
    bytes_received: int
    bytes_sent: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ServerStatistics(ShardStatistics):
    """The counters of a server over all its shards.

    ``updates`` and ``version`` are the smallest of all shards. ``floats``, ``queue_depth``, ``bytes_received`` and
    ``bytes_sent`` are sums, ``staleness`` counts the pushes of all shards, and the pauses are the longest. The others
    are those of shard 0.

    Attributes:
        versions: the version of each shard.
        shards: the counters of each shard.
    """

    versions: list[int]
    shards: list[ShardStatistics]

    @classmethod
    def over(cls, shards: Sequence[ShardStatistics]) -> ServerStatistics:
        """Return the counters over some shards.

        Args:
            shards: those of each shard, in order, of at least one.

        Returns:
            The counters of them all.
        """
        applied = sum(shard.applied for shard in shards)
        counts = [0] * max(len(shard.staleness.counts) for shard in shards)
        for shard in shards:
            for staleness, count in enumerate(shard.staleness.counts):
                counts[staleness] += count
        total: dict[str, Any] = dict(shards[0]) | {
            "updates": min(shard.updates for shard in shards),
            "version": min(shard.version for shard in shards),
            "versions": [shard.version for shard in shards],
            "staleness": StalenessStatistics(
                max=max(shard.staleness.max for shard in shards),
                mean=sum(shard.staleness.mean * shard.applied for shard in shards) / applied if applied else 0.0,
                counts=counts,
            ),
            "shards": list(shards),
        }
        for longest in ("snapshot_pause_last_s", "snapshot_pause_longest_s"):
            total[longest] = max(shard[longest] for shard in shards)
        for summed in ("floats", "queue_depth", "bytes_received", "bytes_sent"):
            total[summed] = sum(shard[summed] for shard in shards)
        return cls(**total)


def _names(kind: type[Statistics]) -> tuple[str, ...]:
    fields: dict[str, Any] = getattr(kind, "__dataclass_fields__", {})
    return tuple(fields)


def _plain(value: Any) -> Any:
    if isinstance(value, Statistics):
        return value.as_dict()
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _typed(kind: Any, value: Any) -> Any:
    """Return a value out of JSON as the type of its field, where that is made of statistics."""
    if isinstance(kind, type) and issubclass(kind, Statistics):
        return kind.from_dict(value)
    inner = typing.get_args(kind)
    if typing.get_origin(kind) is list and issubclass(inner[0], Statistics):
        return [inner[0].from_dict(one) for one in value]
    return value
