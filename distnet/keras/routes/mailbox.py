"""A step that XLA compiles: what is to be exchanged leaves it as results, or waits in variables until it has ended.

XLA cannot call the host. So the training step becomes a compiled function within a graph that is not compiled, and the
graph around it exchanges, with the same operation as elsewhere. What an optimizer says in every step are results of the
function; what it says in a branch, as with accumulated gradients, cannot be, and goes through variables.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

__all__ = ["Mailbox"]

_EMPTY, _TENSORS, _ABSTENTION = 0, 1, 2

Tensors = Sequence[Any | None]


class Mailbox:
    """What lies between a compiled step and the graph around it.

    :meth:`put`, :meth:`put_abstention` and :meth:`put_work` are for the compiled step, while :meth:`around` traces it,
    and may be in a branch of it.

    Thread safety: none.

    Args:
        variables: of TensorFlow, whose shapes the tensors have.
    """

    def __init__(self, variables: Sequence[Any]) -> None:
        with tf.init_scope():
            self._tensors = [tf.Variable(tf.zeros(each.shape, tf.float32), trainable=False) for each in variables]
            self._rate = tf.Variable(0.0, trainable=False)
            self._content = tf.Variable(_EMPTY, trainable=False)
        self._graph: Any = None  # of the compiled step, while that is traced
        self._results: list[Any] = []
        self._present: list[int] = []
        self._through_variables = False
        self._works: dict[str, tuple[Any, Callable[[], None]]] = {}

    @property
    def is_open(self) -> bool:
        """Whether a compiled step is traced here."""
        return self._graph is not None

    def around(
        self,
        step: Callable[[Any], Any],
        exchange: Callable[[Tensors, Any], None],
        abstain: Callable[[], None],
    ) -> Callable[[Any], Any]:
        """Return a step that XLA compiles, and that exchanges after it.

        Args:
            step: that is to be compiled.
            exchange: is given tensors and the learning rate, outside the compiled step.
            abstain: is for a step that has none, likewise.
        """

        def traced(data: Any) -> tuple[Any, list[Any]]:
            self._graph, self._results = tf.compat.v1.get_default_graph(), []
            try:
                logs = step(data)
                return logs, self._results
            finally:
                self._graph = None

        compiled = tf.function(traced, jit_compile=True, reduce_retracing=True)

        def step_and_exchange(data: Any) -> Any:
            logs, results = compiled(data)
            if results:
                exchange(self._placed(results[1:]), results[0])
            if self._through_variables:
                self._empty(exchange, abstain)
            for flag, work in self._works.values():
                is_due = flag.read_value()
                flag.assign(False, read_value=False)
                tf.cond(is_due, work, lambda: None)
            return logs

        return step_and_exchange

    def put(self, tensors: Tensors, learning_rate: Any, when: Any | None) -> None:
        """Leave tensors, None where there is none, and say whether they count."""
        self._present = [place for place, tensor in enumerate(tensors) if tensor is not None]
        rate = tf.cast(learning_rate, tf.float32)
        given = {place: tf.cast(tf.convert_to_tensor(tensors[place]), tf.float32) for place in self._present}
        if when is None and tf.compat.v1.get_default_graph() is self._graph:
            self._results = [tf.identity(rate), *given.values()]
            return
        self._through_variables = True
        for place, tensor in given.items():
            self._tensors[place].assign(tensor, read_value=False)
        self._rate.assign(rate, read_value=False)
        content = _TENSORS if when is None else tf.where(when, _TENSORS, _EMPTY)
        self._content.assign(content, read_value=False)

    def put_abstention(self) -> None:
        """Leave word that this step has no gradient."""
        self._through_variables = True
        self._content.assign(_ABSTENTION, read_value=False)

    def put_work(self, name: str, work: Callable[[], None]) -> None:
        """Leave word that there is something to do once the parameters are there."""
        if name not in self._works:
            with tf.init_scope():
                self._works[name] = tf.Variable(False, trainable=False), work
        self._works[name][0].assign(True, read_value=False)

    def _empty(self, exchange: Callable[[Tensors, Any], None], abstain: Callable[[], None]) -> None:
        content = self._content.read_value()
        self._content.assign(_EMPTY, read_value=False)

        def exchanged() -> None:
            exchange(self._placed([self._tensors[place] for place in self._present]), self._rate)

        tf.switch_case(content, {_EMPTY: lambda: None, _TENSORS: exchanged, _ABSTENTION: abstain})

    def _placed(self, present: Sequence[Any]) -> list[Any | None]:
        placed: list[Any | None] = [None] * len(self._tensors)
        for place, tensor in zip(self._present, present, strict=True):
            placed[place] = tensor
        return placed
