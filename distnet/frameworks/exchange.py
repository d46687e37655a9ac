"""A gradient out, fresh parameters in; with overlap while the next gradient is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

from distnet._private.arrays import Array
from distnet.frameworks.client_protocol import Handle, OptimizerClient, ParameterClient
from distnet.frameworks.replica import Replica

__all__ = ["Exchange"]


class Exchange:
    """The traffic of one worker: its gradients to the server, and the server's parameters into its replica.

    With ``overlap`` there is one push on its way between two calls, and the next gradient is computed meanwhile, from
    parameters one step older. While :meth:`push_pull` runs there are two, which every semantics allows unless told
    otherwise.

    Where a call raises, the replica has the parameters of the last exchange that ended well, or those of the one that
    failed in part. A push that was begun is waited for all the same, by the next call or by :meth:`settle`.

    Args:
        client: of :func:`distnet.connect`. It stays the caller's to close.
        replica: where replies go.
        arrived: called whenever the replica holds other parameters than before, to hand them to the model.
        overlap: whether a push may be on its way when :meth:`push_pull` returns.

    Thread safety: none; from one thread at a time, like the client.
    """

    def __init__(
        self, client: ParameterClient, replica: Replica, *, arrived: Callable[[], None], overlap: bool = False
    ) -> None:
        self._client = client
        self._replica = replica
        self._arrived = arrived
        self._overlap = overlap
        self._under_way: Handle | None = None

    def push_pull(
        self, gradients: list[Array] | None, *, learning_rate: float | Mapping[str, float] | None = None
    ) -> None:
        """Push a gradient for each tensor, in order; with ``overlap`` take the parameters of the push before.

        Args:
            gradients: None abstains: the push brings none, and a round does not wait for it.
            learning_rate: of this push; None: the server's own.

        Raises:
            DistNetError: what the client's push_pull raises; with ``overlap`` also for the push before.
        """
        structured = None if gradients is None else self._replica.structured(gradients)
        rate: dict[str, Any] = {} if learning_rate is None or gradients is None else {"learning_rate": learning_rate}
        if self._overlap:
            # Before waiting for the last one: the client takes its newest reply for what a gradient was computed from.
            begun = self._client.begin_push_pull(structured, **rate)
            try:
                self.settle()
            finally:  # the one that was begun is on its way, whatever became of the one before
                self._under_way = begun
        else:
            self._client.push_pull(structured, out=self._replica.out, **rate)
            self._arrived()

    def add_pull(self, changes: list[Array]) -> None:
        """Push a change of each tensor, in order, and take the parameters that it was added to.

        Raises:
            DistNetError: what the client's add_pull raises.
        """
        self.settle()
        cast(OptimizerClient, self._client).add_pull(self._replica.structured(changes), out=self._replica.out)
        self._arrived()

    def pull(self) -> None:
        """Take the server's parameters as they are now, and push nothing."""
        self.settle()
        self._pull()

    def settle(self) -> None:
        """Wait for a push that is on its way, and take its parameters; does nothing where there is none."""
        handle, self._under_way = self._under_way, None
        if handle is not None:
            handle.wait(out=self._replica.out)
            self._arrived()

    def finish(self, *, timeout: float | None = None) -> None:
        """End this rank's training: wait until all ranks do, and take the final parameters, the same on every rank.

        By :meth:`distnet.Client.finish`, and raises as that does.
        """
        self.settle()
        self._client.finish(timeout=timeout)
        self._pull()

    def _pull(self) -> None:
        self._client.pull(out=self._replica.out)
        self._arrived()
