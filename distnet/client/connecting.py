"""How a worker comes to its server."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from typing import Any

from distnet import _native
from distnet._private import launcher_env
from distnet._private.addresses import check_address
from distnet._private.arrays import Array, ParametersLike, named_parameters
from distnet._private.bounds import MOST_RANK, check_seconds
from distnet._private.stop_flag import StopFlag, check_stop_flag
from distnet._private.waiting import Waiting
from distnet.checkpoint.arguments import arguments_to_spec
from distnet.client.client import Client
from distnet.client.notices import warn_of_notices
from distnet.errors import ConfigError, ManifestMismatch, TransportError
from distnet.optimizers import Group, Optimizer
from distnet.schedules import Schedule
from distnet.shards.settings import check_optimizer, checked_groups, groups_to_spec
from distnet.tuning import Tuning

__all__ = ["connect"]

_NO_MODEL = "rank 0 brings the model, connect(parameters=...), with the initial values of all tensors"


def connect(
    address: str | None = None,
    rank: int | None = None,
    *,
    timeout: float = 30.0,
    connect_timeout: float = 300.0,
    transport: str = "auto",
    parameters: ParametersLike | None = None,
    optimizer: Optimizer | None = None,
    groups: Mapping[str, Group] | None = None,
    tuning: Tuning | None = None,
    stop: StopFlag | None = None,
) -> Client:
    """Connect to a parameter server, which may start later than this worker.

    What can heal by itself is waited for: nobody listens at the address, its host is not known yet, a connection breaks
    off, the server is at a limit, or has no model because rank 0 is late. The logger ``distnet`` says after 2 s what is
    waited for, and again at growing intervals, as a warning. Everything else is raised at once.

    Args:
        address: what ``server.address`` or ``distnet serve`` says; the first endpoint is enough. None: the server
            that ``distnet run`` started this script beside.
        rank: this worker's number, from 0. None: the rank ``distnet run`` gave this process, else an observer, which
            pulls but never pushes and takes part in no round. In a synchronous job a new session of a rank replaces the
            old one, whose next call raises :class:`~distnet.Fenced`. Otherwise a rank is a label: two live
            sessions of one rank both go on and are both warned, and a session is replaced only where it was silent,
            where its process is gone, or where the environment variable ``DISTNET_START`` of the new one is higher.
        timeout: seconds of silence after which either end gives the other up. A server that is slow but alive answers
            heartbeats and is waited for, and a transfer takes as long as it takes. Once connected it is at least a
            second and at most an hour: the server takes the nearest value, and :attr:`Client.timeout` says which.
        connect_timeout: seconds, 0 or above, in which the server and its model must be there; a model that is on its
            way is waited for as long as it takes. 0: there is one attempt, which ``timeout`` bounds. It does not count
            any more once this has returned: a server that is lost later is the matter of ``timeout``.
        transport: ``"auto"`` takes shared memory where the server proves to be on this host, else TCP; ``"shm"`` and
            ``"tcp"`` insist.
        parameters: initial values for a server that was started without: a list of arrays or ``{name: array}``, taken
            from rank 0, and only once. A server holds float32; float16, bfloat16 and float64 are cast to it. Other
            ranks may pass them too: they are ignored, and so are rank 0's where the server has a model already.
        optimizer: that goes with ``parameters``, for a server that was started without one: it has one learning rate,
            not a schedule. A server that has an optimizer keeps it; :attr:`Client.server_optimizer` says which counts.
        groups: what goes with ``optimizer``, as :class:`distnet.ParameterServer` takes it.
        tuning: which of this end's fast paths to take; the default is all.
        stop: a :class:`threading.Event`, or another object with ``is_set()``. While it is set, a wait of this function
            or of a call of the client ends within a fraction of a second, as by Ctrl-C, but on whichever thread it is,
            by :class:`~distnet.Interrupted`. Calls that need not wait go on. The client is usable once the flag is
            cleared: a push that was broken off settles once, applied or not. None: only Ctrl-C ends waits, and only
            those of the main thread.

    Returns:
        A client that has the model's manifest and no parameters yet; :meth:`Client.pull` brings them.

    Raises:
        ConnectError: nobody listened at the address within ``connect_timeout``.
        DeadlineExceeded: no answer in that time, or nobody brought the parameters.
        TransportError: the server went away, or had no room, all that time.
        ProtocolError: the server speaks another version of the protocol, or is no DistNet server.
        Unauthorized: the server runs as another user.
        Interrupted: ``stop`` was set.
        ConfigError: the address is none, or ``parameters`` are empty; in a synchronous job also a rank out of range;
            this is rank 0 of ``distnet run``, brings no ``parameters``, and the server has no model; a launcher started
            this process for another number of workers than the server expects.
        ManifestMismatch: ``parameters`` are no arrays of floats, hold values that float32 cannot, or are not those of
            the server's model.

    Warns:
        DistNetWarning: what is probably not meant, such as a rank beyond the server's ``workers=`` or one that another
            live worker has, too. Calls of the client warn of what the server noticed later.

    Thread safety: any thread.

    Example:
        >>> model = [np.ones(2, np.float32)]
        >>> with distnet.ParameterServer(workers=1) as server:  # rank 0 brings the model
        ...     with distnet.connect(server.address, rank=0, parameters=model) as client:
        ...         client.transport, client.workers, client.pull()[0].tolist()
        ('shm', 1, [1.0, 1.0])
    """
    start = launcher_env.start_number()
    launched = launcher_env.launched() if address is None else None
    if launched is not None:
        address, rank = launched.address, launched.rank if rank is None else rank
    if address is None:
        raise ConfigError("connect() needs an address, unless `distnet run` started this process")
    check_address("address", address, several=True)
    check_seconds("timeout", timeout, above_zero=True)
    check_seconds("connect_timeout", connect_timeout)
    check_stop_flag("stop", stop)
    if rank is not None:
        _check_rank(rank)
    named, initial = named_parameters(parameters) if parameters is not None else (False, [])
    if parameters is not None and not initial:
        raise ConfigError("parameters= holds no array; pass at least one, or None where another client brings them")
    brings = initial if rank in (0, None) else []
    spec = (tuning or Tuning()).to_spec()
    brought = _brought(optimizer, groups)
    who = "an observer" if rank is None else f"rank {rank}"
    no_model = _NO_MODEL if rank == 0 and not initial else None
    waiting = Waiting(who, address, connect_timeout, no_model=no_model, nobody_else=launched is not None, stop=stop)
    native: _native.Client | None = None
    while native is None:
        try:
            native = _native.Client(
                address, rank, timeout, transport, named, brings, spec, start, 0, waiting, brought, stop
            )
        except TransportError as error:
            waiting.after(error)
    if launched is not None:
        _check_workers(native, address, launched.workers)
    client = Client(native, rank, address)
    if parameters is not None:
        _check_model(client, named, initial)
    warn_of_notices(native)
    return client


def _brought(optimizer: Optimizer | None, groups: Mapping[str, Group] | None) -> dict[str, Any] | None:
    """Return what a client says of the optimizer that it brings; None: it brings none."""
    if optimizer is None:
        if groups:
            raise ConfigError("groups= goes with optimizer=; pass both, or neither")
        return None
    check_optimizer(optimizer)
    if isinstance(optimizer.learning_rate, Schedule):
        raise ConfigError(
            "optimizer= has a schedule; a client brings one with a learning rate that is a number. Start the server "
            "with the schedule, or say the rate with each push"
        )
    checked = checked_groups(groups or {})
    text = json.dumps(arguments_to_spec({"optimizer": optimizer, "groups": checked}))
    return {**optimizer.to_spec(), "text": text, "groups": groups_to_spec(checked, optimizer)}


def _check_rank(rank: object) -> None:
    if isinstance(rank, bool) or not hasattr(rank, "__index__") or not 0 <= rank.__index__() <= MOST_RANK:
        raise ConfigError(f"rank is {rank!r}; expected a whole number, 0 or above")


def _check_workers(native: _native.Client, address: str, expected: int) -> None:
    """Refuse a server of a job of another size, before anything is pushed to it."""
    if native.workers != expected:
        theirs = native.workers
        native.abandon()  # no orderly end: the server goes on waiting for a worker of this rank
        raise ConfigError(
            f"this is one of {expected} workers, but the server at {address} expects {theirs}: give both the same "
            "--workers"
        )


def _check_model(client: Client, named: bool, initial: list[tuple[str, Array]]) -> None:
    """Close a client whose server has another model than the one that was given, and raise ManifestMismatch."""
    manifest = client._manifest
    given = {name: array.shape for name, array in initial}
    held = dict(zip(manifest.names, manifest.shapes, strict=True))
    if named == manifest.named and given == held:
        return
    with contextlib.suppress(TransportError):  # the server has gone meanwhile: the caller's mistake stays one
        client._native.close()  # in order, because abandon() would be the death of a worker
    difference = next((name for name in {**held, **given} if held.get(name) != given.get(name)), "")
    if named != manifest.named:
        here = "is a list, and `parameters` have names" if named else "has names, and `parameters` are a list"
    else:
        here = f"has {_shown(held, difference)}, and `parameters` have {_shown(given, difference)}"
    raise ManifestMismatch(
        f"`parameters` are not the model that the server holds: that {here}; pull() gives the server's, or start "
        "another server"
    )


def _shown(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return f"{name!r} of shape {shapes[name]}" if name in shapes else f"no tensor {name!r}"
