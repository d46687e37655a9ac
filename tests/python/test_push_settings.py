"""What a push carries beside its gradient: a learning rate, a weight; and a push that carries nothing."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import Any

import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from worker_processes import (
    TRANSPORTS,
    Worker,
    changed,
    over_async_semantics_and_shards,
    over_semantics_and_shards,
    over_shards,
    over_transports,
    serve,
)

import distnet

Array = npt.NDArray[np.float32]
SIZE = 3000  # floats, more than a page: several shards have some each
RATE = 0.5  # of the servers


def start() -> list[Array]:
    return [np.zeros(SIZE, np.float32)]


def full(value: float) -> list[Array]:
    return [np.full(SIZE, value, np.float32)]


def only_value(arrays: Any) -> float:
    """The value that all parameters have: then every shard has had the same updates."""
    (array,) = arrays
    assert np.array_equal(array, np.full(SIZE, array[0]))
    return float(array[0])


def serve_sgd(semantics: str | distnet.Semantics, transport: str, shards: int, **arguments: Any) -> Any:
    return serve(start(), semantics, transport, shards, optimizer=distnet.SGD(RATE), **arguments)


@over_transports
@over_semantics_and_shards
def test_a_pushs_rate_goes_before_one_that_was_set_and_that_before_the_schedule(
    semantics: str, shards: int, transport: str
) -> None:
    optimizer = distnet.SGD(distnet.PiecewiseConstant([2], [1.0, 8.0]))
    with (
        serve(start(), semantics, transport, shards, workers=1, optimizer=optimizer) as server,
        distnet.connect(server.address, rank=0, transport=transport) as client,
    ):

        def after(learning_rate: float | None, push: str = "push_pull") -> float:
            if push == "begin_push_pull":
                client.begin_push_pull(full(-1.0), learning_rate=learning_rate).wait()
            else:
                getattr(client, push)(full(-1.0), learning_rate=learning_rate)
            return only_value(client.pull())

        assert after(0.25) == 0.25
        assert after(None) == 1.25  # by the schedule, which has counted the update before
        assert after(None, "push") == 9.25
        client.set_learning_rate(2.0)
        assert after(0.0) == 9.25
        assert after(4, "push") == 13.25
        assert after(None) == 15.25
        assert after(float(np.float32(0.125)), "begin_push_pull") == 15.375
        assert client.version == server.stats().updates == 7
        assert server.stats().learning_rate == 2.0


@over_transports
@over_semantics_and_shards
def test_multipliers_of_groups_apply_to_a_pushs_rate(semantics: str, shards: int, transport: str) -> None:
    model = {"slow": np.zeros(2000, np.float32), "fast": np.zeros(2000, np.float32)}
    groups = {"slow": distnet.Group(learning_rate_multiplier=0.5)}
    with (
        serve(model, semantics, transport, shards, workers=1, groups=groups) as server,
        distnet.connect(server.address, rank=0, transport=transport) as client,
    ):
        client.push({name: np.full(2000, -1.0, np.float32) for name in model}, learning_rate=3.0)
        fresh = client.pull()
        assert isinstance(fresh, dict)
        np.testing.assert_array_equal(fresh["slow"], np.full(2000, 1.5))
        np.testing.assert_array_equal(fresh["fast"], np.full(2000, 3.0))


@over_transports
@over_semantics_and_shards
def test_rates_by_groups_go_before_all_others_and_are_multiplied(semantics: str, shards: int, transport: str) -> None:
    model = {name: np.zeros(2000, np.float32) for name in ("a/bias", "a/kernel", "b/kernel", "b/norm")}
    groups = {"*bias": distnet.Group(), "b/ker*": distnet.Group(learning_rate_multiplier=0.5), "*norm": distnet.Group()}
    ones = {name: np.full(2000, -1.0, np.float32) for name in model}
    with (
        serve(model, semantics, transport, shards, workers=1, groups=groups) as server,
        distnet.connect(server.address, rank=0, transport=transport) as client,
    ):

        def after(learning_rate: Any) -> list[float]:
            client.push(ones, learning_rate=learning_rate)
            fresh: Any = client.pull()
            assert all(np.all(array == array[0]) for array in fresh.values())
            return [float(fresh[name][0]) for name in model]

        assert after({"*bias": 4.0, "b/ker*": 8.0}) == [4.0, 1.0, 4.0, 1.0]
        assert after({}) == [5.0, 2.0, 4.5, 2.0]
        assert after(None) == [6.0, 3.0, 5.0, 3.0]
        client.set_learning_rate(0.0)
        assert after({"*norm": 0.5, "*bias": 0}) == [6.0, 3.0, 5.0, 3.5]
        handle = client.begin_push_pull(ones, learning_rate={"*norm": 0.25})
        more = client.begin_push_pull(ones, learning_rate={"*norm": 0.125})
        handle.wait(), more.wait()
        assert after(0.0) == [6.0, 3.0, 5.0, 3.875]
        for bad, words in [
            ({"*kernel": 1.0}, r"names '\*kernel'.*they are '\*bias', 'b/ker\*', '\*norm'"),
            ({"": 1.0}, "names ''"),
            ({"*bias": math.nan}, r"learning_rate\['\*bias'\] is nan"),
            ({"*bias": -1.0}, r"learning_rate\['\*bias'\] is -1"),
            ({"*bias": "fast"}, r"learning_rate\['\*bias'\]"),
        ]:
            with pytest.raises(distnet.ConfigError, match=words):
                client.push(ones, learning_rate=bad)  # type: ignore[arg-type]
        assert after(0.0) == [6.0, 3.0, 5.0, 3.875]


def test_a_server_without_groups_says_so_and_one_with_many_takes_the_first() -> None:
    with (
        serve_sgd("async-apply", "shm", 1) as server,
        distnet.connect(server.address, rank=0) as client,
        pytest.raises(distnet.ConfigError, match="it has none"),
    ):
        client.push(full(1.0), learning_rate={"0": 1.0})
    model = {f"t{index:03}": np.zeros(1, np.float32) for index in range(70)}
    groups = {name: distnet.Group() for name in model}
    long = "?" * 300
    with (
        serve(model, "async-apply", "tcp", groups={long: distnet.Group(), **groups}) as server,
        distnet.connect(server.address, rank=0, transport="tcp") as client,
    ):
        ones = {name: np.full(1, -1.0, np.float32) for name in model}
        client.push(ones, learning_rate={"t000": 2.0, "t062": 3.0})
        fresh: Any = client.pull()
        assert [float(fresh[name][0]) for name in ("t000", "t001", "t062", "t063")] == [2.0, 1.0, 3.0, 1.0]
        for unnamed in ("t063", long):
            with pytest.raises(distnet.ConfigError, match="first 64"):
                client.push(ones, learning_rate={unnamed: 1.0})


@over_transports
@over_shards
def test_in_a_round_the_rates_by_groups_are_those_of_the_lowest_rank_with_a_gradient(
    transport: str, shards: int
) -> None:
    model = {"a": np.zeros(2000, np.float32), "b": np.zeros(2000, np.float32)}
    ones = {name: np.full(2000, -1.0, np.float32) for name in model}
    with (
        warnings.catch_warnings(),  # outermost: a client may hear of rates that differ as late as it closes
        serve(model, "sync", transport, shards, workers=2, groups={"b": distnet.Group()}) as server,
        distnet.connect(server.address, rank=0, transport=transport) as first,
        distnet.connect(server.address, rank=1, transport=transport) as second,
    ):
        warnings.simplefilter("ignore")
        handle = second.begin_push_pull(ones, learning_rate={"b": 8.0})
        fresh: Any = first.push_pull(ones, learning_rate={"b": 0.5})
        handle.wait()
        assert [float(array[-1]) for array in fresh.values()] == [1.0, 0.5]
        handle = second.begin_push_pull(ones, learning_rate={"b": 8.0})
        fresh = first.push_pull(None, learning_rate={"b": 0.5})
        handle.wait()
        assert [float(array[-1]) for array in fresh.values()] == [2.0, 8.5]
        assert server.stats().rates_differed == 1


@over_transports
@over_semantics_and_shards
def test_an_abstention_is_settled_and_changes_nothing(semantics: str, shards: int, transport: str) -> None:
    """By whichever call, before and after pushes, with the reply's parameters wherever they are asked for."""
    with (
        serve_sgd(semantics, transport, shards, workers=1, ema_decay=0.5) as server,
        distnet.connect(server.address, rank=0, transport=transport) as client,
    ):
        assert only_value(client.push_pull(None)) == 0.0
        client.push(None)
        assert (client.accepted, client.applied, client.version, client.staleness) == (2, 2, 0, 0)
        client.push(full(-2.0))
        out = full(7.0)
        assert only_value(client.push_pull(None, out=out)) == 1.0
        assert out[0][0] == 1.0
        assert only_value(client.push_pull(None, alias=True)) == 1.0
        handles = [client.begin_push_pull(None)]
        assert only_value(handles[0].wait()) == 1.0
        average = only_value(client.pull(ema=True))
        client.push(None)
        assert only_value(client.pull(ema=True)) == average
        assert (client.accepted, client.applied, client.version) == (7, 7, 1)
        stats = server.stats()
        assert (stats.abstained, stats.applied, stats.refused, stats.accepted, stats.updates) == (6, 1, 0, 7, 1)
        assert [shard.abstained for shard in stats.shards] == [6] * shards
        assert stats.queue_depth == 0
    if semantics == "sync":
        assert stats.round == 7


@over_transports
@over_shards
def test_a_round_with_an_abstention_is_the_mean_of_those_that_brought_a_gradient(
    workers: list[Worker], transport: str, shards: int
) -> None:
    with serve_sgd("sync", transport, shards, workers=3) as server:
        for rank, worker in enumerate(workers[:3]):
            worker.connect(server.address, rank, transport)

        def push_round(*values: float | None) -> list[float]:
            for worker, value in zip(workers, values, strict=False):
                worker.begin("push_full", value=value)
            replies = [worker.result() for worker in workers[:3]]
            assert replies[0] == replies[1] == replies[2]
            return [replies[0][0], server.stats().updates]

        assert push_round(-1.0, None, -3.0) == [1.0, 1]
        assert push_round(None, None, None) == [1.0, 1]
        assert push_round(None, -4.0, None) == [3.0, 2]
        assert push_round(-1.0, -1.0, -4.0) == [4.0, 3]
        for worker in workers[:3]:
            state = worker.do("state")
            assert (state["applied"], state["round"], state["version"]) == (4, 4, 3)
        stats = server.stats()
        assert [shard.abstained for shard in stats.shards] == [6] * shards
        assert (stats.applied, stats.refused) == (6, 0)
        for worker in workers[:3]:
            worker.do("close")


@over_transports
@over_shards
def test_a_round_has_the_rate_of_the_lowest_rank_with_a_gradient_and_differing_ones_are_said_once(
    transport: str, shards: int
) -> None:
    with (
        serve_sgd("sync", transport, shards, workers=2) as server,
        distnet.connect(server.address, rank=0, transport=transport) as first,
        distnet.connect(server.address, rank=1, transport=transport) as second,
    ):

        def push_round(of_first: float | None, of_second: float | None, *, first_abstains: bool = False) -> float:
            handle = second.begin_push_pull(full(-1.0), learning_rate=of_second)
            fresh = first.push_pull(None if first_abstains else full(-1.0), learning_rate=of_first)
            value = only_value(fresh)
            assert only_value(handle.wait()) == value
            return value

        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert push_round(2.0, 2.0) == 2.0
            assert push_round(None, None) == 2.5
            assert push_round(64.0, 0.25, first_abstains=True) == 2.75
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            assert push_round(1.0, 4.0) == 3.75
            assert push_round(None, 4.0) == 4.25
            assert push_round(8.0, None) == 12.25
            for client in (first, second):
                client.stats()  # its answer comes after the notice
                client.pull()
        said = [str(one.message) for one in heard]
        assert len(said) == 2, said  # one for each client
        assert all("round 3 named different learning rates (rank 0: 1, rank 1: 4)" in text for text in said), said
        assert server.stats().rates_differed == 3


def weighted_mean(gradients: list[Array], weights: list[float | None]) -> Array:
    """What the documentation says: sum(w * g) / sum(w), in float32, in the order of ranks."""
    factors = [np.float32(1.0 if weight is None else weight) for weight in weights]
    if len(set(factors)) == 1:
        total = gradients[0].copy()
        for gradient in gradients[1:]:
            total += gradient
        return total / np.float32(len(gradients)) if len(gradients) > 1 else total
    total = factors[0] * gradients[0]
    for factor, gradient in zip(factors[1:], gradients[1:], strict=True):
        total += factor * gradient
    return total / np.float32(sum(map(float, factors)))


@over_transports
@over_shards
@pytest.mark.parametrize("weights", [[0.3, 0.7, 2.1], [64.0, None, 17.0], [0.3, 0.3, 0.3], [7.0, 7.0, None]])
def test_a_weighted_round_has_these_bits(transport: str, shards: int, weights: list[float | None]) -> None:
    random = np.random.default_rng(5)
    gradients = [random.standard_normal(SIZE).astype(np.float32) for _ in weights]
    with serve(start(), "sync", transport, shards, workers=3) as server:
        clients = [distnet.connect(server.address, rank=rank, transport=transport) for rank in range(3)]
        handles = [clients[rank].begin_push_pull([gradients[rank]], weight=weights[rank]) for rank in (2, 0, 1)]
        fresh = [handle.wait()[0] for handle in handles]
        for client in clients:
            client.close()
    for array in fresh:
        np.testing.assert_array_equal(array, -weighted_mean(gradients, weights))


def test_weights_neither_overflow_nor_vanish() -> None:
    for weight in (3e38, 1e-37):
        with (
            serve(start(), "sync", "shm", workers=2) as server,
            distnet.connect(server.address, rank=0) as first,
            distnet.connect(server.address, rank=1) as second,
        ):
            handle = first.begin_push_pull(full(-3.0), weight=weight)
            assert only_value(second.push_pull(full(-1.0), weight=weight / 2)) == pytest.approx(7 / 3, rel=1e-6)
            handle.wait()


@over_async_semantics_and_shards
def test_a_weight_without_a_round_is_refused(semantics: str, shards: int) -> None:
    with (
        serve_sgd(semantics, "shm", shards) as server,
        distnet.connect(server.address, rank=0) as client,
    ):
        for push in (client.push, client.push_pull, client.begin_push_pull):
            with pytest.raises(distnet.ConfigError, match="weight= is for the mean of a round"):
                push(full(1.0), weight=2.0)
        client.push(full(-1.0))
        assert (only_value(client.pull()), client.accepted) == (0.5, 1)


def test_a_weight_with_a_sum_is_refused() -> None:
    with (
        serve_sgd(changed("sync", reduction="sum"), "shm", 1, workers=1) as server,
        distnet.connect(server.address, rank=0) as client,
    ):
        with pytest.raises(distnet.ConfigError, match=r"reduction is 'sum'.*reduction='mean'"):
            client.push(full(1.0), weight=2.0)
        assert only_value(client.push_pull(full(-1.0), learning_rate=2.0)) == 2.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1e-9, "0.1", True, [0.1]])
def test_settings_that_cannot_be_are_refused_before_anything_is_sent(bad: Any) -> None:
    with (
        serve_sgd("sync", "shm", 1, workers=1) as server,
        distnet.connect(server.address, rank=0) as client,
    ):
        for gradients in (full(1.0), None):
            for push in (client.push, client.push_pull, client.begin_push_pull):
                with pytest.raises(distnet.ConfigError, match="learning_rate"):
                    push(gradients, learning_rate=bad)
                with pytest.raises(distnet.ConfigError, match="weight"):
                    push(gradients, weight=bad)
        with pytest.raises(distnet.ConfigError, match="weight"):
            client.push(full(1.0), weight=0.0)
        with pytest.raises(distnet.ConfigError, match="weight"):
            client.push(full(1.0), weight=1e-60)  # 0 as float32
        assert only_value(client.push_pull(full(-1.0))) == 0.5
        assert client.accepted == 1


def test_an_observer_abstains_no_more_than_it_pushes() -> None:
    with serve_sgd("async-apply", "shm", 1) as server, distnet.connect(server.address) as observer:
        with pytest.raises(distnet.ConfigError, match="observer"):
            observer.push(None)
        assert only_value(observer.pull()) == 0.0


@over_async_semantics_and_shards
def test_bytes_that_wait_for_an_abstention_are_saved(semantics: str, shards: int) -> None:
    with serve_sgd(semantics, "shm", shards) as server:
        with distnet.connect(server.address, rank=0) as client:
            client.save_with(b"the step that was skipped")
            client.push(None)
        with distnet.connect(server.address, rank=0) as client:
            assert client.saved == b"the step that was skipped"


def test_what_a_lossy_format_left_unsent_stays_over_an_abstention() -> None:
    with (
        serve(start(), "async-apply", "tcp", push_format="topk") as server,
        distnet.connect(server.address, rank=0, transport="tcp") as client,
    ):
        client.push([np.arange(SIZE, dtype=np.float32)])
        (left,) = client.unsent()  # type: ignore[misc]
        assert np.any(left)
        client.push(None)
        (still,) = client.unsent()  # type: ignore[misc]
        np.testing.assert_array_equal(still, left)


@dataclasses.dataclass(frozen=True)
class Action:
    """One worker's part in a round."""

    value: float | None  # of the gradient; None abstains
    learning_rate: float | None
    weight: float | None


rates = st.none() | st.sampled_from([0.0, 0.125, 0.5, 2.0]) | st.floats(0.0, 4.0, width=32)
actions = st.builds(
    Action,
    value=st.none() | st.integers(-50, 50).map(float),
    learning_rate=rates,
    weight=st.none() | st.sampled_from([1.0, 0.25, 3.0]) | st.floats(0.015625, 64.0, width=32),
)
rounds_of_two = st.lists(
    st.tuples(actions, actions, st.booleans(), st.none() | st.floats(0.0, 2.0, width=32)), min_size=1, max_size=8
)


class SyncModel:
    """Plain SGD in NumPy, round by round."""

    def __init__(self) -> None:
        self.parameters = np.arange(SIZE, dtype=np.float32)
        self.set_rate: float | None = None
        self.updates = 0

    def apply(self, round_of: list[Action]) -> None:
        brought = [action for action in round_of if action.value is not None]
        if brought:
            rate = brought[0].learning_rate
            if rate is None:
                rate = RATE if self.set_rate is None else self.set_rate
            gradients = [np.full(SIZE, action.value, np.float32) for action in brought]
            mean = weighted_mean(gradients, [action.weight for action in brought])
            self.parameters = self.parameters - np.float32(rate) * mean
            self.updates += 1


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(rounds_of_two, st.sampled_from(TRANSPORTS), st.sampled_from([1, 2]), st.booleans())
def test_any_rounds_of_pushes_abstentions_and_rates_are_those_of_numpy(
    rounds: list[tuple[Action, Action, bool, float | None]], transport: str, shards: int, ahead: bool
) -> None:
    model = SyncModel()
    with (
        warnings.catch_warnings(),  # outermost: a client may hear of rates that differ as late as it closes
        serve([model.parameters], "sync", transport, shards, workers=2, optimizer=distnet.SGD(RATE)) as server,
        distnet.connect(server.address, rank=0, transport=transport) as first,
        distnet.connect(server.address, rank=1, transport=transport) as second,
    ):
        warnings.simplefilter("ignore")
        for of_first, of_second, second_begins, set_rate in rounds:
            if set_rate is not None:
                first.set_learning_rate(set_rate)
                model.set_rate = set_rate
            order = (
                [(second, of_second), (first, of_first)] if second_begins else [(first, of_first), (second, of_second)]
            )
            handles = [
                client.begin_push_pull(
                    None if action.value is None else full(action.value),
                    learning_rate=action.learning_rate,
                    weight=action.weight,
                )
                for client, action in order
            ]
            model.apply([of_first, of_second])
            for handle in reversed(handles) if ahead else handles:
                (array,) = handle.wait()
                np.testing.assert_array_equal(array, model.parameters)
        assert first.version == second.version == server.stats().updates == model.updates
        assert first.applied == second.applied == first.round == len(rounds)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.tuples(st.integers(0, 1), actions), min_size=1, max_size=12),
    st.sampled_from(["async-apply", "async-locked", "async-lockfree"]),
    st.sampled_from(TRANSPORTS),
    st.sampled_from([1, 2]),
)
def test_any_order_of_asynchronous_pushes_abstentions_and_rates_is_that_of_numpy(
    pushes: list[tuple[int, Action]], semantics: str, transport: str, shards: int
) -> None:
    model = SyncModel()
    with (
        serve([model.parameters], semantics, transport, shards, workers=2, optimizer=distnet.SGD(RATE)) as server,
        distnet.connect(server.address, rank=0, transport=transport) as first,
        distnet.connect(server.address, rank=1, transport=transport) as second,
    ):
        for rank, action in pushes:
            client = (first, second)[rank]
            client.push(None if action.value is None else full(action.value), learning_rate=action.learning_rate)
            model.apply([action])
            np.testing.assert_array_equal(client.pull()[0], model.parameters)
        stats = server.stats()
        assert stats.updates == model.updates
        assert stats.accepted == len(pushes) == stats.applied + stats.abstained
