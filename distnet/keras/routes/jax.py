"""JAX: a callback of the compiled step calls the host, on XLA's own memory where JAX has that."""

from __future__ import annotations

import atexit
import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.sparse import JAXSparse
from numpy.typing import NDArray

from distnet._private.arrays import Array, Arrays
from distnet.frameworks.replica import Replica
from distnet.jax.callbacks import Result, call_on_host, chosen_way
from distnet.jax.failures import Failures
from distnet.keras.steps import Steps
from distnet.keras.variables import Variables

__all__ = ["JaxRoute", "LendingReplica", "is_tracing", "make_replica", "make_route"]

_LOOK_EVERY_S = 0.001
_AT_EXIT_S = 5.0


class LendingReplica(Replica):
    """Memory of its own for replies, and that of a running step in its place while one is lent.

    Args:
        initial: values to begin with, as ``Client.pull()`` returns them; they are copied.
    """

    def __init__(self, initial: Arrays) -> None:
        super().__init__(initial)
        self._own = self.tensors

    @contextlib.contextmanager
    def lent(self, tensors: Sequence[Array]) -> Iterator[None]:
        """Have replies in these arrays within the block."""
        self._use(list(tensors))
        try:
            yield
        finally:
            self._use(self._own)  # the step's memory is not there any more

    def _use(self, tensors: list[Array]) -> None:
        self.tensors = tensors
        self.arrays = self.structured(tensors)


def is_tracing() -> bool:
    """Return whether a function is traced here."""
    return isinstance(jnp.zeros(()), jax.core.Tracer)  # within a function that is traced, any operation is


def make_replica(client: Any) -> LendingReplica:
    """Return memory that steps put theirs in the place of."""
    return LendingReplica(client.pull())


def make_route(variables: Variables, replica: Replica, steps: Steps) -> JaxRoute:
    """Return the way of this backend."""
    assert isinstance(replica, LendingReplica)
    _wait_at_exit()
    return JaxRoute(variables, replica, steps)


class JaxRoute:
    """Calls the host by a callback, whose results become the step's variables.

    Thread safety: none.
    """

    def __init__(self, variables: Variables, replica: LendingReplica, steps: Steps) -> None:
        way = chosen_way()
        self.said = f"within JAX's compiled step ({way.name}), because {way.why}"
        self._steps, self._replica = steps, replica
        self._variables = list(variables)
        self._results = [Result(tuple(variable.shape)) for variable in self._variables]
        self._failures = Failures()  # the steps keep theirs, too, and that is raised

    def exchange(self, tensors: Sequence[Any | None], learning_rate: Any, *, when: Any | None = None) -> None:
        """Exchange here in the step; as :class:`~distnet.keras.routes.Route` says."""
        present = [place for place, tensor in enumerate(tensors) if tensor is not None]
        count = len(tensors)

        def on_host(arrays: Sequence[NDArray[Any]]) -> None:
            placed: list[Array | None] = [None] * count
            for place, array in zip(present, arrays, strict=False):
                placed[place] = array
            self._steps.exchange(placed, float(arrays[-1]))

        given = [_float32(tensor) for tensor in tensors if tensor is not None]
        operands = [*given, jnp.asarray(learning_rate, jnp.float32)]
        if when is None:
            self._assign(self._called(on_host, operands))
            return
        kept = [variable.value for variable in self._variables]
        fresh = jax.lax.cond(when, lambda given, kept: self._called(on_host, given), _kept, operands, kept)
        self._assign(fresh)

    def abstain(self) -> None:
        """Abstain here in the step."""

        def on_host(arrays: Sequence[NDArray[Any]]) -> None:
            self._steps.abstain()

        self._assign(self._called(on_host, [np.zeros(1, np.float32)]))

    def after_exchange(self, name: str, work: Callable[[], None]) -> None:
        """Do it here in the step: what comes after the callback needs its results."""
        work()

    def settle(self) -> None:
        """Wait for what JAX is still to compute, which the parameters of every step that was begun are among."""
        _wait_for_arrays()

    def make_train_function(self, model: Any, make: Callable[[], None]) -> None:
        """Have it made as ever."""
        make()

    def _called(self, on_host: Callable[[Sequence[NDArray[Any]]], None], operands: Sequence[Any]) -> list[Any]:
        """Call the host; return the fresh values in the variables' own dtypes."""

        def call(outputs: Sequence[NDArray[Any]], inputs: Sequence[NDArray[Any]]) -> None:
            with self._replica.lent(outputs):
                on_host(inputs)

        # The parameters are among what a step returns, so it need not be marked.
        fresh = call_on_host(call, operands, self._results, failures=self._failures, say=False, marks_step=False)
        return [value.astype(variable.dtype) for value, variable in zip(fresh, self._variables, strict=True)]

    def _assign(self, values: Sequence[Any]) -> None:
        for variable, value in zip(self._variables, values, strict=True):
            variable.assign(value)


def _wait_for_arrays(at_most_s: float | None = None) -> None:
    """Wait until all arrays are there, or failed; Ctrl-C is heard meanwhile."""
    give_up_s = None if at_most_s is None else time.monotonic() + at_most_s
    waiting = jax.live_arrays()
    while waiting := [array for array in waiting if not (array.is_deleted() or array.is_ready())]:
        if give_up_s is not None and time.monotonic() > give_up_s:
            return
        time.sleep(_LOOK_EVERY_S)


@functools.cache
def _wait_at_exit() -> None:
    """Have a step end that is under way when the program ends, before the job and JAX are taken down."""
    atexit.register(_wait_for_arrays, _AT_EXIT_S)


def _kept(operands: Sequence[Any], kept: Sequence[Any]) -> list[Any]:
    """Return what the variables hold, in a step that does not exchange."""
    del operands
    return list(kept)


def _float32(tensor: Any) -> Any:
    dense = tensor.todense() if isinstance(tensor, JAXSparse) else tensor
    return jnp.asarray(dense, jnp.float32)
