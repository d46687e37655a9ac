"""What an update of a DistributedOptimizer does: at the server, or on its worker with an exchange now and then."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from distnet.errors import ConfigError
from distnet.jax.exchange import PushPull

__all__ = ["LocalSteps", "LocalState", "ServerState", "ServerSteps"]


class ServerState(NamedTuple):
    """What a worker keeps between two updates that a server makes.

    Attributes:
        count: of the updates so far, without those that abstained; a scalar of int32.
    """

    count: Any


class LocalState(NamedTuple):
    """What a worker keeps between two of its own updates.

    Attributes:
        inner: the state of its optimizer.
        base: the parameters after the last exchange.
        since: how many updates were made since; a scalar of int32.
    """

    inner: Any
    base: Any
    since: Any


class ServerSteps:
    """Updates that a server makes: gradients out with their learning rate, parameters in.

    Thread safety: none.

    Args:
        learning_rate: a number, or a function of the count.
    """

    def __init__(self, push_pull: PushPull, learning_rate: float | Callable[[Any], Any]) -> None:
        self._push_pull, self._learning_rate = push_pull, learning_rate

    def init(self, parameters: Any) -> ServerState:
        """Return the state before the first update; it does not depend on the parameters."""
        del parameters
        return ServerState(count=jnp.zeros((), jnp.int32))

    def update(
        self, gradients: Any, state: ServerState, parameters: Any = None, *, abstain: Any = False, **_: Any
    ) -> tuple[Any, ServerState]:
        """Push the gradients; return what takes the parameters to the server's, and the next state."""
        _check_parameters(parameters)
        rate = self._learning_rate(state.count) if callable(self._learning_rate) else self._learning_rate
        fresh = self._push_pull(gradients, learning_rate=rate, abstain=abstain, like=_wide(parameters))
        counts = 0 if gradients is None else 1 - jnp.asarray(abstain, jnp.int32)
        return _difference(fresh, parameters), ServerState(count=state.count + counts)

    def settle(self, state: Any, parameters: Any) -> None:
        """Have nothing left: each update exchanges."""


class LocalSteps:
    """Updates that a worker makes by itself; every so many, its change is added at the server.

    Thread safety: none.

    Args:
        inner: the worker's optimizer, with ``init`` and ``update`` as optax's have them.
        every: how many updates lie between two exchanges.
    """

    def __init__(self, push_pull: PushPull, inner: Any, *, every: int) -> None:
        self._push_pull, self._inner, self._every = push_pull, inner, every
        self._takes_more = _takes_more(inner.update)

    def init(self, parameters: Any) -> LocalState:
        """Return the state before the first update."""
        # A copy: a step may be given the parameters' own memory to write to, and the state's, but not one memory twice.
        base = jax.tree_util.tree_map(lambda value: jnp.array(value, dtype=_wide_dtype(value), copy=True), parameters)
        return LocalState(inner=self._inner.init(parameters), base=base, since=jnp.zeros((), jnp.int32))

    def update(self, gradients: Any, state: LocalState, parameters: Any = None, **more: Any) -> tuple[Any, LocalState]:
        """Update as the worker's optimizer does, and exchange when it is time."""
        _check_parameters(parameters)
        updates, inner = self._inner.update(gradients, state.inner, parameters, **(more if self._takes_more else {}))
        moved = jax.tree_util.tree_map(lambda value, step: value + step, parameters, updates)

        def exchange(moved: Any, base: Any, updates: Any) -> tuple[Any, Any]:
            del updates
            fresh = self._add(moved, base)
            return _difference(fresh, parameters), fresh

        def stay(moved: Any, base: Any, updates: Any) -> tuple[Any, Any]:
            del moved
            return jax.tree_util.tree_map(_like_difference, updates, parameters), base

        since = jnp.asarray(state.since) + 1
        is_time = since >= self._every
        if self._every == 1:
            updates, base = exchange(moved, state.base, updates)
        elif isinstance(is_time, jax.core.Tracer):
            updates, base = jax.lax.cond(is_time, exchange, stay, moved, state.base, updates)
        else:
            updates, base = (exchange if is_time else stay)(moved, state.base, updates)
        return updates, LocalState(inner=inner, base=base, since=jnp.where(is_time, 0, since))

    def settle(self, state: LocalState | None, parameters: Any) -> None:
        """Add what was changed since the last exchange."""
        if state is None or parameters is None:
            raise ConfigError(
                "finish() needs the state and the parameters of the last update with update='local': "
                "finish(state, parameters)"
            )
        if int(state.since):
            self._add(parameters, state.base)

    def _add(self, moved: Any, base: Any) -> Any:
        changes = jax.tree_util.tree_map(lambda value, held: value.astype(held.dtype) - held, moved, base)
        return self._push_pull.add_pull(changes, like=base)


def _check_parameters(parameters: Any) -> None:
    if parameters is None:
        raise ConfigError("update() got no parameters; expected update(gradients, state, parameters)")


def _takes_more(update: Callable[..., Any]) -> bool:
    """Return whether an update takes more arguments than optax's plain ones do."""
    kinds = (parameter.kind for parameter in inspect.signature(update).parameters.values())
    return inspect.Parameter.VAR_KEYWORD in kinds


def _wide_dtype(value: Any) -> Any:
    """Return the dtype in which parameters are told apart: float32 at least."""
    return jnp.promote_types(jnp.asarray(value).dtype, jnp.float32)


def _wide(tree: Any) -> Any:
    return jax.tree_util.tree_map(lambda value: jax.ShapeDtypeStruct(jnp.shape(value), _wide_dtype(value)), tree)


def _difference(fresh: Any, parameters: Any) -> Any:
    """Return what added to the parameters gives the fresh ones."""
    return jax.tree_util.tree_map(lambda new, old: new - old.astype(new.dtype), fresh, parameters)


def _like_difference(update: Any, parameter: Any) -> Any:
    return jnp.asarray(update, _wide_dtype(parameter))
