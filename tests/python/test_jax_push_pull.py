"""`distnet.jax.push_pull`: trees, names, dtypes, settings, and wrong use, inside and outside `jit`."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

import distnet
from distnet.errors import ConfigError, ManifestMismatch, NonFiniteGradient

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402 - what is missing is skipped before

import distnet.jax  # noqa: E402
from distnet.jax import callbacks  # noqa: E402
from distnet.jax.versions import check_version  # noqa: E402

Push = Callable[..., Any]

TREE = {"layers": [{"kernel": np.ones((2, 3), np.float32)}, {"kernel": np.ones(3, np.float32)}], "scale": np.float32(2)}
NAMES = ["layers/0/kernel", "layers/1/kernel", "scale"]
inside_and_outside = pytest.mark.parametrize("jit", [jax.jit, lambda function: function], ids=["jit", "outside jit"])


def initial(tree: Any = TREE) -> dict[str, Any]:
    return {
        name: np.asarray(leaf, np.float32) for name, leaf in zip(NAMES, jax.tree_util.tree_leaves(tree), strict=True)
    }


def like(tree: Any, value: float, dtype: Any = np.float32) -> Any:
    return jax.tree_util.tree_map(lambda leaf: jnp.full(np.shape(leaf), value, dtype), tree)


def all_of(tree: Any) -> set[float]:
    """Return the values that the leaves hold."""
    return {float(value) for leaf in jax.tree_util.tree_leaves(tree) for value in np.asarray(leaf, np.float32).flat}


@contextlib.contextmanager
def serving(tensors: Any, **how: Any) -> Iterator[distnet.Client]:
    """Have a client of a server that steps by the gradient itself."""
    with (
        distnet.ParameterServer(tensors, semantics="sync", workers=1, optimizer=distnet.SGD(1.0), **how) as server,
        distnet.connect(server.address, rank=0) as made,
    ):
        yield made


@pytest.fixture
def client() -> Iterator[distnet.Client]:
    """A client of a server whose tensors are all 0."""
    with serving(initial(like(TREE, 0.0))) as made:
        yield made


# ---- trees ---------------------------------------------------------------------------------------------------------
@inside_and_outside
def test_leaves_are_named_by_the_way_to_them(client: distnet.Client, jit: Any) -> None:
    gradients = {"layers": [{"kernel": jnp.full((2, 3), 1.0)}, {"kernel": jnp.full(3, 2.0)}], "scale": jnp.float32(3)}
    fresh = jit(distnet.jax.push_pull(client))(gradients)
    assert jax.tree_util.tree_structure(fresh) == jax.tree_util.tree_structure(gradients)
    held: Any = client.pull()
    assert {name: float(np.ravel(held[name])[0]) for name in NAMES} == dict(zip(NAMES, [-1.0, -2.0, -3.0], strict=True))
    assert [float(jnp.ravel(leaf)[0]) for leaf in jax.tree_util.tree_leaves(fresh)] == [-1.0, -2.0, -3.0]


def test_names_count_and_not_the_order_in_which_the_server_has_them() -> None:
    reversed_order = dict(reversed(initial(like(TREE, 0.0)).items()))
    with serving(reversed_order) as client:
        fresh = jax.jit(distnet.jax.push_pull(client))({**like(TREE, 1.0), "scale": jnp.float32(3)})
        assert float(fresh["scale"]) == -3.0


@inside_and_outside
def test_the_order_counts_where_the_server_has_a_list(jit: Any) -> None:
    with serving([np.zeros(2, np.float32), np.zeros(3, np.float32)]) as client:
        first, second = jit(distnet.jax.push_pull(client))((jnp.ones(2), jnp.full(3, 2.0)))
        assert (first.tolist(), second.tolist()) == ([-1.0, -1.0], [-2.0, -2.0, -2.0])


def test_a_tree_may_be_one_array() -> None:
    with serving({"value": np.zeros(2, np.float32)}) as client:
        assert distnet.jax.push_pull(client)(jnp.ones(2)).tolist() == [-1.0, -1.0]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@inside_and_outside
def test_other_floats_are_float32_at_the_server_alone(client: distnet.Client, jit: Any, dtype: str) -> None:
    with jax.enable_x64(dtype == "float64") if hasattr(jax, "enable_x64") else jax.experimental.enable_x64():
        gradients = like(TREE, 0.1, dtype)
        fresh = jit(distnet.jax.push_pull(client))(gradients)
        assert {str(leaf.dtype) for leaf in jax.tree_util.tree_leaves(fresh)} == {dtype}
        expected = -np.float32(jnp.asarray(0.1, dtype))
        held: Any = client.pull()
        assert set(np.ravel(held["layers/0/kernel"])) == {expected}
        assert all_of(fresh) == {float(np.float32(jnp.asarray(expected, dtype)))}


def test_what_is_returned_looks_like_the_parameters_where_these_were_told(client: distnet.Client) -> None:
    push_pull = distnet.jax.push_pull(client, like(TREE, 0.0, "bfloat16"))
    for fresh in (jax.jit(push_pull)(like(TREE, 1.0)), push_pull.pull(), push_pull(None), push_pull.finish()):
        assert {str(leaf.dtype) for leaf in jax.tree_util.tree_leaves(fresh)} == {"bfloat16"}
        assert all_of(fresh) == {-1.0}


@pytest.mark.parametrize(
    ("gradients", "error", "said"),
    [
        ({**TREE, "count": np.zeros((), np.int32)}, ConfigError, "leaf 'count' is int32; expected float32"),
        ({**TREE, "key": "text"}, ConfigError, "leaf 'key' is 'text', a str; expected an array of floats"),
        ({"layers": TREE["layers"]}, ManifestMismatch, "no 'scale', which the server holds"),
        ({**TREE, "more": np.ones(1, np.float32)}, ManifestMismatch, "it has 'more', which it does not hold"),
        ({**TREE, "scale": np.ones(2, np.float32)}, ManifestMismatch, r"leaf 'scale' has shape \(2,\), and the server"),
        ({}, ConfigError, "the tree has no leaf"),
        ({"a": {"b": np.float32(1)}, "a/b": np.float32(1)}, ConfigError, "2 leaves of the tree have the name 'a/b'"),
        ({**TREE, "scale": np.ones((0, 2), np.float32)}, ConfigError, "expected no empty dimension"),
    ],
)
@inside_and_outside
def test_another_tree_than_the_server_s_is_told_by_name(
    client: distnet.Client, jit: Any, gradients: Mapping[str, Any], error: type[Exception], said: str
) -> None:
    push_pull = distnet.jax.push_pull(client)
    with pytest.raises(error, match=said):
        jit(lambda: push_pull(gradients))()
    assert client.accepted == 0, "nothing was sent"


# ---- settings and abstentions --------------------------------------------------------------------------------------
@inside_and_outside
def test_an_abstention_pushes_nothing(client: distnet.Client, jit: Any) -> None:
    push_pull = distnet.jax.push_pull(client, TREE)
    step = jit(lambda tree, skipped: push_pull(tree, abstain=skipped))
    assert all_of(step(like(TREE, 1.0), jnp.array(False))) == {-1.0}
    assert all_of(step(like(TREE, 1.0), jnp.array(True))) == {-1.0}
    assert all_of(jit(lambda: push_pull(None))()) == {-1.0}
    assert (client.applied, client.version) == (3, 1)


def test_none_needs_to_know_what_the_parameters_look_like(client: distnet.Client) -> None:
    with pytest.raises(ConfigError, match="not known yet what the parameters look like"):
        distnet.jax.push_pull(client)(None)


@inside_and_outside
def test_rates_of_groups_and_weights_go_with_the_push(jit: Any) -> None:
    groups = {"layers/*": distnet.Group(), "scale": distnet.Group()}
    with serving(initial(like(TREE, 0.0)), groups=groups) as client:
        push_pull = distnet.jax.push_pull(client)

        def step(tree: Any, rate: Any, weight: Any) -> Any:
            return push_pull(tree, learning_rate={"layers/*": rate, "scale": 3.0}, weight=weight)

        fresh = jit(step)(like(TREE, 1.0), jnp.float32(0.5), jnp.float32(2.0))
        assert float(fresh["scale"]) == -3.0
        assert all_of(fresh["layers"]) == {-0.5}


def test_a_push_is_neither_left_out_nor_repeated(client: distnet.Client) -> None:
    push_pull = distnet.jax.push_pull(client)

    def step(tree: Any) -> Any:
        push_pull(tree)  # nobody looks at what it returns
        return tree["scale"]

    train = jax.jit(step)
    for _ in range(3):
        train(like(TREE, 1.0))
    push_pull.settle()
    assert client.applied == 3
    assert all_of(push_pull.pull()) == {-3.0}


# ---- errors --------------------------------------------------------------------------------------------------------
def test_an_error_within_jit_is_raised_as_what_it_is(client: distnet.Client) -> None:
    push_pull = distnet.jax.push_pull(client)
    step = jax.jit(push_pull)
    with pytest.raises(NonFiniteGradient), push_pull:
        jax.block_until_ready(step(like(TREE, np.nan)))
    with pytest.raises(NonFiniteGradient), push_pull.told_as_they_are():
        jax.block_until_ready(step(like(TREE, np.nan)))
    assert all_of(step(like(TREE, 1.0))) == {-1.0}, "the client goes on"


def test_an_error_within_jit_is_told_by_the_next_call_outside(client: distnet.Client) -> None:
    push_pull = distnet.jax.push_pull(client)
    with pytest.raises(jax.errors.JaxRuntimeError, match="NonFiniteGradient"):
        jax.block_until_ready(jax.jit(push_pull)(like(TREE, np.nan)))
    with pytest.raises(NonFiniteGradient):
        push_pull.finish()
    assert all_of(push_pull.finish()) == {0.0}, "it is told once"


def test_a_stop_flag_ends_the_wait_within_a_step() -> None:
    class Looked(threading.Event):
        """A flag that is set once a wait has looked at it so often."""

        looks = 0

        def is_set(self) -> bool:
            self.looks += 1
            return self.looks > 3

    with (
        pytest.raises(distnet.Interrupted),
        distnet.ParameterServer([np.zeros(2, np.float32)], semantics="sync", workers=2) as server,
        distnet.connect(server.address, rank=1, stop=Looked()) as client,
        distnet.jax.push_pull(client) as push_pull,
    ):
        jax.block_until_ready(jax.jit(push_pull)([jnp.ones(2)]))  # rank 0 never comes


def test_an_error_outside_jit_is_what_it_is(client: distnet.Client) -> None:
    with pytest.raises(NonFiniteGradient):
        distnet.jax.push_pull(client)(like(TREE, np.inf))


def test_another_error_in_the_block_stays_itself(client: distnet.Client) -> None:
    with pytest.raises(RuntimeError, match="mine"), distnet.jax.push_pull(client):
        raise RuntimeError("mine")


def loss_with_push(push: Push) -> Callable[[Any], Any]:
    return lambda tree: sum(jnp.sum(leaf) for leaf in jax.tree_util.tree_leaves(push(tree)))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda push: jax.vmap(push), r"under jax\.vmap; expected one exchange a step"),
        (lambda push: jax.vmap(jax.jit(push)), r"under jax\.vmap"),
        (lambda push: jax.jit(jax.vmap(push)), r"under jax\.vmap"),
        (lambda push: jax.grad(loss_with_push(push)), "is in a function that is differentiated"),
        (lambda push: jax.grad(jax.jit(loss_with_push(push))), "is in a function that is differentiated"),
        (lambda push: jax.grad(jax.checkpoint(loss_with_push(push))), "is in a function that is differentiated"),
    ],
    ids=["vmap", "vmap of jit", "jit of vmap", "grad", "grad of jit", "checkpoint"],
)
def test_what_cannot_hold_an_exchange_says_what_can(client: distnet.Client, call: Any, said: str) -> None:
    push_pull = distnet.jax.push_pull(client)
    tree = like(TREE, 1.0)
    if "vmap" in said:
        tree = jax.tree_util.tree_map(lambda leaf: jnp.stack([leaf, leaf]), tree)
    with pytest.raises(ConfigError, match=said) as caught:
        call(push_pull)(tree)
    assert "jit, scan, fori_loop, while_loop and cond may have it within" in str(caught.value)
    assert client.accepted == 0, "nothing was sent"


def test_parameters_of_a_trace_cannot_join() -> None:
    with pytest.raises(ConfigError, match="do this outside jit"):
        jax.jit(distnet.jax.join)(TREE)


SEVERAL_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
import distnet, distnet.jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

mesh = Mesh(np.array(jax.devices()), ("data",))
optimizer = distnet.SGD(1.0)
with distnet.ParameterServer([np.zeros(4, np.float32)], semantics="sync", workers=1, optimizer=optimizer) as server:
    with distnet.connect(server.address, rank=0) as client:
        push_pull = distnet.jax.push_pull(client)
        sharded = jax.device_put(jnp.ones(4), NamedSharding(mesh, PartitionSpec("data")))
        try:
            jax.jit(push_pull)([sharded])
        except distnet.ConfigError as error:
            print(error)
        (fresh,) = push_pull([sharded])
        print(len(fresh.sharding.device_set), fresh.tolist())
"""


def test_a_step_over_several_devices_is_refused_and_its_results_are_taken() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SEVERAL_DEVICES],
        env={**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    assert "is in a step over 2 devices" in first
    assert last == "2 [-1.0, -1.0, -1.0, -1.0]"


# ---- which way, and which JAX --------------------------------------------------------------------------------------
@pytest.fixture
def unsaid() -> Iterator[None]:
    """The way is chosen, and said, anew; also after the test."""
    for cached in (callbacks._say, callbacks.chosen_way):
        cached.cache_clear()
    yield
    for cached in (callbacks._say, callbacks.chosen_way):
        cached.cache_clear()


@pytest.mark.usefixtures("unsaid")
def test_which_way_was_taken_and_why_is_said_once(client: distnet.Client, capsys: pytest.CaptureFixture[str]) -> None:
    push_pull = distnet.jax.push_pull(client)
    push_pull(like(TREE, 1.0))
    assert capsys.readouterr().err == "", "outside jit there is no way to be told of"
    for _ in range(2):
        jax.block_until_ready(jax.jit(lambda tree: push_pull(tree))(like(TREE, 1.0)))
    way = callbacks.chosen_way()
    assert capsys.readouterr().err == f"distnet: steps of JAX call DistNet by {way.name}, because {way.why}\n"


@pytest.mark.usefixtures("unsaid")
def test_a_jax_without_buffer_callback_calls_by_io_callback(
    client: distnet.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "buffer_callback", None)
    way = callbacks.chosen_way()
    assert way.name == "io_callback"
    assert "has no buffer_callback" in way.why
    assert all_of(jax.jit(distnet.jax.push_pull(client))(like(TREE, 1.0))) == {-1.0}


def test_a_jax_that_is_too_old_is_refused() -> None:
    check_version("0.4.38")
    check_version("0.10.2.dev3")
    with pytest.raises(ConfigError, match=r"this is JAX 0\.4\.37; distnet\.jax needs 0\.4\.38 or later"):
        check_version("0.4.37")
