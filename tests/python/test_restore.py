"""A server goes on from a snapshot as if nothing had been, on any number of shards; what does not fit is refused."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from small_model import Array, push_rounds, random_model
from worker_processes import over_shards, over_transports, serve

import distnet
from distnet.optimizers import state_vectors

ROUNDS = 5
over_processes = pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
OPTIMIZERS = {
    "sgd": distnet.SGD(distnet.PiecewiseConstant([3, 6], [0.5, 0.1, 0.01])),
    "momentum": distnet.Momentum(distnet.CosineDecay(0.1, updates=9), weight_decay=1e-3),
    "nesterov": distnet.Momentum(0.1, nesterov=True),
    "adam": distnet.Adam(distnet.Warmup(6, distnet.ExponentialDecay(0.01, 0.5, updates=4))),
    "adamw": distnet.AdamW(0.01),
    "rmsprop": distnet.RMSProp(0.01, momentum=0.9),
    "adagrad": distnet.Adagrad(0.1, initial_accumulator_value=0.1),
    "dampened": distnet.Momentum(0.1, dampening=0.3),
    "centered": distnet.RMSProp(0.01, momentum=0.9, centered=True, eps_inside_root=True),
    "amsgrad": distnet.Adam(0.01, amsgrad=True),
    "nadam": distnet.NAdam(0.01),
    "lion": distnet.Lion(0.001),
}


def named(arrays: Any) -> list[tuple[Any, Array]]:
    return list(arrays.items() if isinstance(arrays, dict) else enumerate(arrays))


def assert_same(one: distnet.Snapshot, other: distnet.Snapshot) -> None:
    """Equal to the bit, whatever the number of shards."""
    assert (one.version, one.round, len(one.optimizer_state)) == (
        other.version,
        other.round,
        len(other.optimizer_state),
    )
    vectors: list[tuple[Any, Any]] = [
        (one.parameters, other.parameters),
        *zip(one.optimizer_state, other.optimizer_state, strict=True),
    ]
    if one.ema is not None or other.ema is not None:
        vectors.append((one.ema, other.ema))
    for mine, theirs in vectors:
        assert mine is not None
        assert theirs is not None
        for (name, array), (other_name, other_array) in zip(named(mine), named(theirs), strict=True):
            assert (name, array.shape, array.dtype) == (other_name, other_array.shape, other_array.dtype)
            np.testing.assert_array_equal(array, other_array)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize(("shards", "later_shards"), [(1, 1), (2, 2), (1, 3), (2, 1)])
def test_training_goes_on_to_the_bit(name: str, shards: int, later_shards: int) -> None:
    options: dict[str, Any] = {"semantics": "sync", "optimizer": OPTIMIZERS[name], "ema_decay": 0.9, "workers": 2}
    with distnet.ParameterServer(random_model(0), servers=shards, **options) as server:
        taken: list[distnet.Snapshot] = []
        taker = threading.Thread(target=lambda: taken.append(server.snapshot(at_round=ROUNDS)))
        taker.start()
        push_rounds(server, 0, ROUNDS)
        taker.join()  # whether it came to ask before these rounds or after them
        (snapshot,) = taken
        push_rounds(server, ROUNDS, 2 * ROUNDS)
        end = server.snapshot()
    assert (snapshot.round, snapshot.versions) == (ROUNDS, (ROUNDS,) * shards)
    with distnet.ParameterServer(servers=later_shards, restore=snapshot, **options) as server:
        assert_same(server.snapshot(), snapshot)
        push_rounds(server, ROUNDS, 2 * ROUNDS)
        assert_same(server.snapshot(), end)


@over_processes
@over_transports
@over_shards
def test_shards_of_any_kind_go_on(shards: int, transport: str, processes: bool) -> None:
    options: dict[str, Any] = {"optimizer": OPTIMIZERS["adam"], "ema_decay": 0.9, "workers": 2, "processes": processes}
    with serve(random_model(0), "sync", transport, shards, **options) as server:
        push_rounds(server, 0, 2)
        snapshot = server.snapshot(at_round=2)
        push_rounds(server, 2, 4)
        end = server.snapshot()
        state = server.optimizer_state()
        assert server.stats()["snapshots"] == 3
    assert_same(dataclasses.replace(end, optimizer_state=tuple(state)), end)
    with serve(None, "sync", transport, shards, **options, restore=snapshot) as server:
        push_rounds(server, 2, 4)
        assert_same(server.snapshot(), end)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    shapes=st.lists(
        st.lists(st.integers(0, 9), max_size=3).map(tuple) | st.integers(1, 70_000).map(lambda count: (count,)),
        min_size=1,
        max_size=5,
    ),
    name=st.sampled_from(list(OPTIMIZERS)),
    semantics=st.sampled_from(["sync", "async-apply", "async-lockfree"]),
    shards=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    ema_decay=st.sampled_from([None, 0.9]),
    versions=st.lists(st.integers(0, 2**40), min_size=4, max_size=4),
    seed=st.integers(0, 2**16),
)
def test_what_is_put_back_on_other_shards_is_what_was_taken(
    shapes: Any, name: str, semantics: str, shards: tuple[int, int], ema_decay: float | None, versions: Any, seed: int
) -> None:
    """Also a snapshot that no server took, whose shards have versions of their own."""
    random = np.random.default_rng(seed)
    vectors = state_vectors(OPTIMIZERS[name])

    def arrays() -> list[Array]:
        return [random.standard_normal(shape).astype(np.float32) for shape in shapes]

    snapshot = distnet.Snapshot(
        parameters=arrays(),
        optimizer_state=tuple(arrays() for _ in range(vectors)),
        ema=arrays() if ema_decay else None,
        versions=tuple(versions[: shards[0]]),
        round=7 if semantics == "sync" else None,
        optimizer=OPTIMIZERS[name].to_spec(),
    )
    options: dict[str, Any] = {"semantics": semantics, "optimizer": OPTIMIZERS[name], "ema_decay": ema_decay}
    with distnet.ParameterServer(servers=shards[1], restore=snapshot, **options) as server:
        again = server.snapshot()
    assert_same(again, snapshot)
    own = shards[0] == shards[1] and semantics != "sync"
    assert again.versions == (snapshot.versions if own else (min(snapshot.versions),) * shards[1])


# ---- what does not fit ---------------------------------------------------------------------------------------------
def _snapshot(**changes: Any) -> distnet.Snapshot:
    fields: dict[str, Any] = {
        "parameters": random_model(0),
        "optimizer_state": (random_model(1),),
        "ema": None,
        "versions": (3,),
        "round": None,
        "optimizer": distnet.Momentum(0.1).to_spec(),
    }
    return distnet.Snapshot(**fields | changes)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"restore": {}}, "restore is dict; expected .* distnet.Snapshot"),
        ({"optimizer": distnet.Adam(0.1)}, "made with the optimizer 'momentum', and the server has 'adam'"),
        ({"parameters": {"w": np.zeros((300, 70), "f4")}}, "parameters= has 1 tensors, the snapshot 4"),
        (
            {"parameters": random_model(0) | {"b": np.zeros(8, np.float32)}},
            r"parameters= has a tensor 'b' of shape \(8,\) where the snapshot has 'b' of shape \(9,\)",
        ),
    ],
)
def test_another_model_or_optimizer_is_refused_with_both_names(arguments: dict[str, Any], expected: str) -> None:
    defaults: dict[str, Any] = {"restore": _snapshot(), "optimizer": distnet.Momentum(0.1)}
    with pytest.raises(distnet.ConfigError, match=expected):
        distnet.ParameterServer(**defaults | arguments)


@pytest.mark.parametrize(
    ("made_with", "given"),
    [
        (distnet.Momentum(0.1), distnet.Momentum(0.1, velocity_holds_rate=True)),
        (distnet.RMSProp(0.1, momentum=0.9), distnet.RMSProp(0.1, centered=True)),
    ],
)
def test_state_that_means_something_else_is_refused(made_with: distnet.Optimizer, given: distnet.Optimizer) -> None:
    state = tuple(random_model(index) for index in range(state_vectors(made_with)))
    snapshot = _snapshot(optimizer_state=state, optimizer=made_with.to_spec())
    with pytest.raises(distnet.ConfigError, match="means something else there: use the settings that it was made with"):
        distnet.ParameterServer(restore=snapshot, optimizer=given)


@over_processes
def test_state_of_another_shape_is_refused_where_it_is_put_back(processes: bool) -> None:
    """RMSProp with a momentum keeps one vector more than without."""
    snapshot = _snapshot(optimizer=distnet.RMSProp(0.1).to_spec())
    server = distnet.ParameterServer(
        restore=snapshot, optimizer=distnet.RMSProp(0.1, momentum=0.9), processes=processes
    )
    with pytest.raises(distnet.ConfigError, match="keeps 2 state vectors, and what is put back holds 1"):
        server.start()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"optimizer_state": ({"w": np.zeros(3, np.float32)},)},
            r"optimizer_state\[0\] has 1 tensors, its parameters 4",
        ),
        ({"ema": random_model(0) | {"b": np.zeros(2, np.float32)}}, "ema has a tensor 'b'"),
        ({"versions": ()}, r"versions=\(\)"),
        ({"versions": (-1,)}, r"versions=\(-1,\)"),
        ({"round": -1}, "round=-1"),
    ],
)
def test_a_snapshot_that_cannot_be_is_refused_by_name(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(distnet.ConfigError, match=expected):
        _snapshot(**changes)


def test_what_clients_bring_is_only_checked_against_a_snapshot() -> None:
    options: dict[str, Any] = {"optimizer": distnet.Momentum(0.1), "semantics": "async-apply"}
    with distnet.ParameterServer(random_model(7), restore=_snapshot(), **options) as server:
        with distnet.connect(server.address, rank=0, parameters=random_model(8)) as client:
            np.testing.assert_array_equal(client.pull()["w"], random_model(0)["w"])  # type: ignore[call-overload]
            assert client.version == 3
        with pytest.raises(distnet.ManifestMismatch):
            distnet.connect(server.address, rank=0, parameters=[np.zeros(3, np.float32)])


def test_a_snapshot_of_sync_goes_on_as_sync() -> None:
    with distnet.ParameterServer(random_model(5), semantics="sync", workers=2) as server:
        push_rounds(server, 0, 1)
        snapshot = server.snapshot()
    assert distnet.ParameterServer(restore=snapshot).semantics == distnet.SEMANTICS["sync"]
    other = distnet.ParameterServer(restore=snapshot, semantics="async-apply")
    assert other.restored is not None
    assert [str(each) for each in other.restored.differences] == ["semantics is async-apply, and was sync"]
    own = distnet.ParameterServer(restore=snapshot, semantics=distnet.Semantics(joins="all", reduction="sum"))
    assert own.restored is not None
    assert own.restored.differences == (), "it may be what the snapshot was taken with"
    assert distnet.ParameterServer(restore=dataclasses.replace(snapshot, round=None)).semantics.joins != "all"
