"""A server hands out its optimizer's state, whatever runs its shards."""

from __future__ import annotations

import numpy as np
import pytest

import distnet
from distnet.optimizers import state_names, state_vectors

STATE_VECTORS = [
    (distnet.SGD(0.1), 0),
    (distnet.Momentum(0.1), 1),
    (distnet.Adagrad(0.1), 1),
    (distnet.RMSProp(0.1), 1),
    (distnet.Adam(0.1), 2),
    (distnet.AdamW(0.1), 2),
    (distnet.NAdam(0.1), 2),
    (distnet.Lion(0.1), 1),
    (distnet.OuterNesterov(0.1), 1),
    (distnet.RMSProp(0.1, momentum=0.9), 2),
    (distnet.RMSProp(0.1, centered=True), 2),
    (distnet.RMSProp(0.1, momentum=0.9, centered=True), 3),
    (distnet.Adam(0.1, amsgrad=True), 3),
]


@pytest.mark.parametrize(
    ("optimizer", "vectors"), STATE_VECTORS, ids=lambda value: getattr(type(value), "__name__", "")
)
def test_every_optimizer_gives_as_many_vectors_as_its_formula_has(optimizer: distnet.Optimizer, vectors: int) -> None:
    with distnet.ParameterServer([np.zeros((2, 3), np.float32)], optimizer=optimizer) as server:
        state = server.optimizer_state()
    assert vectors == state_vectors(optimizer) == len(state_names(optimizer.to_spec(), vectors))
    assert [[array.shape for array in vector] for vector in state] == [[(2, 3)]] * vectors


@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
@pytest.mark.parametrize("servers", [1, 2])
def test_the_momentum_of_every_tensor_comes_back_by_name(servers: int, processes: bool) -> None:
    parameters = {"w": np.zeros((70, 40), np.float32), "b": np.zeros(3, np.float32), "none": np.zeros(0, np.float32)}
    gradients = {"w": np.arange(2800, dtype=np.float32).reshape(70, 40), "b": np.ones(3, np.float32)}
    gradients["none"] = np.zeros(0, np.float32)
    with distnet.ParameterServer(
        parameters, semantics="async-apply", optimizer=distnet.Momentum(0.1, 0.5), servers=servers, processes=processes
    ) as server:
        with distnet.connect(server.address, rank=0) as client:
            for _ in range(2):
                client.push_pull(gradients)
        (buffer,) = server.optimizer_state()
    assert isinstance(buffer, dict)
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(buffer[name], gradient * np.float32(1.5))
