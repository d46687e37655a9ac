"""Workers here, servers elsewhere: what ``distnet run --join`` knows of a server on another machine."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from distnet._private.bounds import most_workers
from distnet._private.quantities import show_seconds
from distnet.errors import ConfigError, ConnectError, DeadlineExceeded, PeerClosed, TransportError
from distnet.stats import ServerStatistics

if TYPE_CHECKING:
    from distnet.client import Client

__all__ = ["RemoteServers", "agreed_workers", "parse_ranks"]

_ONE_TRY_S = 2.0
_LEARN_WITHIN_S = 300.0
_FIRST_WORD_S = 10.0


class RemoteServers:
    """The servers of another machine, as an observer sees them: one that pulls nothing and takes part in no round.

    A server welcomes observers once it has a model, so counters come late.

    Args:
        address: as the server's machine printed it.
        expected: how many workers the user said it expects, to be checked; None: the user did not say.

    Thread safety: ``stats()`` and ``workers()`` are for one thread at a time, the rest for any.
    """

    def __init__(self, address: str, expected: int | None = None) -> None:
        self.address = address
        self._expected = expected
        self._client: Client | None = None
        self._gone: TransportError | None = None  # since a welcome; until the next one

    def stats(self) -> ServerStatistics | None:
        """Return the counters; None where the server has no model yet.

        Raises:
            TransportError: the server has gone.
            ConfigError: it expects another number of workers.
        """
        self.check_workers()
        if self._client is None:
            if self._gone is not None:
                raise self._gone
            return None
        try:
            return ServerStatistics.over(self._client.stats())
        except TransportError as error:
            raise self._lose(error) from error

    @property
    def local_address(self) -> str:
        """What workers started here connect to."""
        return self.address

    def failures(self) -> list[str]:
        """Return nothing: how its processes are is for the other machine to say."""
        return []

    def excuse(self, rank: int, why: str = "") -> None:
        """Do nothing: whom its rounds wait for is for the other machine to say."""

    @property
    def connected(self) -> bool:
        """Whether the server has welcomed the observer."""
        return self._client is not None

    def workers(self) -> int | None:
        """Return how many workers the server expects; None where it does not say so yet."""
        return None if (client := self._connected()) is None else client.workers

    def check_workers(self) -> None:
        """Compare the number of workers with the server's, where that says it already.

        Raises:
            ConfigError: they differ.
        """
        said = self.workers()
        if said is not None and self._expected not in (None, said):
            raise ConfigError(f"--workers is {self._expected}, but the server at {self.address} expects {said}")

    def close(self) -> None:
        """Leave the server."""
        if self._client is not None:
            with contextlib.suppress(TransportError):  # it has gone by itself
                self._client.close()

    def _lose(self, error: TransportError) -> TransportError:
        """Let a connection that failed go; the next question makes a new one. Returns the error in words."""
        self.close()
        self._client = None
        words = "is gone" if isinstance(error, PeerClosed) else f"does not answer any more: {error}"
        self._gone = type(error)(f"the server at {self.address} {words}")
        return self._gone

    def _connected(self) -> Client | None:
        if self._client is None:
            import distnet

            try:
                self._client = distnet.connect(self.address, timeout=_ONE_TRY_S, connect_timeout=0.0)
                self._gone = None
            except (ConnectError, DeadlineExceeded, PeerClosed):
                return None
        return self._client


def agreed_workers(servers: RemoteServers, ranks: Sequence[int], given: int | None, say: Callable[[str], None]) -> int:
    """Return how many workers the server expects, as the user said or as it says itself.

    Args:
        servers: where to ask.
        ranks: those that will run here.
        given: what the user said; None: the server is asked, and waited for.
        say: shows a line.

    Raises:
        ConfigError: a rank is beyond them; the server already says another number; or nobody can know, because the
            server says it when it has a model, and rank 0 is to bring that.
        DeadlineExceeded: the server has not said it in five minutes.
    """
    if given is None and 0 in ranks:
        raise ConfigError(
            "--workers is missing: rank 0 runs here and brings the model, and before that the server does not say how "
            "many workers it expects; give the number that `distnet serve` was given"
        )
    workers = _wait_for_workers(servers, say) if given is None else given
    if beyond := [rank for rank in ranks if rank >= workers]:
        raise ConfigError(f"--ranks names rank {beyond[0]}; with {workers} workers, ranks are 0 to {workers - 1}")
    servers.check_workers()
    return workers


def _wait_for_workers(servers: RemoteServers, say: Callable[[str], None]) -> int:
    began_s = time.monotonic()
    next_word_s = began_s + _FIRST_WORD_S
    while (workers := servers.workers()) is None:
        now_s = time.monotonic()
        if servers.connected:
            raise ConfigError("this server does not say how many workers it expects; give --workers")
        if now_s - began_s > _LEARN_WITHIN_S:
            raise DeadlineExceeded(
                f"the server at {servers.address} is not there or has no model after {show_seconds(_LEARN_WITHIN_S)}; "
                "start it with `distnet serve`, and rank 0 beside it or on any machine"
            )
        if now_s >= next_word_s:
            say(f"waiting for the server at {servers.address} to have its model, {show_seconds(now_s - began_s)}")
            next_word_s = now_s + (now_s - began_s)
        time.sleep(0.5)
    return workers


def parse_ranks(text: str) -> list[int]:
    """Return the ranks that ``"2-3"``, ``"0,4"`` or ``"0-1,6"`` names, in order.

    Raises:
        ConfigError: it names none, or one twice.
    """
    ranks: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:-(\d{1,9}))?\s*", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last or last - first >= most_workers("one"):
            raise ConfigError(f"--ranks is {text!r}; expected ranks such as 2-3 or 0,4")
        ranks.extend(range(first, last + 1))
    if len(set(ranks)) != len(ranks):
        raise ConfigError(f"--ranks {text} names a rank twice")
    return sorted(ranks)
