"""What a step does on the host: at the server, or on its worker with a change added now and then."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from distnet._private.arrays import Array
from distnet.errors import DistNetWarning
from distnet.frameworks.exchange import Exchange
from distnet.frameworks.replica import Replica

__all__ = ["LocalSteps", "ServerSteps", "Steps"]


class Steps(Protocol):
    """What routes call on the host, from whatever thread runs the graph; never from two at once.

    Attributes:
        count: how many exchanges there were, abstentions among them.
        failure: what ended the last one, if it failed and nobody was told yet: frameworks wrap what a callback raises.
    """

    count: int
    failure: BaseException | None

    def exchange(self, tensors: Sequence[Array | None], learning_rate: float) -> list[Array]:
        """Exchange, and return fresh parameters.

        Args:
            tensors: float32, one for each variable in the server's order, read before this returns. With a server's
                update a gradient, and None where there is none; with a local one the variable's value.
            learning_rate: of this update.

        Returns:
            Float32 arrays in the same order, each on a multiple of 64 bytes. The next exchange leaves them as they
            are; the one after it may write to them.

        Raises:
            DistNetError: what the client raises.
        """

    def abstain(self) -> list[Array]:
        """Bring nothing to this round, and return fresh parameters as :meth:`exchange` does."""

    def rebase(self) -> None:
        """Take note that the replica holds other parameters than those of the last exchange."""


class ServerSteps:
    """Steps that a server makes: gradients out with their learning rate, parameters in.

    Args:
        exchange: with the client.
        replica: that the exchange has replies in.
        names: of the tensors.
        moves_on_zeros: whether the server's optimizer may move what has a gradient of zeros.

    Warns:
        DistNetWarning: once, where a variable without a gradient is pushed zeros and that is not the same.
    """

    def __init__(self, exchange: Exchange, replica: Replica, names: Sequence[str], *, moves_on_zeros: bool) -> None:
        self._exchange, self._replica, self._names = exchange, replica, names
        self._tell_of_zeros = moves_on_zeros
        self._zeros: dict[int, Array] = {}
        self.count = 0
        self.failure: BaseException | None = None

    def exchange(self, tensors: Sequence[Array | None], learning_rate: float) -> list[Array]:
        """Push this worker's gradients; return what :class:`Steps` says."""
        gradients = [self._zeros_of(place) if tensor is None else tensor for place, tensor in enumerate(tensors)]
        return self._push(gradients, learning_rate)

    def abstain(self) -> list[Array]:
        """Push nothing; return what :class:`Steps` says."""
        return self._push(None, None)

    def rebase(self) -> None:
        """Have nothing to note: gradients are no differences."""

    def _push(self, gradients: list[Array] | None, learning_rate: float | None) -> list[Array]:
        self.count += 1
        try:
            self._exchange.push_pull(gradients, learning_rate=learning_rate)
        except BaseException as error:
            self.failure = error
            raise
        self.failure = None
        return self._replica.tensors

    def _zeros_of(self, place: int) -> Array:
        if self._tell_of_zeros:
            self._tell_of_zeros = False
            warnings.warn(
                f"variable {self._names[place]!r} has no gradient in a step where others have one: zeros are pushed "
                "for it. The server's optimizer may move it all the same, by momentum, running means or weight decay; "
                "Keras's would leave it",
                DistNetWarning,
                stacklevel=2,
            )
        if place not in self._zeros:
            self._zeros[place] = np.zeros_like(self._replica.tensors[place])
        return self._zeros[place]


class LocalSteps:
    """Steps that a worker makes by itself; an exchange adds its change since the last one at the server.

    Args:
        exchange: with the client.
        replica: that the exchange has replies in.
    """

    def __init__(self, exchange: Exchange, replica: Replica) -> None:
        self._exchange, self._replica = exchange, replica
        self._base = [np.array(tensor) for tensor in replica.tensors]
        self.count = 0
        self.failure: BaseException | None = None

    def exchange(self, tensors: Sequence[Array | None], learning_rate: float) -> list[Array]:
        """Add the change of these values; return what :class:`Steps` says."""
        changes = [
            np.subtract(base if tensor is None else tensor, base)
            for tensor, base in zip(tensors, self._base, strict=True)
        ]
        self.count += 1
        try:
            self._exchange.add_pull(changes)
        except BaseException as error:
            self.failure = error
            raise
        self.failure = None
        self.rebase()
        return self._replica.tensors

    def rebase(self) -> None:
        """Have changes counted from what the replica holds."""
        for base, fresh in zip(self._base, self._replica.tensors, strict=True):
            np.copyto(base, fresh)

    def abstain(self) -> list[Array]:
        """Do nothing: a skipped step is no step of this worker, and so no exchange is due."""
        return self._replica.tensors
