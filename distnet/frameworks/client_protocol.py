"""What a worker of a framework needs of a client."""

from __future__ import annotations

from typing import Any, Protocol

from distnet._private.arrays import Arrays

__all__ = ["Handle", "ParameterClient"]


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
    def push_pull(self, gradients: Any, *, out: Any = None) -> Arrays: ...
    def begin_push_pull(self, gradients: Any) -> Handle: ...
    def finish(self, *, timeout: float | None = None) -> Arrays: ...
