"""Gradients out and parameters in, as one function for inside and outside ``jit``."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from distnet._private.arrays import Arrays
from distnet._private.manifest import Manifest
from distnet.errors import ConfigError
from distnet.frameworks.client_protocol import OptimizerClient
from distnet.jax.callbacks import Result, call_on_host
from distnet.jax.failures import Failures
from distnet.jax.trees import Layout, ServerOrder

__all__ = ["PushPull", "push_pull"]


def push_pull(client: OptimizerClient, parameters: Any = None) -> PushPull:
    """Return a function that pushes gradients and returns fresh parameters, for inside and outside ``jit``.

    ::

        push_pull = distnet.jax.push_pull(client)

        @jax.jit
        def step(parameters, batch):
            loss, gradients = jax.value_and_grad(loss_of)(parameters, batch)
            return push_pull(gradients), loss

    Args:
        client: of :func:`distnet.connect`; it stays the caller's to close.
        parameters: a tree like the model's, of arrays or ``jax.ShapeDtypeStruct``, which says what the returned
            trees look like. None: like the gradients, leaf by leaf in their dtypes.

    Returns:
        The function, whose :meth:`PushPull.__call__` says what it takes.

    Raises:
        ConfigError: a leaf of ``parameters`` is not of floating-point numbers.
        ManifestMismatch: ``parameters`` are not the server's model.
    """
    return PushPull(client, parameters)


class PushPull:
    """A function that pushes gradients and returns fresh parameters; :func:`push_pull` makes it.

    It may be called outside ``jit`` and within it, there also in ``scan``, ``fori_loop``, ``while_loop`` and ``cond``;
    not under ``vmap`` or in what ``grad`` differentiates, and not in a step over several devices. Within ``jit``, two
    calls of which neither takes what the other returns are made in no promised order.

    Trees are like the server's model: their leaves have its names, by the keys, indices and attributes on the way to
    each, joined by ``"/"``; where the server was given a list, their order counts. float16, bfloat16 and float64 are
    cast to float32 on their way to the server, which holds that, and back on their way from it.

    What a call returns is memory of its own, which no later call writes to.

    Within ``jit``, Ctrl-C may be heard only when the step has ended: XLA can make the call in a thread of its own, and
    waits. The stop flag of :func:`distnet.connect` ends a wait there, too.

    In a ``with`` block, an error of a callback within ``jit`` is raised as what it is, in place of the
    ``jax.errors.JaxRuntimeError`` that JAX ends a step by; the client stays open.

    Args:
        client: of the server.
        parameters: as :func:`push_pull` takes them.

    Attributes:
        client: of the server.

    Thread safety: one thread calls it; callbacks of compiled steps may run in any.
    """

    def __init__(self, client: OptimizerClient, parameters: Any = None) -> None:
        self.client = client
        self._failures = Failures()
        self._turn = threading.Lock()  # callbacks that do not depend on each other may come at once
        self._manifest: Manifest | None = None
        self._orders: dict[Any, ServerOrder] = {}
        self._returned: ServerOrder | None = None
        if parameters is not None:
            self._returned = self._order(parameters)

    def __call__(
        self,
        gradients: Any,
        *,
        learning_rate: Any = None,
        weight: Any = None,
        abstain: Any = False,
        like: Any = None,
    ) -> Any:
        """Push gradients and return the parameters, when the server's semantics says so.

        Args:
            gradients: a tree of arrays. None abstains: a synchronous round goes on with the other workers' gradients.
            learning_rate: of this push, a number or a scalar of JAX, or ``{group pattern: rate}`` of them. None: the
                server's own.
            weight: of this gradient in the mean of its round, a number or a scalar of JAX. None: 1.
            abstain: True, or a scalar of JAX that is true, abstains, whatever the gradients are: for a step of loss
                scaling that is skipped.
            like: a tree that says what is returned, as :func:`push_pull` takes it; None: as that was told.

        Returns:
            A tree of fresh arrays of JAX.

        Raises:
            ConfigError: a leaf is not of floating-point numbers; the call is under ``vmap`` or ``grad``, or in a step
                over several devices; or None before it is known what the parameters look like.
            ManifestMismatch: the tree is not the server's model.
            DistNetError: what :meth:`distnet.Client.push_pull` raises. Within ``jit`` it is a
                ``jax.errors.JaxRuntimeError`` with its text, but for a ``with`` block of this object.
        """
        settings = _Settings.of(learning_rate, weight)
        client = self.client
        if gradients is None or abstain is True:
            order = self._order_without(gradients if like is None else like)

            def stay_away(out: Arrays, inputs: Sequence[NDArray[Any]]) -> None:
                client.push_pull(None, out=out)

            return self._call(stay_away, order, [np.zeros(1, np.float32)], like)
        order = self._order(gradients)
        tensors = order.tensors(gradients)
        number = len(tensors)
        flag = [] if abstain is False else [jnp.asarray(abstain)]

        def exchange(out: Arrays, inputs: Sequence[NDArray[Any]]) -> None:
            if flag and inputs[-1]:
                client.push_pull(None, out=out)
                return
            said = settings.said(inputs[number:])
            client.push_pull(order.structured(inputs[:number]), out=out, **said)

        return self._call(exchange, order, [*tensors, *settings.operands, *flag], like)

    def add_pull(self, changes: Any, *, like: Any = None) -> Any:
        """Push a change of the parameters, which is added to them, and return fresh ones.

        For workers that step their own optimizers; as :meth:`distnet.Client.add_pull`.

        Args:
            changes: a tree of arrays. None abstains.
            like: as :meth:`__call__` takes it.

        Returns:
            A tree of fresh arrays of JAX.

        Raises:
            DistNetError: as :meth:`__call__`.
        """
        client = self.client
        order = self._order_without(None) if changes is None else self._order(changes)
        tensors = [np.zeros(1, np.float32)] if changes is None else order.tensors(changes)

        def exchange(out: Arrays, inputs: Sequence[NDArray[Any]]) -> None:
            client.add_pull(None if changes is None else order.structured(inputs), out=out)

        return self._call(exchange, order, tensors, like)

    def pull(self) -> Any:
        """Return the server's parameters as they are now, and push nothing; outside ``jit``.

        Returns:
            A tree of fresh arrays of JAX.

        Raises:
            ConfigError: it is not known yet what the parameters look like.
            DistNetError: what :meth:`distnet.Client.pull` raises, or a callback has raised before.
        """
        order = self._order_without(None)
        self.settle()
        with self._turn:
            return self._tree_of(self.client.pull(), order)

    def finish(self, *, timeout: float | None = None) -> Any:
        """Wait until all ranks are done, and return the final parameters, the same on every rank.

        Steps that still run are waited for before.

        Args:
            timeout: seconds to wait at most. None: as long as it takes.

        Returns:
            A tree of fresh arrays of JAX.

        Raises:
            DistNetError: what :meth:`distnet.Client.finish` raises, or a callback has raised before.
        """
        order = self._order_without(None)
        self.settle()
        with self._turn:
            return self._tree_of(self.client.finish(timeout=timeout), order)

    def settle(self) -> None:
        """Wait until the callbacks of steps that were called are done.

        Raises:
            DistNetError: what one of them has raised, unless that was told already.
        """
        with contextlib.suppress(RuntimeError), self.told_as_they_are():
            jax.effects_barrier()
        self._failures.check()

    @contextlib.contextmanager
    def told_as_they_are(self) -> Iterator[None]:
        """Have an error of a callback raised as what it is within the block, as a ``with`` block of this object has it.

        Raises:
            DistNetError: in place of a ``jax.errors.JaxRuntimeError`` that came of it.
        """
        with self._failures.told_as_they_are():
            yield

    def __enter__(self) -> PushPull:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        cause = self.cause_of(error)
        if cause is not None and cause is not error:
            raise cause from None

    def cause_of(self, error: BaseException | None) -> BaseException | None:
        """Return the error of a callback where ``error`` is the one by which JAX ended the step, else ``error``."""
        return self._failures.cause_of(error)

    def _call(
        self,
        exchange: Callable[[Arrays, Sequence[NDArray[Any]]], None],
        order: ServerOrder,
        operands: list[Any],
        like: Any,
    ) -> Any:
        self._returned = self._returned or order
        returned = self._returned if like is None else self._order(like)
        results = [Result(shape) for shape in returned.shapes]

        def in_turn(outputs: Sequence[NDArray[Any]], inputs: Sequence[NDArray[Any]]) -> None:
            with self._turn:
                exchange(order.structured(outputs), inputs)

        return returned.tree(call_on_host(in_turn, operands, results, failures=self._failures))

    def _order(self, tree: Any) -> ServerOrder:
        leaves, structure = jax.tree_util.tree_flatten(tree)
        known_by = (structure, *((np.shape(leaf), getattr(leaf, "dtype", type(leaf))) for leaf in leaves))
        order = self._orders.get(known_by)
        if order is None:
            if self._manifest is None:
                self._manifest = Manifest.of_arrays(self.client.replica_arrays())
            order = self._orders[known_by] = ServerOrder(Layout.of(tree), self._manifest)
        return order

    def _order_without(self, gradients: Any) -> ServerOrder:
        if self._returned is not None:
            return self._returned
        if gradients is not None:
            return self._order(gradients)
        raise ConfigError(
            "it is not known yet what the parameters look like: give push_pull() a tree of them, "
            "push_pull(client, parameters)"
        )

    @staticmethod
    def _tree_of(arrays: Arrays, order: ServerOrder) -> Any:
        values = list(arrays.values()) if isinstance(arrays, Mapping) else list(arrays)
        return order.tree([jnp.array(value, copy=True) for value in values])


class _Settings:
    """The settings of a push: numbers that are known now, and operands that are known when the step runs."""

    def __init__(self, fixed: dict[str, Any], running: list[tuple[str, str | None]], operands: list[Any]) -> None:
        self._fixed, self._running, self.operands = fixed, running, operands

    @classmethod
    def of(cls, learning_rate: Any, weight: Any) -> _Settings:
        fixed: dict[str, Any] = {}
        running: list[tuple[str, str | None]] = []
        operands: list[Any] = []

        def take(setting: str, pattern: str | None, value: Any) -> None:
            if isinstance(value, np.generic):
                value = value.item()
            if isinstance(value, jax.Array):  # also what is being traced
                running.append((setting, pattern))
                operands.append(value)
            elif pattern is None:
                fixed[setting] = value
            else:
                fixed.setdefault(setting, {})[pattern] = value

        if isinstance(learning_rate, Mapping):
            for pattern, rate in learning_rate.items():
                take("learning_rate", pattern, rate)
        elif learning_rate is not None:
            take("learning_rate", None, learning_rate)
        if weight is not None:
            take("weight", None, weight)
        return cls(fixed, running, operands)

    def said(self, values: Sequence[NDArray[Any]]) -> dict[str, Any]:
        """Return the settings as a client takes them.

        Args:
            values: of the operands; more may follow.
        """
        said = {name: dict(value) if isinstance(value, dict) else value for name, value in self._fixed.items()}
        for (setting, pattern), value in zip(self._running, values, strict=False):
            if pattern is None:
                said[setting] = float(value)
            else:
                said.setdefault(setting, {})[pattern] = float(value)
        return said
