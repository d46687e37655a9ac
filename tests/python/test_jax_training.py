"""`distnet.jax` in training: two workers in `sync` train as one process does with the whole batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("jax")
optax = pytest.importorskip("optax")

import jax  # noqa: E402 - what is missing is skipped before
from jax_training import (  # noqa: E402
    RATE,
    STEPS,
    WORKERS,
    alone,
    assert_same,
    batch,
    loss_of,
    parameters,
    share_of,
    warm_up,
)
from worker_processes import Worker, started  # noqa: E402

import distnet  # noqa: E402
from distnet.jax import callbacks  # noqa: E402
from distnet.jax.trees import Layout  # noqa: E402

RANK = Path(__file__).parent / "workers" / "jax_rank.py"
WITHIN_S = 100.0
WAYS_OF_JAX = [
    pytest.param(
        "buffer_callback",
        marks=pytest.mark.skipif(callbacks.buffer_callback is None, reason="this JAX has no buffer_callback"),
    ),
    "io_callback",
]


@pytest.fixture(scope="module")
def pool() -> Iterator[list[Worker]]:
    """Two workers that the tests use one after another: starting JAX takes longer than most of them."""
    workers = started(WORKERS, RANK)
    yield workers
    for worker in workers:
        worker.end()


def by_workers(pool: list[Worker], way: str, *, by: str = "io_callback", **how: Any) -> tuple[list[Any], Any]:
    """Train in two processes; return the leaves of each rank's parameters, and what the server has counted."""
    tree = parameters()
    initial = Layout.of(tree).initial(tree)
    server: Any
    with distnet.ParameterServer(
        initial, **{"semantics": "sync", "workers": WORKERS, "optimizer": distnet.Adam(RATE), **how}
    ) as server:
        for rank, worker in enumerate(pool):
            worker.begin("train", way=way, address=server.address, rank=rank, by=by)
        try:
            leaves = [worker.result(WITHIN_S) for worker in pool]
        finally:
            for index, worker in enumerate(pool):
                if worker.busy:
                    worker.end()
                    (pool[index],) = started(1, RANK)
        return leaves, server.stats()


@pytest.mark.parametrize("by", WAYS_OF_JAX)
@pytest.mark.parametrize(
    "way",
    [
        *("in_jit", "donated", "outside_jit", "in_scan", "in_fori_loop", "accumulating_in_cond"),
        *("by_optimizer", "by_optimizer_outside_jit", "by_chain_of_optax"),
    ],
)
def test_two_workers_in_sync_equal_one_process_with_the_whole_batch(pool: list[Worker], way: str, by: str) -> None:
    leaves, stats = by_workers(pool, way, by=by)
    assert stats["updates"] == STEPS
    for rank in range(WORKERS):
        assert_same(leaves[rank], alone())


@pytest.mark.parametrize("by", WAYS_OF_JAX)
@pytest.mark.parametrize("way", ["with_a_rate", "by_optimizer_with_a_schedule"])
def test_a_rate_that_the_step_computes_goes_with_the_push(pool: list[Worker], way: str, by: str) -> None:
    leaves, _ = by_workers(pool, way, by=by)
    for rank in range(WORKERS):
        assert_same(leaves[rank], alone(optax.adam, warm_up))


@pytest.mark.parametrize("by", WAYS_OF_JAX)
def test_local_updates_that_are_exchanged_each_time_equal_one_process(pool: list[Worker], by: str) -> None:
    leaves, stats = by_workers(pool, "local", by=by)
    assert stats["updates"] == STEPS
    for rank in range(WORKERS):
        assert_same(leaves[rank], alone(optax.sgd))


@pytest.mark.parametrize("by", WAYS_OF_JAX)
@pytest.mark.parametrize("way", ["local_every_fourth", "local_outside_jit"])
def test_local_updates_average_what_each_worker_has_changed(pool: list[Worker], way: str, by: str) -> None:
    leaves, stats = by_workers(pool, way, by=by)
    assert stats["updates"] == 2, "one after four updates, one for the last two, at the end"
    for rank in range(WORKERS):
        assert_same(leaves[rank], averaged_after([4, STEPS]))


def averaged_after(ends: list[int]) -> Any:
    """Imitate in one process: each worker steps by itself to each of these steps, where the results are averaged."""
    tree, begin = parameters(), 0
    gradients_of = jax.jit(jax.grad(loss_of))
    for end in ends:
        moved = []
        for rank in range(WORKERS):
            own = tree
            for step in range(begin, end):
                gradients = gradients_of(own, share_of(rank)(step))
                own = jax.tree_util.tree_map(lambda value, gradient: value - RATE * gradient, own, gradients)
            moved.append(own)
        tree = jax.tree_util.tree_map(lambda *values: sum(values) / WORKERS, *moved)
        begin = end
    return tree


@pytest.mark.parametrize("semantics", ["async-apply", "async-sharded"])
def test_asynchronous_workers_learn(pool: list[Worker], semantics: str) -> None:
    leaves, stats = by_workers(pool, "in_jit", semantics=semantics, optimizer=distnet.SGD(0.02))
    assert stats["updates"] == WORKERS * STEPS
    structure = jax.tree_util.tree_structure(parameters())
    before = float(loss_of(parameters(), batch(0)))
    for rank in range(WORKERS):
        assert (
            float(loss_of(jax.tree_util.tree_unflatten(structure, map(jax.numpy.asarray, leaves[rank])), batch(0)))
            < before
        )
