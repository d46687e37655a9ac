"""A push_pull in flight."""

from __future__ import annotations

from typing import TYPE_CHECKING

from distnet._private.arrays import Arrays, ArraysLike
from distnet.errors import ConfigError

if TYPE_CHECKING:
    from distnet.client.client import Client

__all__ = ["Handle"]


class Handle:
    """A push_pull in flight; :meth:`wait` collects its parameters.

    A handle that is dropped gives its parameters up: the push counts as ever, and the client goes on.

    Thread safety: :meth:`wait` is a call of the client, one at a time; any thread may drop it.

    Example:
        >>> with distnet.ParameterServer([np.zeros(2, np.float32)]) as server:
        ...     with distnet.connect(server.address, rank=0) as client:
        ...         handle = client.begin_push_pull([np.ones(2, np.float32)])
        ...         # compute something meanwhile
        ...         fresh = handle.wait()
        ...         client.accepted
        1
    """

    def __init__(self, client: Client) -> None:
        """Stand for the client's next call: made before it, so that an interrupt between the two loses nothing."""
        self._client = client
        self._number = client._native.next_number
        self._over = False

    def wait(self, *, out: ArraysLike | None = None) -> Arrays:
        """Wait for the reply, once, in any order of the handles.

        Older replies that come before it are kept for theirs.

        Args:
            out: arrays to write to and return, as :meth:`Client.pull` takes them. None: the client's own.

        Returns:
            The parameters, as :meth:`Client.push_pull` returns them.

        Raises:
            ConfigError: this handle was waited for already.
            DistNetError: what :meth:`Client.push_pull` raises.
        """
        if self._over:
            raise ConfigError("this handle was waited for already; begin_push_pull() gives a new one for each push")
        self._client._check_destination(out)
        try:
            arrays = self._client._finish(self._number, out, alias=False)
        except BaseException:  # also Ctrl-C
            self._give_up()
            raise
        self._over = True
        return arrays

    def _not_begun(self) -> None:
        """The call was refused, or interrupted on its way: nobody will wait for it, if there is one."""
        if self._client._native.next_number > self._number:
            self._give_up()
        self._over = True

    def _give_up(self) -> None:
        self._over = True
        self._client._native.drop(self._number)

    def __del__(self) -> None:
        if not self._over and self._client._native.next_number > self._number:
            self._give_up()
