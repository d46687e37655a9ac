"""What a step of a DistributedOptimizer does: at the server, or on its worker with an exchange now and then."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from distnet._private.arrays import Array
from distnet.errors import DistNetWarning
from distnet.frameworks.exchange import Exchange
from distnet.torch.parameters import Parameters
from distnet.torch.translation import Translation

__all__ = ["LocalSteps", "ServerSteps", "Steps"]

Closure = Callable[[], Any]


class Steps(Protocol):
    """How a step is made."""

    def step(self, optimizer: Any, closure: Closure | None) -> Any:
        """Make a step; returns what the closure does, or None."""

    def settle(self) -> None:
        """Let the server have everything."""


class ServerSteps:
    """Steps that a server makes: gradients out with their learning rate, parameters in.

    Thread safety: none.
    """

    def __init__(self, exchange: Exchange, parameters: Parameters, translation: Translation) -> None:
        self._exchange, self._parameters, self._translation = exchange, parameters, translation
        self._tell_of_zeros = translation.moves_on_zeros

    def step(self, optimizer: Any, closure: Closure | None) -> Any:
        """Push this rank's gradients, and have the reply in the parameters."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._translation.check_unchanged(optimizer)
        gradients = None
        if not is_skipped_by_scaler(optimizer):
            unscale(optimizer, self._parameters)
            gradients = self._parameters.gradients()
        if gradients is None:
            self._exchange.push_pull(None)
            return loss
        if self._tell_of_zeros:
            self._warn_of_zeros()
        self._exchange.push_pull(gradients, learning_rate=self._translation.learning_rate(optimizer))
        return loss

    def settle(self) -> None:
        """Have nothing left: each step exchanges."""

    def _warn_of_zeros(self) -> None:
        without = self._parameters.without_gradient()
        if not without:
            return
        self._tell_of_zeros = False
        more = f" (and {len(without) - 1} more)" if len(without) > 1 else ""
        warnings.warn(
            f"parameter {without[0]!r}{more} has no gradient in a step where others have one: zeros are pushed for it. "
            "Where no other rank has a gradient for it, the server's optimizer may move it all the same, by momentum, "
            "running means or weight decay; PyTorch's would leave it",
            DistNetWarning,
            stacklevel=5,
        )


class LocalSteps:
    """Steps that a worker makes by itself; every so many, its change is added at the server.

    Thread safety: none.

    Args:
        inner: the step of the optimizer's own class.
        every: how many steps lie between two exchanges.
    """

    def __init__(self, exchange: Exchange, parameters: Parameters, *, inner: Callable[..., Any], every: int) -> None:
        self._exchange, self._parameters = exchange, parameters
        self._inner, self._every = inner, every
        self._since = 0
        self._base = self._copied()

    def step(self, optimizer: Any, closure: Closure | None) -> Any:
        """Step as the optimizer does, and exchange when it is time."""
        loss = None
        if not is_skipped_by_scaler(optimizer):
            unscale(optimizer, self._parameters)
            loss = self._inner(optimizer) if closure is None else self._inner(optimizer, closure)
        self._since += 1
        if self._since >= self._every:
            self._add()
        return loss

    def settle(self) -> None:
        """Add what was changed since the last exchange."""
        if self._since:
            self._add()

    def _add(self) -> None:
        changes = [value - base for value, base in zip(self._parameters.values(), self._base, strict=True)]
        self._exchange.add_pull(changes)
        self._since = 0
        self._base = self._copied()

    def _copied(self) -> list[Array]:
        return [np.array(value) for value in self._parameters.values()]


def is_skipped_by_scaler(optimizer: Any) -> bool:
    """Return whether a gradient scaler that steps the optimizer has found infinity or NaN in its gradients."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and float(found) != 0.0


def unscale(optimizer: Any, parameters: Parameters) -> None:
    """Take a scaler's factor out of the gradients, unless that was done before the step.

    ``torch.amp.GradScaler`` leaves the factor, and whether it found infinity, with an optimizer that says that it
    handles them itself. Both are dealt with then: PyTorch's own steps but the fused ones refuse to find any.
    """
    scale = getattr(optimizer, "grad_scale", None)
    if scale is not None:
        parameters.scale_gradients(scale.double().reciprocal().float())
    for left in ("grad_scale", "found_inf"):
        if hasattr(optimizer, left):
            setattr(optimizer, left, None)  # not deleted: the scaler does that
