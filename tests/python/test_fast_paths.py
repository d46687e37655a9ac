"""Every fast path gives the answers of the slow one, and leaves alone what is the caller's."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from worker_processes import over_semantics_and_shards, over_transports, serve

import distnet

PIECE = 16 * 1024
SIZES = (7, 3 * PIECE, PIECE + 5)  # several pieces, tensors that end inside them, padding between
PUSHES = 6
ALL_OFF = distnet.Tuning(
    spin=0, announce_early=False, apply_arriving=False, read_drafts=False, deliver=False, past_cache=False,
    duplex=False, congestion_control="",
)  # fmt: skip
DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(distnet.Tuning)}
TUNINGS = {
    "all on": distnet.Tuning(),
    "all off": ALL_OFF,
    **{f"only {name}": dataclasses.replace(ALL_OFF, **{name: default}) for name, default in DEFAULTS.items()},
}


def gradients(number: int) -> list[np.ndarray]:
    """Return whole numbers, so that sums are exact in any order."""
    return [np.arange(size, dtype=np.float32) % 13 + number for size in SIZES]


def starting() -> list[np.ndarray]:
    return [np.full(size, 5.0, np.float32) for size in SIZES]


@over_semantics_and_shards
@over_transports
@pytest.mark.parametrize("tuning", TUNINGS.values(), ids=TUNINGS)
def test_every_combination_of_fast_paths_gives_the_same_parameters(
    semantics: str, shards: int, transport: str, tuning: distnet.Tuning
) -> None:
    with serve(starting(), semantics, transport, shards, tuning=tuning) as server:
        client = distnet.connect(server.address, rank=0, transport=transport, tuning=tuning)
        expected = starting()
        for number in range(PUSHES):
            arrays = client.push_pull(gradients(number))
            if number == 2:
                spoilt = gradients(0)
                spoilt[1][2 * PIECE] = np.nan  # when some pieces have left already
                with pytest.raises(distnet.NonFiniteGradient):
                    client.push_pull(spoilt)
                np.testing.assert_array_equal(np.isfinite(np.concatenate(list(client.pull()))), True)
            before = [array.copy() for array in expected]
            expected = [e - g for e, g in zip(expected, gradients(number), strict=True)]
            for array, old, new in zip(arrays, before, expected, strict=True):
                assert np.all((array == old) | (array == new)), (
                    "a reply holds all of this worker's pushes but the newest"
                )
        client.close()
        for array, wanted in zip(server.parameters(), expected, strict=True):
            np.testing.assert_array_equal(array, wanted)
        assert server.stats()["refused"] == 1


@over_transports
def test_arrays_change_only_in_calls_that_return_them(transport: str) -> None:
    with serve(starting(), "async-locked", transport, workers=2) as server:
        client = distnet.connect(server.address, rank=0, transport=transport)
        own: list[Any] = list(client.pull())
        kept = [array.copy() for array in own]
        handle = client.begin_push_pull(gradients(1))
        other = distnet.connect(server.address, rank=1, transport=transport)
        other.push_pull(gradients(2))  # the server has answered the first call by now, or is about to
        other.close()
        for array, old in zip(own, kept, strict=True):
            np.testing.assert_array_equal(array, old)
        handle.wait()
        out = [np.zeros(size, np.float32) for size in SIZES]
        kept = [array.copy() for array in own]
        client.push_pull(gradients(3), out=out)
        client.push(gradients(4))
        if transport == "shm":  # elsewhere aliases are the client's own arrays
            client.pull(alias=True)
        for array, old in zip(own, kept, strict=True):
            np.testing.assert_array_equal(array, old)
        client.close()


def test_own_arrays_outlive_their_client_and_its_server() -> None:
    with serve(starting(), "async-lockfree", "shm") as server:
        client = distnet.connect(server.address, rank=0, transport="shm")
        arrays = client.push_pull(gradients(0))
        kept = [array.copy() for array in arrays]
        client.close()
    del client
    for array, old in zip(arrays, kept, strict=True):
        np.testing.assert_array_equal(array, old)
        np.asarray(array)[...] = 1.0  # they are the caller's to write to, too


@pytest.mark.parametrize(
    "setting", [{"spin": -1.0}, {"spin": "1"}, {"deliver": "no"}, {"congestion_control": "a" * 16}]
)
def test_a_tuning_that_cannot_be_is_refused_by_name(setting: dict[str, Any]) -> None:
    with pytest.raises(distnet.ConfigError, match=next(iter(setting))):
        distnet.Tuning(**setting)


@over_semantics_and_shards
def test_a_server_says_what_bounds_its_memory(semantics: str, shards: int) -> None:
    def pages(count: int) -> int:
        return -(-count // 4096) * 4096

    workers, observers, calls = 3, 1, 2
    with serve(
        starting(), semantics, "shm", shards, workers=workers, optimizer=distnet.Adam(0.1), ema_decay=0.9
    ) as server:
        shard_bytes = [4 * shard["floats"] for shard in server.stats()["shards"]]
        versioned = distnet.SEMANTICS[semantics].guard == "mutex"
        versions = 3 + (workers + observers) * (calls + 1) if versioned else 1
        saved_bytes = 65_536 * (workers if semantics == "sync" else 64)  # of ranks, at shard 0
        bound = server.memory()
        assert bound["versions"] == versions * sum(pages(2 * size) for size in shard_bytes)
        assert bound["optimizer"] == 2 * sum(pages(size) for size in shard_bytes)
        state = sum(pages(2 * size) + 2 * pages(size) for size in shard_bytes)
        assert bound["snapshot"] == state + saved_bytes
        assert bound["in_flight"] == workers * (calls + 1) * sum(pages(size) for size in shard_bytes)
        saving = workers * (calls + 4) * 65_536
        assert bound["sessions"] == shards * (workers + observers) * (640 << 10) + saving
        assert saved_bytes < bound["tables"] <= saved_bytes + shards * (8 << 20)
        assert bound["rest"] == shards * (64 << 20)
        assert bound["total"] == sum(size for name, size in bound.items() if name != "total")


def test_a_server_without_parameters_cannot_say_what_bounds_its_memory() -> None:
    with serve(None, "async-apply", "shm") as server, pytest.raises(distnet.ConfigError, match="no parameters yet"):
        server.memory()


@over_semantics_and_shards
@over_transports
def test_a_gradient_may_lie_in_the_clients_own_arrays(semantics: str, shards: int, transport: str) -> None:
    """It would be overwritten by the reply's parameters while it is sent, if the server put them there."""
    size = 40 * PIECE
    with serve([np.full(size, 8.0, np.float32)], semantics, transport, shards) as server:
        client = distnet.connect(server.address, rank=0, transport=transport)
        for _ in range(10):
            arrays = client.pull()
            arrays[0][:] = 2.0
            client.push_pull(arrays)
        client.close()
        np.testing.assert_array_equal(server.parameters()[0], 8.0 - 10 * 2.0)


@over_semantics_and_shards
@over_transports
def test_a_refused_gradient_leaves_whole_parameters_behind(semantics: str, shards: int, transport: str) -> None:
    size = 40 * PIECE
    with serve([np.zeros(size, np.float32)], semantics, transport, shards) as server:
        client = distnet.connect(server.address, rank=0, transport=transport)
        gradient = [np.full(size, -1.0, np.float32)]
        for number in range(8):
            arrays = client.push_pull(gradient)
            spoilt = [np.full(size, -1.0, np.float32)]
            spoilt[0][PIECE * (1 + 4 * number)] = np.inf
            with pytest.raises(distnet.NonFiniteGradient):
                client.push_pull(spoilt)
            seen = arrays[0].copy()
            client.push(gradient)
            np.testing.assert_array_equal(arrays[0], seen, err_msg="they change in no call that does not return them")
            if distnet.SEMANTICS[semantics].guard == "mutex" and shards == 1:
                assert np.all(seen == seen[0]), "parameters of two versions"
        client.close()


@over_transports
def test_staleness_counts_from_the_parameters_that_a_client_has_not_from_those_it_heard_of(transport: str) -> None:
    with serve(starting(), "async-apply", transport) as server:
        client = distnet.connect(server.address, rank=0, transport=transport)
        client.pull()
        for number in range(4):
            client.push(gradients(number))
            assert client.staleness == number
        client.push_pull(gradients(4))
        client.push(gradients(5))
        assert client.staleness == 0
        client.close()
