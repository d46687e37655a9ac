"""How a member comes to its group: what it has to say, from its arguments or from the launcher."""

from __future__ import annotations

import dataclasses
import hashlib
import logging

from distnet import _native
from distnet._private import launcher_env
from distnet._private.addresses import check_address
from distnet._private.bounds import MOST_GROUP_NAME_BYTES, MOST_MEMBERS, check_seconds, check_whole
from distnet._private.collective_arguments import check_name
from distnet._private.stop_flag import StopFlag, check_stop_flag
from distnet.errors import ConfigError

__all__ = ["Joining", "name_of", "resolve_place"]

_log = logging.getLogger("distnet")


def resolve_place(address: str | None, rank: int | None, size: int | None) -> tuple[str, int, int]:
    """Return address, rank and size of a member; what is None is what ``distnet run`` gave this process.

    Raises:
        ConfigError: something is missing, and no launcher gave it.
    """
    launched = launcher_env.launched() if address is None else None
    if launched is not None:
        address = launched.address.partition(",")[0]
        rank = launched.rank if rank is None else rank
        size = launched.workers if size is None else size
    if address is None or rank is None or size is None:
        raise ConfigError(
            "ProcessGroup() needs an address, a rank and a size, unless `distnet run` started this process"
        )
    return address, rank, size


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joining:
    """What a member says as it comes; :class:`distnet.ProcessGroup` describes the fields.

    Raises:
        ConfigError: a value is out of range.
    """

    address: str
    rank: int
    size: int
    timeout: float
    name: str
    transport: str
    operation_timeout: float
    stop: StopFlag | None

    def __post_init__(self) -> None:
        check_address("address", self.address, several=True)
        check_whole("size", self.size, 1, MOST_MEMBERS)
        check_whole("rank", self.rank, 0, self.size - 1)
        check_seconds("timeout", self.timeout, above_zero=True)
        check_seconds("operation_timeout", self.operation_timeout, above_zero=True)
        check_stop_flag("stop", self.stop)
        check_name(self.name)
        if self.transport not in ("auto", "shm", "tcp"):
            raise ConfigError(f"transport is {self.transport!r}; expected 'auto', 'shm' or 'tcp'")

    def join(self) -> _native.ProcessGroup:
        """Wait until all members are there; return this one's end of the group."""
        address = self.address.partition(",")[0]
        return _native.ProcessGroup(
            address, self.name, self.rank, self.size, float(self.timeout), self.transport, _Words(), self.stop
        )


def name_of(text: str) -> str:
    """Return a name for a group, which is the same on all ranks; of a text that is too long, a digest."""
    if len(text.encode()) <= MOST_GROUP_NAME_BYTES:
        return text
    return hashlib.sha256(text.encode()).hexdigest()


class _Words:
    """Says what a wait waits for, once it has lasted for ten seconds."""

    def heard(self, why: str) -> None:
        _log.warning("%s", why)
