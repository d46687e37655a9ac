"""The statistics as values: by attribute and by key, to JSON and back, and from servers of other versions."""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any

import numpy as np
import pytest
from worker_processes import over_semantics_and_shards, over_transports, serve, wait_until

import distnet
from distnet import stats as statistics
from distnet.stats import ServerStatistics, ShardStatistics, StalenessStatistics

KINDS = [
    getattr(statistics, name) for name in statistics.__all__ if dataclasses.is_dataclass(getattr(statistics, name))
]


def shard(**changes: object) -> ShardStatistics:
    """Return counters that are all 0, but for these."""
    empty: dict[str, Any] = dict.fromkeys((field.name for field in dataclasses.fields(ShardStatistics)), 0)
    empty |= {"awaited": [], "sessions": [], "ended": [], "staleness": {"max": 0, "mean": 0.0, "counts": []}}
    return ShardStatistics.from_dict(empty | changes)


@over_transports
@over_semantics_and_shards
def test_a_server_and_its_clients_count_alike(semantics: str, shards: int, transport: str) -> None:
    with (
        serve([np.zeros(1 << 15, np.float32)], semantics, transport, shards) as server,
        distnet.connect(server.address, rank=0, transport=transport) as client,
    ):
        for _ in range(3):
            client.push([np.full(1 << 15, -1.0, np.float32)])
        client.pull()
        wait_until(lambda: server.stats().queue_depth == 0, "everything is settled")
        stats = server.stats()
        assert isinstance(stats, ServerStatistics)
        assert (stats.updates, stats.accepted, stats.applied, stats.refused, stats.refused_in_part) == (3, 3, 3, 0, 0)
        assert (stats.floats, stats.versions, stats.pulls, stats.queue_depth) == (1 << 15, [3] * shards, 1, 0)
        assert sum(stats.staleness.counts) == 3 * shards
        (session,) = stats.sessions
        assert (session.role, session.rank, session.presence, session.transport) == ("worker", 0, "live", transport)
        assert (session.accepted, session.applied, session.refused) == (3, 3, 0)
        assert stats.bytes_received >= 3 * 4 << 15
        by_client = client.stats()
        assert [one.version for one in by_client] == stats.versions
        assert by_client[0]["sessions"][0]["incarnation"] == session.incarnation
    assert all(isinstance(one, ShardStatistics) for one in by_client)


def test_a_field_is_an_attribute_and_a_key() -> None:
    stats = ServerStatistics.over([shard(updates=3), shard(updates=2)])
    assert stats["updates"] == stats.updates == stats.get("updates") == 2
    assert stats["staleness"]["counts"] == []
    assert "updates" in stats
    assert "upgrades" not in stats
    assert stats.get("upgrades", 7) == 7
    with pytest.raises(KeyError):
        stats["as_dict"]
    assert list(stats) == [field.name for field in dataclasses.fields(stats)]
    assert dict(stats.items())["versions"] == [0, 0]


def test_statistics_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        shard().updates = 1  # type: ignore[misc]
    with pytest.raises(TypeError):
        shard()["updates"] = 1
    with pytest.raises(TypeError):
        StalenessStatistics(1, 1.0, [])  # type: ignore[call-arg]


def test_a_dict_of_plain_values_is_equal_and_comes_back_from_json() -> None:
    stats = shard(
        sessions=[{
            "id": 1, "role": "observer", "rank": None, "incarnation": 1, "presence": "live", "transport": "tcp",
            "accepted": 0, "applied": 0, "refused": 0, "staleness": 0,
        }],
        ended=[{"rank": 4, "incarnation": 2, "how": "died"}],
        staleness={"max": 1, "mean": 0.5, "counts": [1, 1]},
    )  # fmt: skip
    plain = json.loads(json.dumps(stats.as_dict()))
    assert stats == plain
    assert ShardStatistics.from_dict(plain) == stats
    assert stats.ended[0].how == "died"


def test_fields_of_a_newer_server_are_ignored_and_missing_ones_named() -> None:
    values = shard().as_dict() | {"quarks": 3}
    values["staleness"]["spin"] = 0.5
    assert ShardStatistics.from_dict(values) == shard()
    del values["refused_in_part"]
    with pytest.raises(distnet.ProtocolError, match=r"'refused_in_part'.*same DistNet"):
        ShardStatistics.from_dict(values)
    del values["staleness"]["mean"]
    with pytest.raises(distnet.ProtocolError, match="lack 'mean'"):
        ShardStatistics.from_dict(shard().as_dict() | {"staleness": values["staleness"]})


def test_the_whole_is_made_of_the_shards() -> None:
    shards = [
        shard(updates=5, version=5, applied=5, floats=10, queue_depth=1, bytes_sent=3,
              staleness={"max": 2, "mean": 1.0, "counts": [1, 3, 1]}),
        shard(updates=4, version=4, applied=4, floats=7, queue_depth=2, bytes_sent=4,
              staleness={"max": 0, "mean": 0.0, "counts": [4]}),
    ]  # fmt: skip
    stats = ServerStatistics.over(shards)
    assert (stats.updates, stats.version, stats.versions, stats.applied) == (4, 4, [5, 4], 5)
    assert (stats.floats, stats.queue_depth, stats.bytes_sent) == (17, 3, 7)
    assert stats.staleness == {"max": 2, "mean": 5 / 9, "counts": [5, 3, 1]}
    assert stats.shards == shards


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_is_documented(kind: type) -> None:
    lines = (inspect.getdoc(kind) or "").splitlines()
    own = [field for field in dataclasses.fields(kind) if field.name in kind.__annotations__]
    assert [field.name for field in own if not any(line.strip().startswith(f"{field.name}:") for line in lines)] == []
