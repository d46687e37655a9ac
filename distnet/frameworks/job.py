"""The job that this process belongs to: its servers, found or started, and this process's client of them."""

from __future__ import annotations

import atexit
import dataclasses
import hashlib
import itertools
import logging
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from distnet._private import launcher_env
from distnet._private.arrays import ArraysLike
from distnet._private.launcher_env import Placement
from distnet.client import Client, connect
from distnet.errors import ConfigError, DistNetError, ManifestMismatch, RoundAborted
from distnet.frameworks.client_protocol import OptimizerClient
from distnet.optimizers import Group, Optimizer
from distnet.schedules import Schedule
from distnet.semantics import Semantics, resolve_semantics
from distnet.server import ParameterServer
from distnet.settings.grammar import as_text

__all__ = ["Job", "Store", "check_server", "join_job"]

_log = logging.getLogger("distnet")
_calls = itertools.count()  # the same on every rank, where all make the same calls
_GOOD, _FAILED = "at ", "failed: "
_SAY_AFTER_S, _WAITS_GROW_BY = 10.0, 3.0
_LONGEST_WAIT_S = 1800.0
_AFTER_AN_ABORT_S = 5.0  # in which the other ranks may hear why the rounds have ended, before the servers do
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.005, 0.5


class Store(Protocol):
    """Where rank 0 leaves a word for the others, such as PyTorch's store."""

    def set(self, key: str, value: str) -> None:
        """Leave a word."""

    def get(self, key: str) -> bytes:
        """Wait for a word, and return it."""


class Job:
    """This process's part of a job.

    It ends by :meth:`end`, or when the interpreter does: in order, or where an exception ends the program as a worker
    that died. Where rank 0 started the servers it waits at its end for all other ranks, and then stops them.

    Attributes:
        client: of the job's servers.
        placement: where this process stands in the job.

    Thread safety: one thread.
    """

    def __init__(self, client: Client, placement: Placement, server: ParameterServer | None) -> None:
        self.client, self.placement = client, placement
        self._server = server
        atexit.register(self.end)

    def end(self, error: BaseException | None = None) -> None:
        """Leave the job; a second call does nothing.

        Args:
            error: that ends this process's part. None: the exception that has ended the program, if one has.
        """
        atexit.unregister(self.end)
        server, self._server = self._server, None
        error = error or getattr(sys, "last_value", None)
        try:
            if error is not None:
                self.client.__exit__(type(error), error, error.__traceback__)
                if server is not None and isinstance(error, RoundAborted):
                    _wait_until_all_have_left(server, _AFTER_AN_ABORT_S)
            elif not self.client.closed:
                if server is not None:
                    self.client.finish()  # the servers are this process's: no rank needs them any more
                self.client.close()
                if server is not None:
                    _wait_until_all_have_left(server)
        except DistNetError as failure:
            _log.warning("rank %d left the job: %s", self.placement.rank, failure)
        finally:
            if server is not None:
                server.stop()


def _wait_until_all_have_left(server: ParameterServer, longest_s: float = _LONGEST_WAIT_S) -> None:
    """Wait until no worker has a session: a rank that has heard that all are done may still pull what came of it."""
    begun_s = time.monotonic()
    pause_s, say_after_s = _FIRST_PAUSE_S, _SAY_AFTER_S
    while ranks := [session.rank for session in server.stats().sessions if session.role == "worker"]:
        waited_s = time.monotonic() - begun_s
        if waited_s > longest_s:
            _log.warning("ranks %s have not left in %.0f s; the servers stop without them", ranks, waited_s)
            return
        if waited_s > say_after_s:
            say_after_s *= _WAITS_GROW_BY
            _log.warning("rank 0 has the servers, and waits (%.0f s) until ranks %s have left", waited_s, ranks)
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def join_job(
    parameters: ArraysLike,
    *,
    optimizer: Optimizer | None,
    groups: Mapping[str, Group] | None,
    semantics: str | Semantics | None,
    servers: int | None,
    store: Callable[[Placement], Store | None],
) -> Job:
    """Connect to the servers of the job that this process belongs to; where it has none, rank 0 starts some.

    What each process went by is written to its stderr.

    Args:
        parameters: of the model; rank 0's are used where the servers have none.
        optimizer: that rank 0 brings with them. None: it brings none.
        groups: what goes with the optimizer.
        semantics: of servers that are started; None: ``"sync"``. Where it is a name, or None, rounds end with a rank
            that is lost (``on_loss="abort"``).
        servers: how many are started; None: as many as the semantics needs at least.
        store: returns where the ranks leave words for each other; None: nowhere.

    Raises:
        ConfigError: the process belongs to no job, or servers cannot be found; servers that run already for another
            number of workers.
        ManifestMismatch: this rank's model is not rank 0's.
        DistNetError: what :func:`distnet.connect` raises.
    """
    placement = launcher_env.placement()
    server: ParameterServer | None = None
    address = placement.address
    if address is None:
        policy = _policy(semantics)
        meeting = _Meeting(placement, store(placement))
        if placement.rank == 0:
            server = meeting.start(policy, servers, optimizer, groups)
        address = meeting.address
    try:
        client = _connect(address, placement, parameters, optimizer, groups)
    except BaseException:
        if server is not None:
            server.stop()
        raise
    how = "started by rank 0" if placement.address is None else "that run already"
    held = client.server_optimizer
    steps = "each rank's own optimizer" if optimizer is None else held and _shown(held, client.server_groups)
    what = ", ".join(str(each) for each in (client.server_semantics, steps) if each is not None)
    sys.stderr.write(f"distnet: {placement}; servers {how}, at {address}; {what}\n")
    return Job(client, placement, server)


def _policy(semantics: str | Semantics | None) -> Semantics:
    """Return the semantics of servers that rank 0 starts.

    Nobody starts a lost rank again, and nobody reads in a log that rounds go on without it: by name, rounds end with
    it, as ``distnet run`` ends the job. A value says itself what becomes of them.
    """
    policy = resolve_semantics("sync" if semantics is None else semantics)
    if isinstance(semantics, Semantics) or policy.joins == "one":
        return policy
    return dataclasses.replace(policy, on_loss="abort")


def _connect(
    address: str,
    placement: Placement,
    parameters: ArraysLike,
    optimizer: Optimizer | None,
    groups: Mapping[str, Group] | None,
) -> Client:
    try:
        client = connect(address, placement.rank, parameters=parameters, optimizer=optimizer, groups=groups)
    except ManifestMismatch as error:
        whose = "the server's" if placement.rank == 0 else "rank 0's, or the server's"
        difference = str(error).partition("; pull() gives")[0]
        raise ManifestMismatch(
            f"rank {placement.rank}'s model is not {whose}: {difference}; build the same model on every rank"
        ) from None
    if client.workers != placement.size:
        theirs = client.workers
        wrong = ConfigError(
            f"this is {placement}, but the server at {address} expects {theirs} workers: start it with --workers "
            f"{placement.size}"
        )
        client.__exit__(ConfigError, wrong, None)  # no orderly end: the server goes on waiting for this rank
        raise wrong
    return client


def check_server(
    client: OptimizerClient,
    *,
    optimizer: Optimizer | None,
    groups: Mapping[str, Group] | None,
    semantics: str | Semantics | None,
    servers: int | None,
    started: bool = False,
) -> None:
    """Raise ConfigError unless the server is as a rank says.

    Args:
        client: of the server.
        optimizer: that the server must have, but for the learning rate, which comes with each push. None: any.
        groups: what goes with the optimizer.
        semantics: that the server must have; None: any.
        servers: how many shards it must have; None: any number.
        started: whether rank 0 has started it, with its own optimizer.
    """
    held, held_groups = client.server_optimizer, client.server_groups
    held_semantics = client.server_semantics
    if semantics is not None and held_semantics is not None:
        wanted = resolve_semantics(semantics)
        if _kind_of(wanted) != _kind_of(held_semantics):
            raise ConfigError(
                f"semantics is {wanted} here, and the server has {held_semantics}: say the same, or None here"
            )
    if servers is not None and servers != len(client.versions):
        raise ConfigError(
            f"servers is {servers} here, and the server has {len(client.versions)} shards: say the same, or None here"
        )
    if optimizer is None or held is None:
        return
    if isinstance(held.learning_rate, Schedule):
        raise ConfigError(
            f"the server has the schedule {as_text(held.learning_rate)}, which would never count: the "
            "learning rate of this rank's optimizer comes with each push. Start the server without a schedule"
        )
    ours, theirs = _comparable(optimizer, groups or {}), _comparable(held, held_groups)
    if ours != theirs:
        elsewhere = "" if started else "start the server without one, which then takes rank 0's, and "
        raise ConfigError(
            f"the server has the optimizer {_shown(held, held_groups)}, and this rank's is "
            f"{_shown(optimizer, groups or {})}: {elsewhere}give all ranks the same optimizer"
        )


def _kind_of(semantics: Semantics) -> tuple[str, ...]:
    return (semantics.joins, semantics.replies, semantics.guard, semantics.reduction)


def _comparable(optimizer: Optimizer, groups: Mapping[str, Group]) -> object:
    return dataclasses.replace(optimizer, learning_rate=0.0), list(groups.items())


def _shown(optimizer: Optimizer, groups: Mapping[str, Group]) -> str:
    return " with ".join([as_text(optimizer), *(f"{pattern}={as_text(group)}" for pattern, group in groups.items())])


class _Meeting:
    """How the ranks of a job without servers find those that rank 0 starts."""

    def __init__(self, placement: Placement, store: Store | None) -> None:
        self._placement, self._store = placement, store
        self._key = f"distnet/servers/{next(_calls)}"
        self._address: str | None = None
        if store is None and not (placement.one_host and placement.job is not None):
            raise ConfigError(
                f"this is {placement}, and there is no server: rank 0 can start one where all ranks can hear of it. "
                "Set MASTER_ADDR and MASTER_PORT, to rank 0's host and a port that is free there, the same on all "
                "ranks; or start `distnet serve`, and set DISTNET_ADDRESS to its address"
            )

    def start(
        self,
        semantics: Semantics,
        servers: int | None,
        optimizer: Optimizer | None,
        groups: Mapping[str, Group] | None,
    ) -> ParameterServer:
        """Start servers as processes of this one, and let all ranks hear of them."""
        try:
            server = ParameterServer(
                semantics=semantics,
                servers=servers,
                optimizer=optimizer,
                groups=groups,
                workers=self._placement.size,
                processes=True,
                **self._where(),
            ).start()
        except Exception as error:
            self._say(f"{_FAILED}{error}")
            raise
        self._address = server.local_address if self._placement.one_host else server.address
        self._say(f"{_GOOD}{self._address}")
        return server

    @property
    def address(self) -> str:
        """Where the servers are; waits until rank 0 has said so."""
        if self._address is not None:
            return self._address
        if self._store is None:
            return self._name
        said = self._store.get(self._key).decode()
        if not said.startswith(_GOOD):
            raise ConfigError(f"rank 0 could not start the servers: {said.removeprefix(_FAILED)}")
        return said.removeprefix(_GOOD)

    @property
    def _name(self) -> str:
        """An address on this host that all ranks of the job can work out for themselves."""
        name = hashlib.sha256(f"{self._placement.job}/{self._key}".encode()).hexdigest()
        return f"shm://job-{name[:32]}"

    def _where(self) -> dict[str, Any]:
        if self._placement.one_host:
            return {"address": "shm://" if self._store is not None else self._name}
        master = self._placement.master
        elsewhere = {} if master is None else {"advertise": master.address}
        return {"address": "tcp://0.0.0.0:0", **elsewhere}

    def _say(self, word: str) -> None:
        if self._store is not None:
            self._store.set(self._key, word)
