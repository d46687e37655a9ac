"""What the doors for frameworks share: replica, exchange, metrics and checks, against a server and with NumPy alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import distnet
from distnet.errors import ConfigError, ManifestMismatch, NonFiniteGradient, RoundAborted
from distnet.frameworks.exchange import Exchange
from distnet.frameworks.keras_variables import FixedTrainables
from distnet.frameworks.metrics import measured
from distnet.frameworks.replica import ALIGNMENT_BYTES, Replica
from distnet.frameworks.tensors import ModelTensor, check_gradients, check_held, check_holdable

RATE = 0.5
SHAPES = ((3, 5), (7,), (), (1, 2, 2))


def _values() -> list[np.ndarray]:
    return [np.full(shape, index + 1, np.float32) for index, shape in enumerate(SHAPES)]


def _named() -> dict[str, np.ndarray]:
    return {f"layer/{index}": value for index, value in enumerate(_values())}


def _gradients(value: float) -> list[np.ndarray]:
    return [np.full(shape, value, np.float32) for shape in SHAPES]


@pytest.fixture(params=[_values, _named], ids=["list", "dict"])
def parameters(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.fixture
def client(parameters: Any) -> Iterator[distnet.Client]:
    """One worker, over shared memory, of a server that holds the values."""
    server = distnet.ParameterServer(parameters, semantics="async-apply", optimizer=distnet.SGD(RATE))
    with server, distnet.connect(server.address, rank=0) as client:
        assert client.transport == "shm"
        yield client


# ---- the replica -----------------------------------------------------------------------------------------------------
def test_a_replica_is_an_aligned_copy_structured_as_the_servers_parameters(parameters: Any) -> None:
    replica = Replica(parameters)
    assert type(replica.arrays) is type(parameters)
    if isinstance(parameters, dict):
        assert list(replica.arrays) == list(parameters)
    for tensor, value in zip(replica.tensors, _values(), strict=True):
        assert tensor.ctypes.data % ALIGNMENT_BYTES == 0
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, value, strict=True)
        assert not np.shares_memory(tensor, value)
    gradients = _gradients(1.0)
    structured = replica.structured(gradients)
    assert list(structured.values() if isinstance(structured, dict) else structured) == gradients


def test_no_two_tensors_of_a_replica_share_memory() -> None:
    tensors = Replica(_values()).tensors
    for index, tensor in enumerate(tensors):
        assert not any(np.shares_memory(tensor, other) for other in tensors[:index])


def test_memory_is_page_locked_only_where_there_is_a_library_for_it() -> None:
    replica = Replica(_values(), page_locked=True)
    np.testing.assert_array_equal(replica.tensors[0], _values()[0])


# ---- the exchange ----------------------------------------------------------------------------------------------------
class Watched:
    """A replica and its exchange, with what arrived: a copy of the first element of the first tensor each time."""

    def __init__(self, client: distnet.Client, *, overlap: bool = False) -> None:
        self.replica = Replica(client.pull())
        self.arrived: list[float] = []
        self.exchange = Exchange(client, self.replica, arrived=self._take, overlap=overlap)

    @property
    def value(self) -> float:
        return float(self.replica.tensors[0][0, 0])

    def _take(self) -> None:
        self.arrived.append(self.value)


def test_a_reply_arrives_in_the_replicas_own_memory(client: distnet.Client) -> None:
    worker = Watched(client)
    memory = [tensor.ctypes.data for tensor in worker.replica.tensors]
    for step in range(3):
        worker.exchange.push_pull(_gradients(1.0))
        assert worker.arrived[-1] == 1.0 - RATE * (step + 1)
    for tensor, value, address in zip(worker.replica.tensors, _values(), memory, strict=True):
        np.testing.assert_array_equal(tensor, value - 3 * RATE)
        assert tensor.ctypes.data == address
    assert len(worker.arrived) == 3


def test_with_overlap_parameters_are_one_push_older_until_they_are_settled(client: distnet.Client) -> None:
    worker = Watched(client, overlap=True)
    for step in range(4):
        worker.exchange.push_pull(_gradients(1.0))
        assert worker.value == 1.0 - RATE * step
        assert client.version == step
    worker.exchange.settle()
    assert worker.value == 1.0 - RATE * 4
    worker.exchange.settle()
    assert len(worker.arrived) == 4, "there was nothing more to settle"


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlap"])
def test_a_pull_takes_what_is_on_its_way_first(client: distnet.Client, overlap: bool) -> None:
    worker = Watched(client, overlap=overlap)
    worker.exchange.push_pull(_gradients(1.0))
    worker.exchange.pull()
    assert worker.value == 1.0 - RATE
    worker.exchange.finish()
    assert worker.value == 1.0 - RATE
    with pytest.raises(ConfigError, match="finish"):
        worker.exchange.push_pull(_gradients(1.0))


@pytest.mark.parametrize("overlap", [False, True], ids=["plain", "overlap"])
def test_a_refused_gradient_changes_nothing_and_the_next_goes_on(client: distnet.Client, overlap: bool) -> None:
    worker = Watched(client, overlap=overlap)
    worker.exchange.push_pull(_gradients(1.0))
    before = worker.value
    with pytest.raises(NonFiniteGradient):
        worker.exchange.push_pull(_gradients(np.nan))
    assert worker.value == before
    worker.exchange.push_pull(_gradients(1.0))
    worker.exchange.settle()
    assert worker.value == 1.0 - 2 * RATE


def test_a_push_that_was_begun_is_waited_for_although_the_one_before_failed() -> None:
    semantics = distnet.Semantics(joins="all", on_loss="abort")
    with (
        distnet.ParameterServer(_values(), semantics=semantics, optimizer=distnet.SGD(RATE), workers=2) as server,
        distnet.connect(server.address, rank=0) as client,
    ):
        other = distnet.connect(server.address, rank=1)
        worker = Watched(client, overlap=True)
        worker.exchange.push_pull(_gradients(1.0))  # the round waits for the other rank
        with pytest.raises(ZeroDivisionError), other:
            raise ZeroDivisionError  # which dies
        with pytest.raises(RoundAborted):
            worker.exchange.push_pull(_gradients(1.0))
        with pytest.raises(RoundAborted):
            worker.exchange.settle()  # the second push
        worker.exchange.settle()
        assert client.accepted == 2
        assert worker.arrived == []


# ---- metrics ---------------------------------------------------------------------------------------------------------
def test_a_step_is_measured_by_its_client_and_the_clock(client: distnet.Client) -> None:
    begun_s = time.perf_counter()
    worker = Watched(client)
    computed_s = time.perf_counter()
    worker.exchange.push_pull(_gradients(1.0))
    metrics = measured(client, loss=0.25, begun_s=begun_s, computed_s=computed_s)
    assert (metrics.loss, metrics.version, metrics.staleness) == (0.25, 1, 0)
    assert metrics.computing_s == computed_s - begun_s
    assert 0 < metrics.exchanging_s < time.perf_counter() - computed_s


# ---- checks ----------------------------------------------------------------------------------------------------------
def _tensors() -> list[ModelTensor]:
    return [ModelTensor(label=f"weight {i}", shape=shape, dtype="float32") for i, shape in enumerate(SHAPES)]


def test_a_model_that_the_server_holds_passes(parameters: Any) -> None:
    check_holdable(_tensors())
    check_held(_tensors(), parameters)
    gradients = _gradients(1.0)
    assert check_gradients(_tensors(), gradients) == gradients


@pytest.mark.parametrize(
    ("check", "error", "words"),
    [
        (
            lambda: check_holdable([ModelTensor(label="weight w", shape=(2,), dtype="float64")]),
            ConfigError,
            "weight w is float64; a server holds float32 only",
        ),
        (
            lambda: check_holdable([ModelTensor(label="weight w", shape=(0, 2), dtype="float32")]),
            ConfigError,
            r"weight w has shape \(0, 2\); expected no empty dimension",
        ),
        (
            lambda: check_held(_tensors()[:1], _named()),
            ManifestMismatch,
            "the server holds 4 tensors, the model 1 trainable ones",
        ),
        (
            lambda: check_held(_tensors()[::-1], _named()),
            ManifestMismatch,
            r"tensor layer/0 has shape \(3, 5\), the model's weight 3 \(1, 2, 2\)",
        ),
        (lambda: check_gradients(_tensors(), []), ConfigError, "0 gradients for 4 trainable tensors"),
        (
            lambda: check_gradients(_tensors(), [*_gradients(1.0)[:3], None]),
            ConfigError,
            "weight 3 has no gradient: the loss does not depend on it",
        ),
        (
            lambda: check_gradients(_tensors(), [*_gradients(1.0)[:3], np.zeros(4, np.float32)]),
            ConfigError,
            r"the gradient of weight 3 has shape \(4,\); expected \(1, 2, 2\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(check: Callable[[], object], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        check()


class LayersVariable:
    """What Keras 3 says of a variable, on any backend."""

    def __init__(self, path: str) -> None:
        self.path, self.value, self.trainable = path, np.zeros(1, np.float32), True


def test_variables_that_are_frozen_later_are_named() -> None:
    variables = [LayersVariable(f"layer_{index}/kernel") for index in range(5)]
    trainables = FixedTrainables(variables)
    trainables.check()
    for variable in variables[1:]:
        variable.trainable = False
    with pytest.raises(ConfigError, match="layer_1/kernel, layer_2/kernel, layer_3/kernel and others"):
        trainables.check()
    FixedTrainables([np.zeros(1, np.float32)]).check()
