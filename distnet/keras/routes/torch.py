"""PyTorch: the training step is eager, so the exchange is a call in it, and replies land in the parameters."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from distnet._private.arrays import Array
from distnet.frameworks.replica import ClientReplica, Replica
from distnet.keras.steps import Steps
from distnet.keras.variables import Variables

__all__ = ["TorchRoute", "is_tracing", "make_replica", "make_route"]


def is_tracing() -> bool:
    """Return whether a graph is traced here; what is called from a compiled step is not."""
    return False


def make_replica(client: Any) -> Replica:
    """Return the client's own memory, which float32 parameters on the CPU share."""
    return ClientReplica(client)


def make_route(variables: Variables, replica: Replica, steps: Steps) -> TorchRoute:
    """Return the way of this backend."""
    return TorchRoute(variables, replica, steps)


class TorchRoute:
    """Calls the host as any function.

    Thread safety: none.
    """

    def __init__(self, variables: Variables, replica: Replica, steps: Steps) -> None:
        self.said = "from the eager step of PyTorch; replies land in the parameters' own memory"
        self._steps = steps
        self._parameters = [variable.value for variable in variables]
        self._held = [torch.from_numpy(array) for array in replica.tensors]
        self._held_at = [held.data_ptr() for held in self._held]
        self._staged: dict[int, Any] = {}
        with torch.no_grad():
            for parameter, held in zip(self._parameters, self._held, strict=True):
                if _is_plain(parameter):
                    parameter.data = held

    def exchange(self, tensors: Sequence[Any | None], learning_rate: Any, *, when: Any | None = None) -> None:
        """Exchange now; as :class:`~distnet.keras.routes.Route` says."""
        _outside_the_compiler(TorchRoute._exchange)(self, tensors, learning_rate, when)

    def abstain(self) -> None:
        """Abstain now."""
        _outside_the_compiler(TorchRoute._abstain)(self)

    def after_exchange(self, name: str, work: Callable[[], None]) -> None:
        """Do it now: the exchange has ended."""
        work()

    def settle(self) -> None:
        """Have nothing to wait for: a step has exchanged when it returns."""

    def make_train_function(self, model: Any, make: Callable[[], None]) -> None:
        """Have it made as ever."""
        make()

    def _exchange(self, tensors: Sequence[Any | None], learning_rate: Any, when: Any | None) -> None:
        if when is not None and not bool(when):
            return
        arrays = [None if tensor is None else self._array(place, tensor) for place, tensor in enumerate(tensors)]
        self._steps.exchange(arrays, float(learning_rate))
        self._take()

    def _abstain(self) -> None:
        self._steps.abstain()
        self._take()

    def _array(self, place: int, tensor: Any) -> Array:
        """Return the values as float32: a view where they are."""
        plain = tensor.detach()
        if plain.is_cpu and plain.dtype is torch.float32 and plain.layout is torch.strided:
            view: Array = plain.numpy()
            return view
        if plain.layout != torch.strided:
            plain = plain.to_dense()
        if place not in self._staged:
            self._staged[place] = torch.empty(plain.shape, dtype=torch.float32, pin_memory=plain.is_cuda)
        array: Array = self._staged[place].copy_(plain).numpy()
        return array

    def _take(self) -> None:
        """Have the replies in those parameters that do not share the memory they went to."""
        pairs = zip(self._parameters, self._held, self._held_at, strict=True)
        others = [(parameter, held) for parameter, held, address in pairs if parameter.data_ptr() != address]
        if others:
            with torch.no_grad():
                for parameter, held in others:
                    parameter.copy_(held)


def _is_plain(parameter: Any) -> bool:
    return bool(parameter.device.type == "cpu" and parameter.dtype == torch.float32 and parameter.is_contiguous())


@functools.cache
def _disabled(method: Callable[..., None]) -> Callable[..., None]:
    kept_out: Callable[..., None] = torch.compiler.disable(method)
    return kept_out


def _outside_the_compiler(method: Callable[..., None]) -> Callable[..., None]:
    """Return the method; one that ``torch.compile`` does not look into, where something has imported the compiler."""
    return _disabled(method) if "torch._dynamo" in sys.modules else method
