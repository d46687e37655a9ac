"""`distnet.jax.DistributedOptimizer`: an optimizer in optax's form, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import distnet
from distnet.errors import ConfigError, ManifestMismatch, NonFiniteGradient

jax = pytest.importorskip("jax")
optax = pytest.importorskip("optax")

import jax.numpy as jnp  # noqa: E402 - what is missing is skipped before

import distnet.jax  # noqa: E402
from distnet.jax import DistributedOptimizer  # noqa: E402
from distnet.jax.trees import Layout  # noqa: E402

TREE = {"kernel": np.zeros((2, 3), np.float32), "bias": np.zeros(3, np.float32)}


@pytest.fixture
def client() -> Iterator[distnet.Client]:
    """A client of a server that has the tree, and steps by the gradient itself."""
    with (
        distnet.ParameterServer(TREE, semantics="sync", workers=1, optimizer=distnet.SGD(1.0)) as server,
        distnet.connect(server.address, rank=0) as made,
    ):
        yield made


def full(value: float, dtype: Any = np.float32) -> Any:
    return jax.tree_util.tree_map(lambda leaf: jnp.full(leaf.shape, value, dtype), TREE)


def value_of(tree: Any) -> float:
    """Return the value that all leaves hold everywhere."""
    (value,) = {float(value) for leaf in jax.tree_util.tree_leaves(tree) for value in np.asarray(leaf, np.float32).flat}
    return value


@pytest.mark.parametrize("jit", [jax.jit, lambda function: function], ids=["jit", "outside jit"])
def test_a_skipped_step_abstains_and_a_schedule_does_not_count_it(client: distnet.Client, jit: Any) -> None:
    optimizer = DistributedOptimizer(
        distnet.SGD(1.0), TREE, client=client, learning_rate=lambda count: jnp.float32(2.0) ** count
    )
    update = jit(lambda *given: optimizer.update(*given[:3], abstain=given[3]))
    tree, state = optimizer.parameters, optimizer.init(optimizer.parameters)
    for skipped, expected in ((False, -1.0), (True, -1.0), (False, -3.0), (False, -7.0)):
        updates, state = update(full(1.0), state, tree, jnp.array(skipped))
        tree = optax.apply_updates(tree, updates)
        assert value_of(tree) == expected
    updates, state = optimizer.update(None, state, tree)
    assert value_of(updates) == 0.0
    assert int(state.count) == 3
    assert (client.applied, client.version) == (5, 3)


@pytest.mark.parametrize("update", ["server", "local"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_halves_end_at_what_the_server_holds_rounded_once(client: distnet.Client, update: Any, dtype: str) -> None:
    given = distnet.SGD(1.0) if update == "server" else optax.sgd(1.0)
    optimizer = DistributedOptimizer(given, full(0.0, dtype), client=client, update=update)
    tree = optimizer.parameters
    state = optimizer.init(tree)
    for _ in range(3):
        updates, state = jax.jit(optimizer.update)(full(0.3, dtype), state, tree)
        tree = optax.apply_updates(tree, updates)
    assert {str(leaf.dtype) for leaf in jax.tree_util.tree_leaves(tree)} == {dtype}
    held: Any = client.pull()
    assert value_of(tree) == float(jnp.asarray(held["bias"][0], dtype))
    assert value_of(optimizer.finish(state, tree)) == value_of(tree)


def test_what_is_left_of_local_updates_goes_along_at_the_end(client: distnet.Client) -> None:
    optimizer = DistributedOptimizer(optax.sgd(1.0), TREE, client=client, update="local", every=3)
    tree, state = optimizer.parameters, optimizer.init(optimizer.parameters)
    for step in range(1, 6):
        updates, state = jax.jit(optimizer.update)(full(1.0), state, tree)
        tree = optax.apply_updates(tree, updates)
        assert value_of(tree) == -step
        assert client.version == step // 3
    with pytest.raises(ConfigError, match=r"finish\(state, parameters\)"):
        optimizer.finish()
    assert value_of(optimizer.finish(state, tree)) == -5.0
    assert client.version == 2


def test_an_optimizer_of_optax_gets_what_it_asks_for(client: distnet.Client) -> None:
    inner = optax.chain(optax.add_decayed_weights(0.5), optax.scale_by_backtracking_linesearch(4), optax.sgd(1.0))
    optimizer = DistributedOptimizer(inner, TREE, client=client, update="local")

    def loss(tree: Any) -> Any:
        return sum(jnp.sum((leaf - 1.0) ** 2) for leaf in jax.tree_util.tree_leaves(tree))

    tree = optimizer.parameters
    state = optimizer.init(tree)
    value, gradients = jax.value_and_grad(loss)(tree)
    updates, _ = optimizer.update(gradients, state, tree, value=value, grad=gradients, value_fn=loss)
    assert jax.tree_util.tree_structure(updates) == jax.tree_util.tree_structure(tree)
    assert client.version == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of Flax itself
def test_a_network_of_flax_steps_whether_its_tree_holds_variables_or_values() -> None:
    nnx = pytest.importorskip("flax.nnx")
    network = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
    parameters = nnx.state(network, nnx.Param)
    initial = Layout.of(parameters).initial(parameters)
    assert sorted(initial) == ["bias", "kernel"]
    with (
        distnet.ParameterServer(initial, semantics="sync", workers=1, optimizer=distnet.SGD(0.1)) as server,
        distnet.connect(server.address, rank=0) as client,
    ):
        transformation = DistributedOptimizer(distnet.SGD(0.1), parameters, client=client)
        optimizer = nnx.Optimizer(network, transformation, wrt=nnx.Param)
        push_pull = distnet.jax.push_pull(client)

        def step(network: Any, optimizer: Any) -> None:
            def loss(network: Any) -> Any:
                return jnp.sum(network(jnp.ones((1, 3))))

            optimizer.update(network, nnx.grad(loss)(network))
            nnx.update(network, push_pull(nnx.grad(loss)(network)))

        nnx.jit(step)(network, optimizer)
        held: Any = client.pull()
        assert client.version == 2
        np.testing.assert_allclose(network.bias[...], held["bias"])
        np.testing.assert_allclose(held["bias"], [-0.2, -0.2], rtol=1e-6)


def test_an_error_in_the_block_of_an_optimizer_is_what_it_is(client: distnet.Client) -> None:
    optimizer = DistributedOptimizer(distnet.SGD(1.0), TREE, client=client)
    update, state = jax.jit(optimizer.update), optimizer.init(optimizer.parameters)
    with pytest.raises(NonFiniteGradient), optimizer:
        jax.block_until_ready(update(full(np.nan), state, optimizer.parameters))


@pytest.mark.parametrize(
    ("optimizer", "how", "said"),
    [
        (optax.adam(0.1), {}, r"nobody can read: give one of DistNet's in its place, such as distnet\.Adam"),
        (0.1, {}, "optimizer is a float; expected one of distnet.OPTIMIZERS"),
        (distnet.Adam(distnet.CosineDecay(0.1, 10)), {}, "learning_rate= a function of the count of updates"),
        (distnet.SGD(1.0), {"update": "local"}, "optimizer is an optimizer of DistNet; with update='local'"),
        (distnet.SGD(1.0), {"every": 2}, "every=2 goes with update='local'"),
        (optax.sgd(1.0), {"update": "local", "every": 0}, "every is 0; expected a whole number of at least 1"),
        (optax.sgd(1.0), {"update": "local", "learning_rate": 0.1}, "learning_rate= goes with update='server'"),
        (distnet.SGD(1.0), {"update": "both"}, "update is 'both'; expected 'server' or 'local'"),
        (distnet.Adam(1.0), {}, "the server has the optimizer sgd.*, and this rank's is adam"),
        (distnet.SGD(1.0), {"semantics": "async-apply"}, "semantics is async-apply here, and the server has sync"),
        (distnet.SGD(1.0), {"servers": 2}, "servers is 2 here, and the server has 1 shards"),
    ],
)
def test_what_makes_no_sense_is_refused(client: distnet.Client, optimizer: Any, how: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DistributedOptimizer(optimizer, TREE, client=client, **how)


def test_parameters_of_another_model_are_refused(client: distnet.Client) -> None:
    with pytest.raises(ManifestMismatch, match="it has no 'bias', which the server holds"):
        DistributedOptimizer(distnet.SGD(1.0), {"kernel": TREE["kernel"]}, client=client)


def test_an_update_needs_the_parameters(client: distnet.Client) -> None:
    optimizer = DistributedOptimizer(distnet.SGD(1.0), TREE, client=client)
    with pytest.raises(ConfigError, match=r"expected update\(gradients, state, parameters\)"):
        optimizer.update(full(1.0), optimizer.init(optimizer.parameters))
