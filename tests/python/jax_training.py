"""The same training of a small model of JAX in one process and by workers over a server, in each way of writing it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import distnet
import distnet.jax

STEPS, WORKERS, BATCH = 6, 2, 16
RATE = 0.01
INPUTS = np.random.default_rng(1).normal(size=(STEPS, BATCH, 10)).astype(np.float32)
TARGETS = np.random.default_rng(2).normal(size=(STEPS, BATCH, 3)).astype(np.float32)

Share = Callable[[Any], tuple[Any, Any]]


def parameters() -> dict[str, Any]:
    """Return the model's parameters: trees within trees, a list and a scalar among them."""
    generator = np.random.default_rng(7)
    tree = {
        "layers": [
            {"kernel": generator.normal(size=(10, 8)) / 3, "bias": np.zeros(8)},
            {"kernel": generator.normal(size=(8, 3)) / 3, "bias": np.zeros(3)},
        ],
        "scale": np.ones(()),
    }
    return dict(jax.tree_util.tree_map(lambda value: jnp.asarray(value, jnp.float32), tree))


def batch(step: Any) -> tuple[Any, Any]:
    """Return the batch of a step, whose number may be known only when the step runs."""
    return jnp.asarray(INPUTS)[step], jnp.asarray(TARGETS)[step]


def share_of(rank: int) -> Share:
    """Return what gives a worker its part of each batch."""
    size = BATCH // WORKERS
    return lambda step: tuple(part[rank * size : (rank + 1) * size] for part in batch(step))


def loss_of(tree: Any, pair: tuple[Any, Any]) -> Any:
    first, second = tree["layers"]
    x, y = (part.astype(first["kernel"].dtype) for part in pair)
    hidden = jnp.tanh(x @ first["kernel"] + first["bias"])
    return jnp.mean((tree["scale"] * (hidden @ second["kernel"] + second["bias"]) - y) ** 2)


def warm_up(count: Any) -> Any:
    """A schedule: of the count of updates."""
    return RATE * jnp.minimum(1.0, (count + 1) / 4)


@functools.cache
def alone(optimizer: Callable[[Any], Any] = optax.adam, rate: Any = RATE) -> Any:
    """Return the parameters after one process has trained with the whole batch, by an optimizer of optax."""
    made = optimizer(rate)

    def update(tree: Any, state: Any, step: Any) -> tuple[Any, Any]:
        updates, state = made.update(jax.grad(loss_of)(tree, batch(step)), state, tree)
        return optax.apply_updates(tree, updates), state

    train = jax.jit(update)
    tree = parameters()
    state = made.init(tree)
    for step in range(STEPS):
        tree, state = train(tree, state, step)
    return tree


# ---- ways of writing it: each takes a client and a share of the data, and returns the parameters at the end ---------
def in_jit(client: Any, share: Share) -> Any:
    push_pull = distnet.jax.push_pull(client)

    def step(tree: Any, number: Any) -> Any:
        return push_pull(jax.grad(loss_of)(tree, share(number)))

    return repeated(jax.jit(step))


def donated(client: Any, share: Share) -> Any:
    push_pull = distnet.jax.push_pull(client)

    def step(tree: Any, number: Any) -> Any:
        return push_pull(jax.grad(loss_of)(tree, share(number)))

    return repeated(jax.jit(step, donate_argnums=0))


def outside_jit(client: Any, share: Share) -> Any:
    push_pull = distnet.jax.push_pull(client)
    gradient = jax.jit(jax.grad(loss_of))
    tree, before = parameters(), []
    for number in range(STEPS):
        tree = push_pull(gradient(tree, share(number)))
        before.append((tree, jax.tree_util.tree_map(np.array, tree)))
    for kept, copied in before:  # a reply is not written to by the next one
        jax.tree_util.tree_map(np.testing.assert_array_equal, kept, copied)
    return tree


def in_scan(client: Any, share: Share) -> Any:
    push_pull = distnet.jax.push_pull(client)

    def train(tree: Any) -> Any:
        def step(tree: Any, number: Any) -> tuple[Any, None]:
            return push_pull(jax.grad(loss_of)(tree, share(number))), None

        return jax.lax.scan(step, tree, jnp.arange(STEPS))[0]

    return jax.jit(train)(parameters())


def in_fori_loop(client: Any, share: Share) -> Any:
    push_pull = distnet.jax.push_pull(client)

    def step(number: Any, tree: Any) -> Any:
        return push_pull(jax.grad(loss_of)(tree, share(number)))

    return jax.lax.fori_loop(0, STEPS, step, parameters())


def accumulating_in_cond(client: Any, share: Share) -> Any:
    """Push the mean of two halves of the share at every second micro-step."""
    push_pull = distnet.jax.push_pull(client)

    def micro_step(tree: Any, sums: Any, number: Any) -> tuple[Any, Any]:
        half = tuple(part.reshape(2, -1, part.shape[-1])[number % 2] for part in share(number // 2))
        sums = jax.tree_util.tree_map(lambda one, other: one + other / 2, sums, jax.grad(loss_of)(tree, half))
        none = jax.tree_util.tree_map(jnp.zeros_like, sums)
        chosen: tuple[Any, Any] = jax.lax.cond(
            number % 2 == 1, lambda tree, sums: (push_pull(sums), none), lambda tree, sums: (tree, sums), tree, sums
        )
        return chosen

    train = jax.jit(micro_step)
    tree = parameters()
    sums = jax.tree_util.tree_map(jnp.zeros_like, tree)
    for number in range(2 * STEPS):
        tree, sums = train(tree, sums, number)
    return tree


def with_a_rate(client: Any, share: Share) -> Any:
    """Send the learning rate with each push, from within the step."""
    push_pull = distnet.jax.push_pull(client)

    def step(tree: Any, number: Any) -> Any:
        return push_pull(jax.grad(loss_of)(tree, share(number)), learning_rate=warm_up(number), weight=2.0)

    return repeated(jax.jit(step))


def by_optimizer(client: Any, share: Share, *, jit: bool = True, rate: Any = None) -> Any:
    optimizer = distnet.jax.DistributedOptimizer(distnet.Adam(RATE), parameters(), client=client, learning_rate=rate)
    return stepped(optimizer, share, jit=jit)


def by_optimizer_outside_jit(client: Any, share: Share) -> Any:
    return by_optimizer(client, share, jit=False)


def by_optimizer_with_a_schedule(client: Any, share: Share) -> Any:
    return by_optimizer(client, share, rate=warm_up)


def by_chain_of_optax(client: Any, share: Share) -> Any:
    """Scale the gradients before, where optax has a transformation for it."""
    last = distnet.jax.DistributedOptimizer(distnet.Adam(RATE), parameters(), client=client)
    return stepped(optax.chain(optax.scale(1.0), last), share, jit=True)


def local(client: Any, share: Share, *, every: int = 1, jit: bool = True) -> Any:
    optimizer = distnet.jax.DistributedOptimizer(
        optax.sgd(RATE), parameters(), client=client, update="local", every=every
    )
    return stepped(optimizer, share, jit=jit, finish=True)


def local_outside_jit(client: Any, share: Share) -> Any:
    return local(client, share, every=4, jit=False)


def local_every_fourth(client: Any, share: Share) -> Any:
    return local(client, share, every=4)


def stepped(optimizer: Any, share: Share, *, jit: bool, finish: bool = False) -> Any:
    """Train as optax's pages do."""

    def step(tree: Any, state: Any, number: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(loss_of)(tree, share(number)), state, tree)
        return optax.apply_updates(tree, updates), state

    tree = parameters()
    state = optimizer.init(tree)
    train = jax.jit(step, donate_argnums=(0, 1)) if jit else step
    for number in range(STEPS):
        tree, state = train(tree, state, number)
    return optimizer.finish(state, tree) if finish else tree


def repeated(step: Callable[[Any, Any], Any]) -> Any:
    """Return the parameters after all steps."""
    tree = parameters()
    for number in range(STEPS):
        tree = step(tree, number)
    return tree


def leaves_of(tree: Any) -> list[Any]:
    """Return the leaves as lists, which JSON can hold."""
    return [np.asarray(leaf, np.float32).tolist() for leaf in jax.tree_util.tree_leaves(tree)]


def assert_same(leaves: Sequence[Any], tree: Any, tolerance: float = 1e-6) -> None:
    """Check that what `leaves_of` returned are the leaves of a tree."""
    expected = leaves_of(tree)
    assert len(leaves) == len(expected)
    for leaf, other in zip(leaves, expected, strict=True):
        np.testing.assert_allclose(np.array(leaf), np.array(other), rtol=tolerance, atol=tolerance)
