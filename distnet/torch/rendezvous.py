"""How the ranks of a group of ``torch.distributed`` come together.

Every group of PyTorch is a group of the engine. Under ``distnet run`` the job's server has the coordinator, and learns
so that the workers have come together. Elsewhere a group has one of its own, in the process of its rank 0. Each rank
writes into PyTorch's store that it is there, and rank 0 where its coordinator is, or why there is none. The engine is
asked once all are there, so its own timeout need not be as long as PyTorch's.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import logging
import socket
import threading
from typing import Any

import torch.distributed as dist

from distnet import _native
from distnet._private import launcher_env
from distnet.errors import ConfigError, ConnectError, DeadlineExceeded, DistNetError

__all__ = ["Membership", "host_for_others"]

_LOOPBACK = "127.0.0.1"
_SILENCE_S = 30.0  # after which a member counts as lost; one that computes is answered for by the engine
_PATIENCE_S = 10.0  # that a coordinator goes on after its rank 0 has left, for the others to leave as well
_FAILED = "failed: "
_HERE = "here"
_OF_THE_JOB = "at the server of distnet run"
_log = logging.getLogger("distnet")


class Membership:
    """This process's membership in one group, and the coordinator where this is its rank 0.

    Args:
        store: of the group: what one rank sets there, all others see.
        rank: in the group.
        size: of the group.
        timeout_s: in which all ranks must be there.
        name: of the group.
        transport: as the engine takes it.

    Raises:
        DeadlineExceeded: not all ranks came in time; it names those that are missing.
        DistNetError: rank 0 cannot host the coordinator, or the ranks do not fit together; the same on all of them.
    """

    def __init__(self, store: Any, rank: int, size: int, *, timeout_s: float, name: str, transport: str) -> None:
        self._coordinator: Any = None
        # The store may outlive a group: the next one of the same name in it must not find what the last one said.
        turn = store.add(f"distnet/turns/{rank}", 1)
        keys = [f"distnet/{turn}/{number}" for number in range(size)]
        try:
            store.set(keys[rank], self._hosted(store, keys[0]) if rank == 0 else _HERE)
            _wait_for_all(store, keys, name, timeout_s)
            address, name = _place(store, keys[0], name)
            self.native = _native.ProcessGroup(address, name, rank, size, _SILENCE_S, transport, _Log())
        except BaseException:
            self._stop_coordinator()
            raise

    def _hosted(self, store: Any, key: str) -> str:
        """Return where the coordinator is, and start it unless there is one; where that fails, the others hear why."""
        if _server_of_the_job() is not None:
            return _OF_THE_JOB
        try:
            self._coordinator = _native.GroupCoordinator(f"tcp://{host_for_others(store)}:0")
        except DistNetError as error:
            store.set(key, f"{_FAILED}{error}")
            raise
        return str(self._coordinator.address)

    def close(self) -> None:
        """Leave the group in order."""
        try:
            self.native.close()
        finally:
            self._stop_coordinator()

    def abandon(self) -> None:
        """Leave at once: operations under way fail, here and at the other ranks."""
        try:
            self.native.abandon()
        finally:
            self._stop_coordinator()

    def _stop_coordinator(self) -> None:
        """Have the coordinator end once the others have left, too: they may use other groups in the meantime."""
        coordinator, self._coordinator = self._coordinator, None
        if coordinator is not None:
            _ending[:] = [thread for thread in _ending if thread.is_alive()]
            thread = threading.Thread(target=coordinator.stop, args=(_PATIENCE_S,), name="ends a group", daemon=True)
            thread.start()
            _ending.append(thread)


_ending: list[threading.Thread] = []


@atexit.register
def _wait_for_ends() -> None:
    """Let coordinators end before the interpreter does."""
    for thread in _ending:
        thread.join()


class _Log:
    """Says in the log whom a wait of the engine is for."""

    def heard(self, why: str) -> None:
        _log.warning("%s", why)


def _wait_for_all(store: Any, keys: list[str], name: str, timeout_s: float) -> None:
    try:
        store.wait(keys, datetime.timedelta(seconds=timeout_s))
    except RuntimeError as error:  # of PyTorch: no class of the store's own in all versions
        try:
            missing = [str(rank) for rank, key in enumerate(keys) if not store.check([key])]
        except RuntimeError:
            missing = []
        if not missing:
            raise ConnectError(f"the store of PyTorch's group {name!r} failed: {error}") from None
        raise DeadlineExceeded(
            f"PyTorch's group {name!r} waited {timeout_s:.0f} s for rank {', '.join(missing)} of its {len(keys)}; "
            "start all ranks, or give a longer timeout"
        ) from None


def _place(store: Any, key: str, name: str) -> tuple[str, str]:
    """Return where the coordinator is, and by what name it knows the group that PyTorch calls ``name``."""
    address: str = store.get(key).decode(errors="replace")
    if address.startswith(_FAILED):
        raise ConnectError(f"rank 0 cannot host the group's coordinator: {address.removeprefix(_FAILED)}")
    if address != _OF_THE_JOB:
        return address, name
    server = _server_of_the_job()
    if server is None:
        raise ConfigError("rank 0 of the group was started by `distnet run`, and this rank was not: start all alike")
    return server, f"torch/{name}"  # beside groups of distnet.ProcessGroup


def _server_of_the_job() -> str | None:
    """Return the address of the server of ``distnet run``; None: another launcher started this process."""
    launched = launcher_env.launched()
    if launched is None or launcher_env.placement().by != "distnet run":
        return None
    return launched.address.partition(",")[0]


def host_for_others(store: Any) -> str:
    """Return the address of this host by which the other ranks find it.

    That is the one from which this host reaches PyTorch's store, since all ranks reach that. Where the store is none
    of the network, it is the address of this host's name.
    """
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    if isinstance(store, dist.TCPStore):
        with contextlib.suppress(OSError):
            return _source_towards(store.host, store.port)
    with contextlib.suppress(OSError):
        found: str = socket.gethostbyname(socket.gethostname())
        return found
    return _LOOPBACK


def _source_towards(host: str, port: int) -> str:
    """Return the local address of packets to a host; none is sent."""
    family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)
        found: str = probe.getsockname()[0]
        return f"[{found}]" if family == socket.AF_INET6 else found
