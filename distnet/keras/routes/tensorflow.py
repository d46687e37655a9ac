"""TensorFlow: an operation of the graph calls the host, where the optimizer steps or, under XLA, after the step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from distnet._private.arrays import Array
from distnet.frameworks.replica import AlternatingReplica, Replica
from distnet.keras.routes.mailbox import Mailbox
from distnet.keras.steps import Steps
from distnet.keras.variables import Variables

__all__ = ["TensorFlowRoute", "is_tracing", "make_replica", "make_route"]


def is_tracing() -> bool:
    """Return whether a graph is traced here."""
    return not tf.executing_eagerly()


def make_replica(client: Any) -> Replica:
    """Return memory that becomes the variables' own: a graph may still read the parameters of the step before."""
    return AlternatingReplica(client.pull())


def make_route(variables: Variables, replica: Replica, steps: Steps) -> TensorFlowRoute:
    """Return the way of this backend."""
    return TensorFlowRoute(variables, replica, steps)


class TensorFlowRoute:
    """Calls the host by ``tf.numpy_function``: its arguments are views, and what it returns the variables take over.

    Thread safety: none.
    """

    def __init__(self, variables: Variables, replica: Replica, steps: Steps) -> None:
        self.said = "inside TensorFlow's graph (numpy_function); replies become the variables' own memory"
        self._steps = steps
        self._owned = list(variables)
        self._variables = [variable.value for variable in variables]
        self._mailbox: Mailbox | None = None

    def exchange(self, tensors: Sequence[Any | None], learning_rate: Any, *, when: Any | None = None) -> None:
        """Exchange here in the graph; as :class:`~distnet.keras.routes.Route` says."""
        if self._mailbox is not None and self._mailbox.is_open:
            self._mailbox.put(tensors, learning_rate, when)
        elif when is not None:
            tf.cond(when, lambda: self._exchange(tensors, learning_rate), lambda: None)
        else:
            self._exchange(tensors, learning_rate)

    def abstain(self) -> None:
        """Abstain here in the graph."""
        if self._mailbox is not None and self._mailbox.is_open:
            self._mailbox.put_abstention()
        else:
            self._abstain()

    def after_exchange(self, name: str, work: Callable[[], None]) -> None:
        """Do something once the parameters are there."""
        if self._mailbox is not None and self._mailbox.is_open:
            self._mailbox.put_work(name, work)
        else:
            work()

    def settle(self) -> None:
        """Have nothing to wait for: a step has exchanged when it returns."""

    def make_train_function(self, model: Any, make: Callable[[], None]) -> None:
        """Have it made; where XLA compiles the step, with a mailbox around it."""
        if not model.jit_compile or model.run_eagerly:
            make()
            return
        self.said = (
            "through a mailbox after the compiled step: jit_compile is on, by compile() or by Keras itself, and XLA "
            "cannot call out"
        )
        was_own = model.__dict__.get("train_step")
        model.train_step = self._with_mailbox(model.train_step)
        model.jit_compile = False
        try:
            make()
        finally:
            model.jit_compile = True
            del model.train_step
            if was_own is not None:
                model.train_step = was_own

    def _with_mailbox(self, train_step: Callable[[Any], Any]) -> Callable[[Any], Any]:
        mailbox = self._mailbox = Mailbox(self._variables)
        compiled = mailbox.around(train_step, self._exchange, self._abstain)

        def step(data: Any) -> Any:
            logs = compiled(data)
            self._constrain()
            return logs

        return step

    def _exchange(self, tensors: Sequence[Any | None], learning_rate: Any) -> None:
        present = [place for place, tensor in enumerate(tensors) if tensor is not None]
        count = len(self._variables)

        def on_host(rate: Any, *arrays: Array) -> list[Array]:
            placed: list[Array | None] = [None] * count
            for place, array in zip(present, arrays, strict=True):
                placed[place] = array
            return self._steps.exchange(placed, float(rate))

        given = [_dense(tensor) for tensor in tensors if tensor is not None]
        self._assign(tf.numpy_function(on_host, [tf.cast(learning_rate, tf.float32), *given], self._dtypes))

    def _abstain(self) -> None:
        self._assign(tf.numpy_function(self._steps.abstain, [], self._dtypes))

    @property
    def _dtypes(self) -> list[Any]:
        return [tf.float32] * len(self._variables)

    def _assign(self, values: Sequence[Any]) -> None:
        for variable, value in zip(self._variables, values, strict=True):
            value.set_shape(variable.shape)
            variable.assign(tf.cast(value, variable.dtype), read_value=False)

    def _constrain(self) -> None:
        """Apply constraints after the exchange: Keras has applied them within the step, before it."""
        for variable in self._owned:
            if variable.constraint is not None:
                variable.assign(variable.constraint(variable))


def _dense(tensor: Any) -> Any:
    return tf.cast(tf.convert_to_tensor(tensor), tf.float32)
