"""All ranks of a job, for what they do together beside pushes: to meet, and to join arrays that are no parameters."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from distnet.errors import ConfigError, DistNetError, PeerClosed, RoundAborted
from distnet.process_group import ProcessGroup
from distnet.semantics import Semantics
from distnet.stats import ShardStatistics

__all__ = ["Departed", "Ranks", "RanksClient", "averaged"]

_log = logging.getLogger("distnet")
_FORMED_WITHIN_S = 30.0  # all ranks have met at the server before they form a group
Made = TypeVar("Made")
AnyArrays = Sequence[NDArray[Any]]


class Departed(ConfigError):
    """A rank has left the job in order, and so comes to no meeting."""


class RanksClient(Protocol):
    """What is needed of a client."""

    rank: int | None
    address: str

    @property
    def workers(self) -> int: ...
    @property
    def server_semantics(self) -> Semantics | None: ...
    def barrier(self, *, timeout: float | None = None) -> None: ...
    def stats(self) -> list[ShardStatistics]: ...


class Ranks:
    """The ranks that push to a server, in a group of their own beside it.

    A meeting is a barrier at the server first: it knows who is gone, who has ended, and who waits for a round instead,
    and says so at once to all. Arrays then go from rank to rank. The group is formed at the first meeting, and anew
    after :meth:`close`.

    Where the job goes on without a rank that is lost (a semantics other than a round that such a loss ends), a loss is
    told once, and this rank is by itself from then on: meetings are over at once, and arrays joined with none.

    Args:
        client: of the server.
        name: of the group, the same on all ranks.
        alone: whether this rank is by itself from the beginning.

    Thread safety: none.
    """

    def __init__(self, client: RanksClient, name: str, *, alone: bool = False) -> None:
        self._client, self._name = client, name
        self._group: ProcessGroup | None = None
        self._sessions: dict[int, int] = {}  # rank → incarnation, of those that formed the group
        self.rank = client.rank or 0
        self.size = 1 if alone else max(client.workers, 1)

    @property
    def alone(self) -> bool:
        """Whether this rank is by itself, although there are others."""
        return self.size < self._client.workers

    def meet(self, where: str, **said: Any) -> list[Mapping[str, Any]]:
        """Wait until all ranks are here, and hear what each has to say.

        Args:
            where: this rank is, such as ``"the end of epoch 3"``: all must be at the same place.
            said: what the others hear, such as JSON holds.

        Returns:
            What each rank said, by rank.

        Raises:
            ConfigError: ranks are at different places; all hear who is where.
            Departed: a rank has left the job.
            PeerClosed: a rank, which is named, was lost.
            RoundAborted: other ranks wait for this one in a round of pushes.
            DistNetError: what the client or the group raises.
        """
        if self.size == 1:
            return [said]
        texts = self._together(where, lambda: self._gathered({"where": where, **said}))
        if texts is None:
            return [said]
        heard = [json.loads(text) for text in texts]
        places = [each.pop("where") for each in heard]
        if len(set(places)) > 1:
            self.close()  # in order, so that all hear this
            by_rank = "; ".join(f"rank {rank} is at {place}" for rank, place in enumerate(places))
            raise ConfigError(f"ranks are at different places: {by_rank}. Call the same on every rank")
        return heard

    def sum(self, array: NDArray[Any]) -> NDArray[Any]:
        """Return the sum over all ranks, the same bits on each; raises as :meth:`meet` does."""
        return self._joined(array, lambda group: group.allreduce(array, "sum"))

    def average(self, arrays: AnyArrays) -> list[NDArray[Any]]:
        """Return the mean over all ranks of each array; raises as :meth:`meet` does."""
        return self._joined(list(arrays), lambda group: averaged(group, arrays))

    def broadcast(self, arrays: AnyArrays) -> list[NDArray[Any]]:
        """Return rank 0's arrays, of the same shapes and dtypes on all ranks; raises as :meth:`meet` does."""
        return self._joined(list(arrays), lambda group: [group.broadcast(array, root=0) for array in arrays])

    def close(self) -> None:
        """Leave the others in order; the next meeting finds them anew."""
        group, self._group = self._group, None
        if group is not None:
            group.close()

    def abandon(self, error: BaseException) -> None:
        """Leave the others as one that is lost: those that wait for this rank hear of it at once."""
        group, self._group = self._group, None
        if group is not None:
            group.__exit__(type(error), error, error.__traceback__)

    def _gathered(self, said: Mapping[str, Any]) -> list[str]:
        if self._group is not None:
            self._check_sessions()
        self._client.barrier()
        if self._group is None:
            self._check_presence()
            self._group = ProcessGroup(
                self._client.address, self.rank, self.size, name=self._name, timeout=_FORMED_WITHIN_S
            )
        own = np.frombuffer(json.dumps(said).encode(), np.uint8)
        return [each.tobytes().decode() for each in self._group.allgather(own)]

    def _joined(self, own: Made, operation: Callable[[ProcessGroup], Made]) -> Made:
        group = self._group
        if self.size == 1 or group is None:
            return own
        result = self._together("an exchange of state", lambda: operation(group))
        return own if result is None else result

    def _together(self, where: str, operation: Callable[[], Made]) -> Made | None:
        """Return what an operation of all ranks does; None where this rank is by itself from now on."""
        try:
            return operation()
        except RoundAborted as error:
            if "in round" not in str(error):
                raise RoundAborted(f"rank {self.rank} is at {where}, and {error}") from error
            raise RoundAborted(
                f"rank {self.rank} is at {where}, and others wait for its push: {error}. Give every rank equally many "
                "steps"
            ) from error
        except PeerClosed as error:
            if departed := self._departed():
                self.close()
                raise Departed(f"rank {self.rank} is at {where}, and {_named(departed)} left the job") from error
            if self._loss_ends_rounds():
                raise PeerClosed(
                    f"rank {self.rank} is at {where}, and waits for a rank that is lost: {error}"
                ) from error
            self._be_alone(error)
            return None
        except DistNetError as error:
            raise type(error)(f"rank {self.rank} is at {where}, and {error}") from error

    def _check_presence(self) -> None:
        """Raise PeerClosed where a rank has gone: the barrier is not for it, and it joins no group."""
        self._sessions = self._present()
        if missing := sorted(set(range(self.size)) - set(self._sessions)):
            raise PeerClosed(f"{_named(missing)} gone")

    def _check_sessions(self) -> None:
        """Raise PeerClosed where a rank was started again: it is by itself, and comes to no barrier."""
        now = self._present()
        if again := [rank for rank, session in self._sessions.items() if now.get(rank, session) != session]:
            raise PeerClosed(f"{_named(again)} been started again")

    def _departed(self) -> list[int]:
        """Return the ranks that have ended in order and not come back."""
        try:
            newest = {ended.rank: ended.how for ended in self._client.stats()[0].ended}
            return sorted({rank for rank, how in newest.items() if how == "done"} - set(self._present()))
        except DistNetError:
            return []

    def _present(self) -> dict[int, int]:
        sessions = self._client.stats()[0].sessions
        return {session.rank: session.incarnation for session in sessions if session.rank is not None}

    def _loss_ends_rounds(self) -> bool:
        semantics = self._client.server_semantics
        return semantics is None or (semantics.joins == "all" and semantics.on_loss == "abort")

    def _be_alone(self, error: DistNetError) -> None:
        self.abandon(error)
        self.size = 1
        _log.warning(
            "rank %d goes on without a rank that is lost (%s); metrics and state are this rank's alone from here on",
            self.rank,
            error,
        )


def _named(ranks: Sequence[int]) -> str:
    return f"rank {ranks[0]} has" if len(ranks) == 1 else f"ranks {', '.join(map(str, ranks))} have"


def averaged(group: ProcessGroup, arrays: AnyArrays) -> list[NDArray[Any]]:
    """Return the mean of each array over a group's ranks; nothing is changed where this raises.

    Raises:
        DistNetError: what :meth:`distnet.ProcessGroup.allreduce` raises.
    """
    works = [group.begin_allreduce(array, "average") for array in arrays]
    return [work.wait() for work in works]
