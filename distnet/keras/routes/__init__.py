"""Ways from a backend's training step to the client, one file each; each imports its own framework alone.

- :mod:`~distnet.keras.routes.torch`: the step is eager, and the exchange a call in it.
- :mod:`~distnet.keras.routes.tensorflow`: an operation of the graph calls the host.
- :mod:`~distnet.keras.routes.mailbox`: what a step that XLA compiles leaves for the graph around it.
- :mod:`~distnet.keras.routes.jax`: a callback of the compiled step does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import keras

from distnet.errors import ConfigError
from distnet.frameworks.replica import Replica
from distnet.keras.steps import Steps
from distnet.keras.variables import Variables

__all__ = ["Route", "is_tracing", "replica_for", "route_for"]


class Route(Protocol):
    """How a backend's training step reaches the host.

    :meth:`exchange` and :meth:`abstain` run where the optimizer's step does: eagerly, or once while a graph is traced,
    and may be in a branch of it. They leave the fresh parameters in the model's variables by ``variable.assign``, or
    faster; within a ``keras.StatelessScope`` that changes the scope alone.

    Attributes:
        said: which way it is, and why, for one line that the worker says.
    """

    said: str

    def exchange(self, tensors: Sequence[Any | None], learning_rate: Any, *, when: Any | None = None) -> None:
        """Take tensors to the host, and what comes back into the variables.

        Args:
            tensors: of the backend, one for each variable in the server's order; None where there is no gradient.
                They may be sparse, or of another floating dtype than float32.
            learning_rate: of this update, a number or a scalar of the backend.
            when: a scalar bool of the backend that says whether the step exchanges at all; None: it does.
        """

    def abstain(self) -> None:
        """Bring no gradient in this step, and have in the variables what comes back."""

    def after_exchange(self, name: str, work: Callable[[], None]) -> None:
        """Do something that needs the fresh parameters: now, unless the exchange of this step is yet to come.

        Args:
            name: of what is done, the same in every step.
            work: does it, in the graph.
        """

    def settle(self) -> None:
        """Wait until the steps that were begun have exchanged; outside any graph."""

    def make_train_function(self, model: Any, make: Callable[[], None]) -> None:
        """Have Keras make the model's training function, with whatever this way needs around it.

        Args:
            model: whose function it is.
            make: makes it, and leaves it in ``model.train_function``.
        """


def replica_for(client: Any) -> Replica:
    """Return the memory that replies go to, as the backend's route needs it.

    Raises:
        ConfigError: a backend that has no route.
    """
    replica: Replica = _module().make_replica(client)
    return replica


def route_for(variables: Variables, replica: Replica, steps: Steps) -> Route:
    """Return the way of Keras's backend.

    Args:
        variables: of the model, in the server's order.
        replica: as :func:`replica_for` made it; the variables hold its values already.
        steps: what is done on the host.
    """
    route: Route = _module().make_route(variables, replica, steps)
    return route


def is_tracing() -> bool:
    """Return whether the backend traces a graph here, where variables have no values."""
    tracing: bool = _module().is_tracing()
    return tracing


def _module() -> Any:
    """Return the backend's file, which has ``make_replica``, ``make_route`` and ``is_tracing``."""
    backend = keras.backend.backend()
    if backend == "torch":
        from distnet.keras.routes import torch

        return torch
    if backend == "tensorflow":
        from distnet.keras.routes import tensorflow

        return tensorflow
    if backend == "jax":
        from distnet.keras.routes import jax

        return jax
    raise ConfigError(
        f"Keras computes with the backend {backend!r}; expected tensorflow, torch or jax: set KERAS_BACKEND before "
        "Keras is imported"
    )
