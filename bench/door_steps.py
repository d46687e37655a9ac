"""The steps that ``doors.py`` times: of each framework, a model that hands out ten ready gradients of ones.

Each function takes a client, whose server steps by SGD, or a :class:`Local` way to step without any, and what else
belongs to a step; it returns what makes so many steps and returns the seconds of each. Frameworks are imported where
they are asked for.
"""

from __future__ import annotations

import enum
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from distnet.benchmark.measure import RATE, SIZES
from distnet.benchmark.turns import timed
from distnet.client import Client

__all__ = ["STEPS", "Local", "Run", "Steps", "nothing_else"]

TENSORS = SIZES["alexnet"].tensors


class Local(enum.Enum):
    """How a step ends without DistNet."""

    NOTHING = "an optimizer that does nothing"
    SGD = "the framework's own SGD"


Run = Callable[[int], Sequence[float]]
Steps = Callable[[Client | Local, Callable[[], object]], Run]


def nothing_else() -> None:
    """Add nothing to a step."""


def torch_optimizer(way: Client | Local, after: Callable[[], object] = nothing_else) -> Run:
    """Step an optimizer of PyTorch whose gradients are there."""
    import torch

    from distnet.torch import DistributedOptimizer

    class Nothing(torch.optim.SGD):  # type: ignore[misc]  # mypy sees no types of PyTorch
        def step(self, closure: Any = None) -> None:
            """Leave the parameters as they are."""

    model = torch.nn.ParameterList([torch.zeros(count) for count in TENSORS])
    kind = Nothing if way is Local.NOTHING else torch.optim.SGD
    optimizer = kind(model.parameters(), lr=RATE)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    if isinstance(way, Client):
        optimizer = DistributedOptimizer(optimizer, model, client=way)

    def once() -> None:
        optimizer.step()
        after()

    return timed(once)


def keras_fit(way: Client | Local, after: Callable[[], object] = nothing_else, *, jit_compile: bool = False) -> Run:
    """Fit a model of Keras, on the backend of this process."""
    import keras

    import distnet.keras

    if keras.backend.backend() == "jax":
        from jax import block_until_ready

    under_xla = jit_compile and keras.backend.backend() == "tensorflow"
    handed_out = [keras.Variable(np.zeros(count, np.float32), trainable=False) for count in TENSORS if under_xla]

    class Nothing(keras.optimizers.SGD):  # type: ignore[misc]  # mypy sees no types of Keras
        def _backend_update_step(self, grads: Any, trainable_variables: Any, learning_rate: Any) -> None:
            """Leave the parameters as they are; have XLA hand out the gradients, which it would leave out else."""
            for variable, gradient in zip(handed_out, grads if under_xla else (), strict=True):
                variable.value.assign(gradient)

    class HandsOut(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            for count in TENSORS:
                self.add_weight(shape=(count,), initializer="zeros")
            self.ready = [self._ready(count) for count in TENSORS]
            self.built = True

        def _ready(self, count: int) -> Any:
            if keras.backend.backend() != "jax":
                return keras.ops.ones(count)
            # An argument of the step: XLA would fill memory with a constant's value anew in each step.
            return self.add_weight(shape=(count,), initializer="ones", trainable=False)

        def train_step(self, *given: Any) -> Any:
            if keras.backend.backend() != "jax":
                self.optimizer.apply(self.ready, self.trainable_variables)
                return {"loss": keras.ops.zeros(())}  # TensorFlow wants some log
            (trained, others, kept, metrics), _ = given
            # As in a model, a gradient comes of what is trained: XLA then has the exchange write over that, not a copy.
            gradients = [*others[:-1], others[-1] + 0 * sum(values[0] for values in trained)]
            trained, kept = self.optimizer.stateless_apply(kept, gradients, trained)
            return {"loss": keras.ops.zeros(())}, (trained, others, kept, metrics)

    class Watch(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.moments: list[float] = []

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if keras.backend.backend() == "jax":
                block_until_ready(logs)  # of the step that the parameters are of, too
            after()
            self.moments.append(time.perf_counter())

    model, watch = HandsOut(), Watch()
    model.compile((Nothing if way is Local.NOTHING else keras.optimizers.SGD)(RATE), jit_compile=jit_compile)
    if isinstance(way, Client):
        distnet.keras.distribute(model, client=way)

    def run(calls: int) -> list[float]:
        data = np.zeros((calls + 1, 1), np.float32)  # the first step of a fit is not a step alone
        model.fit(data, batch_size=1, shuffle=False, verbose=0, callbacks=[watch])
        return [end - start for start, end in itertools.pairwise(watch.moments)]

    return run


def keras_fit_under_xla(way: Client | Local, after: Callable[[], object] = nothing_else) -> Run:
    """Fit a model of Keras whose step is compiled by XLA."""
    return keras_fit(way, after, jit_compile=True)


def jax_in_jit(way: Client | Local, after: Callable[[], object] = nothing_else) -> Run:
    """Run a jitted step of JAX, gradients in and parameters out."""
    import jax

    from distnet.jax import push_pull

    exchange = push_pull(way) if isinstance(way, Client) else None

    @jax.jit  # type: ignore[untyped-decorator]
    def step(parameters: list[Any], gradients: list[Any]) -> list[Any]:
        if exchange is not None:
            fresh: list[Any] = exchange(gradients)
            return fresh
        if way is Local.NOTHING:
            return parameters
        return [parameter - RATE * gradient for parameter, gradient in zip(parameters, gradients, strict=True)]

    parameters, ready = ([make(count) for count in TENSORS] for make in (jax.numpy.zeros, jax.numpy.ones))

    def once() -> None:
        nonlocal parameters
        parameters = jax.block_until_ready(step(parameters, ready))
        after()

    return timed(once)


STEPS: dict[str, Steps] = {
    "torch": torch_optimizer,
    "keras-torch": keras_fit,
    "keras-tensorflow": keras_fit,
    "keras-tensorflow-xla": keras_fit_under_xla,
    "keras-jax": keras_fit_under_xla,
    "jax": jax_in_jit,
}
"""By the names of ``doors.DOORS``."""
