"""Changes of the parameters in place of gradients: added as they are, or stepped by the outer optimizer."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

import distnet

SIZE = 40_000  # more than two chunks of the lock-free store
STORES = [distnet.MutexStore, distnet.LockFreeStore]
over_stores = pytest.mark.parametrize("store_type", STORES)


def read(store: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    out = np.empty(store.size, np.float32)
    store.read(out)
    return out


@over_stores
@pytest.mark.parametrize(
    "optimizer",
    [distnet.SGD(0.5, clip_value=0.01), distnet.Adam(0.5, weight_decay=0.5), distnet.Momentum(0.5), distnet.Lion(0.5)],
    ids=lambda optimizer: optimizer.name,
)
def test_a_change_is_added_without_optimizer_clipping_or_decay(store_type: Any, optimizer: distnet.Optimizer) -> None:
    random = np.random.default_rng(0)
    parameters, change = random.standard_normal((2, SIZE)).astype(np.float32)
    store = store_type(parameters, optimizer)
    store.add(change)
    np.testing.assert_array_equal(read(store), parameters + change)
    assert store.version == 1


@over_stores
def test_a_change_leaves_the_optimizers_state_and_counts_as_an_update(store_type: Any) -> None:
    gradient = np.ones(SIZE, np.float32)
    rate = distnet.PiecewiseConstant([2], [1.0, 0.25])
    store = store_type(np.zeros(SIZE, np.float32), distnet.Momentum(rate, momentum=0.5))
    store.apply(gradient)  # velocity 1, parameters -1
    store.add(np.full(SIZE, 10, np.float32))
    store.apply(gradient)  # update 2: velocity 1.5, and the schedule's next rate
    np.testing.assert_array_equal(read(store), np.full(SIZE, 9 - 0.25 * 1.5, np.float32))


@over_stores
def test_a_change_with_nan_is_refused(store_type: Any) -> None:
    store = store_type(np.zeros(SIZE, np.float32), distnet.Adam())
    with pytest.raises(distnet.NonFiniteGradient):
        store.add(np.full(SIZE, np.nan, np.float32))
    assert (read(store) == 0).all()
    assert store.version == 0


@over_stores
def test_no_change_of_many_threads_is_lost_or_taken_for_a_gradient(store_type: Any) -> None:
    store = store_type(np.zeros(SIZE, np.float32), distnet.SGD(1.0))

    def work() -> None:
        one = np.ones(SIZE, np.float32)
        for _ in range(50):
            store.add(one)
            store.apply(one)
            store.add(one)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(read(store), np.full(SIZE, 200, np.float32))
    assert store.version == 600


@over_stores
def test_the_outer_step_is_nesterovs_over_changes(store_type: Any) -> None:
    torch = pytest.importorskip("torch")
    changes = np.random.default_rng(0).standard_normal((20, SIZE)).astype(np.float32)
    parameter = torch.nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    outer = torch.optim.SGD([parameter], lr=0.7, momentum=0.9, nesterov=True)
    store = store_type(np.zeros(SIZE, np.float32), distnet.OuterNesterov())
    for change in changes:
        parameter.grad = -torch.from_numpy(change.astype(np.float64))
        outer.step()
        store.add(change)
    np.testing.assert_allclose(read(store), parameter.detach().numpy(), rtol=1e-4, atol=1e-4)


def test_groups_step_their_tensors_with_settings_of_their_own() -> None:
    model = {"w": np.zeros(70_000, np.float32), "bias": np.zeros(5, np.float32)}
    gradients = {name: np.ones(array.shape, np.float32) for name, array in model.items()}
    groups = {"bias": distnet.Group(0.5, settings={"momentum": 0.5})}
    with (
        distnet.ParameterServer(
            model, semantics="async-apply", optimizer=distnet.Momentum(1.0, 0.25), groups=groups
        ) as server,
        distnet.connect(server.address, rank=0) as client,
    ):
        client.push_pull(gradients)
        after = client.push_pull(gradients)
    assert isinstance(after, dict)
    np.testing.assert_array_equal(after["w"], np.full(70_000, -1 - 1.25, np.float32))
    np.testing.assert_array_equal(after["bias"], np.full(5, -0.5 * (1 + 1.5), np.float32))
