"""What a worker of a framework needs of a client."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from distnet._private.arrays import Arrays
from distnet.optimizers import Group, Optimizer
from distnet.semantics import Semantics

__all__ = ["Handle", "OptimizerClient", "ParameterClient"]


class Handle(Protocol):
    """A push_pull on its way, as :class:`distnet.client.Handle` is."""

    def wait(self, *, out: Any = None) -> Arrays: ...


class ParameterClient(Protocol):
    """Those methods of :class:`distnet.Client` that a worker calls."""

    rank: int | None

    @property
    def version(self) -> int: ...
    @property
    def staleness(self) -> int: ...
    def pull(self, *, out: Any = None) -> Arrays: ...
    def push_pull(
        self, gradients: Any, *, learning_rate: Any = None, weight: float | None = None, out: Any = None
    ) -> Arrays: ...
    def begin_push_pull(self, gradients: Any, *, learning_rate: Any = None, weight: float | None = None) -> Handle: ...
    def finish(self, *, timeout: float | None = None) -> Arrays: ...


class OptimizerClient(ParameterClient, Protocol):
    """What a door needs beside that which stands in for a framework's own optimizer."""

    @property
    def versions(self) -> list[int]: ...
    @property
    def server_semantics(self) -> Semantics | None: ...
    @property
    def server_optimizer(self) -> Optimizer | None: ...
    @property
    def server_groups(self) -> Mapping[str, Group]: ...
    def replica_arrays(self) -> Arrays: ...
    def add_pull(self, changes: Any, *, out: Any = None) -> Arrays: ...
