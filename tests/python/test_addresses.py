"""Where shards are, for those who come from elsewhere: what a server advertises, and what its clients make of it."""

from __future__ import annotations

import numpy as np
import pytest

import distnet
from distnet._private.addresses import advertised, shard_endpoint, usable_elsewhere

ENDPOINTS = ["tcp://0.0.0.0:7400", "tcp://0.0.0.0:7401"]
GRADIENT = [np.full(5000, -1.0, np.float32)]


@pytest.mark.parametrize(
    ("advertise", "told"),
    [
        ("parameter-server", ["tcp://parameter-server:7400", "tcp://parameter-server:7401"]),
        ("2001:db8::1", ["tcp://[2001:db8::1]:7400", "tcp://[2001:db8::1]:7401"]),
        ("tcp://gateway:17400", ["tcp://gateway:17400", "tcp://gateway:17401"]),
        (["tcp://one:1", "two"], ["tcp://one:1", "tcp://two:7401"]),
        ("tcp://one:1,two", ["tcp://one:1", "tcp://two:7401"]),
    ],
)
def test_what_is_advertised_stands_in_for_where_the_shards_listen(advertise: str | list[str], told: list[str]) -> None:
    assert advertised(advertise, ENDPOINTS) == told


@pytest.mark.parametrize(
    "advertise",
    [
        "",
        "tcp://gateway",
        "tcp://gateway:0",
        "tcp://gateway:70000",
        "gateway:7400",
        "shm://name",
        "a b",
        ["one"],
        [1, 2],
    ],
)
def test_what_is_no_address_cannot_be_advertised(advertise: str | list[str]) -> None:
    with pytest.raises(distnet.ConfigError, match="advertise"):
        distnet.ParameterServer(GRADIENT, address="tcp://0.0.0.0:7400", servers=2, advertise=advertise)


def test_a_server_of_this_host_alone_advertises_nothing() -> None:
    with pytest.raises(distnet.ConfigError, match="advertise"):
        distnet.ParameterServer(GRADIENT, address="shm://", advertise="host")


def test_every_interface_is_named_by_the_host_and_all_else_as_it_is() -> None:
    named = usable_elsewhere("tcp://0.0.0.0:7400")
    assert named.endswith(":7400")
    assert "0.0.0.0" not in named
    assert usable_elsewhere("tcp://[::]:7400") == named
    for endpoint in ("tcp://127.0.0.2:7400", "tcp://host-a:7400", "shm://name"):
        assert usable_elsewhere(endpoint) == endpoint


def test_the_address_of_a_server_at_every_interface_can_be_used() -> None:
    with distnet.ParameterServer(GRADIENT, semantics="async-apply", servers=2, address="tcp://0.0.0.0:0") as server:
        assert "0.0.0.0" not in server.address
        first = server.address.split(",")[0]
        for address in (server.address, first, f"tcp://127.0.0.2:{first.rpartition(':')[2]}"):
            with distnet.connect(address, transport="tcp") as client:
                client.pull()


@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
@pytest.mark.parametrize("semantics", ["sync", "async-apply"])
def test_clients_keep_to_the_address_they_were_given_and_shards_to_their_own(semantics: str, processes: bool) -> None:
    with distnet.ParameterServer(
        GRADIENT,
        semantics=semantics,
        optimizer=distnet.SGD(1.0),
        servers=2,
        address="tcp://127.0.0.2:0",
        advertise="no-such-host.invalid",
        processes=processes,
    ) as server:
        first, second = server.address.split(",")
        assert first.startswith("tcp://no-such-host.invalid:")
        assert second.startswith("tcp://no-such-host.invalid:")
        with distnet.connect(first.replace("no-such-host.invalid", "127.0.0.2"), rank=0, transport="tcp") as client:
            assert set(client.push_pull(GRADIENT)[0]) == {0.0}
        assert set(server.parameters()[0]) == {0.0}


def test_shards_listen_at_the_ports_after_the_first() -> None:
    assert [shard_endpoint("tcp://host:7400", shard) for shard in (0, 2)] == ["tcp://host:7400", "tcp://host:7402"]
    assert [shard_endpoint("tcp://host:0", shard) for shard in (0, 2)] == ["tcp://host:0"] * 2
    assert [shard_endpoint("shm://name", shard) for shard in (0, 2)] == ["shm://name", "shm://name.2"]
