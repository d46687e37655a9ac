"""A worker's end: one gradient in, fresh parameters out."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Mapping
from types import TracebackType

from distnet import _native
from distnet._private import launcher_env
from distnet._private.addresses import check_address
from distnet._private.arrays import Array, Arrays, ArraysLike, named_arrays
from distnet._private.bounds import MOST_RANK, check_seconds
from distnet._private.gathering import wait_for_all_ranks
from distnet._private.manifest import Manifest
from distnet._private.waiting import Waiting
from distnet.errors import ConfigError, DistNetWarning, ManifestMismatch, TransportError
from distnet.schedules import check_number
from distnet.stats import ShardStatistics
from distnet.tuning import Tuning

__all__ = ["Client", "Handle", "connect"]

_NO_MODEL = "rank 0 brings the model, connect(parameters=...), with the initial values of all tensors"


def connect(
    address: str | None = None,
    rank: int | None = None,
    *,
    timeout: float = 30.0,
    connect_timeout: float = 300.0,
    transport: str = "auto",
    parameters: ArraysLike | None = None,
    tuning: Tuning | None = None,
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
        parameters: initial values for a server that was started without: a list of float32 arrays or ``{name: array}``,
            taken from rank 0, and only once. Other ranks may pass them too: they are ignored, and so are rank 0's where
            the server has a model already.
        tuning: which of this end's fast paths to take; the default is all.

    Returns:
        A client that has the model's manifest and no parameters yet; :meth:`Client.pull` brings them.

    Raises:
        ConnectError: nobody listened at the address within ``connect_timeout``.
        DeadlineExceeded: no answer in that time, or nobody brought the parameters.
        TransportError: the server went away, or had no room, all that time.
        ProtocolError: the server speaks another version of the protocol, or is no DistNet server.
        Unauthorized: the server runs as another user.
        ConfigError: the address is none, or ``parameters`` are empty; in a synchronous job also a rank out of range;
            this is rank 0 of ``distnet run``, brings no ``parameters``, and the server has no model; a launcher started
            this process for another number of workers than the server expects.
        ManifestMismatch: ``parameters`` are not float32 arrays, or not those of the server's model.

    Warns:
        DistNetWarning: what is probably not meant, such as a rank beyond the server's ``workers=`` or one that another
            live worker has, too. Calls of the client warn of what the server noticed later.

    Thread safety: any thread; the client it returns is for one thread.

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
    if rank is not None:
        _check_rank(rank)
    named, initial = named_arrays(parameters) if parameters is not None else (False, [])
    if parameters is not None and not initial:
        raise ConfigError("parameters= holds no array; pass at least one, or None where another client brings them")
    brings = initial if rank in (0, None) else []
    spec = (tuning or Tuning()).to_spec()
    who = "an observer" if rank is None else f"rank {rank}"
    no_model = _NO_MODEL if rank == 0 and not initial else None
    waiting = Waiting(who, address, connect_timeout, no_model=no_model, nobody_else=launched is not None)
    native: _native.Client | None = None
    while native is None:
        try:
            native = _native.Client(address, rank, timeout, transport, named, brings, spec, start, 0, waiting)
        except TransportError as error:
            waiting.after(error)
    if launched is not None:
        _check_workers(native, address, launched.workers)
    client = Client(native, rank)
    if parameters is not None:
        client._check_model(named, initial)
    _warn_of_notices(native)
    return client


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


def _warn_of_notices(native: _native.Client, depth: int = 1) -> None:
    """Warn of what the server noticed, in the name of the code that is `depth` calls above the one that calls this."""
    for notice in native.notices():
        warnings.warn(notice, DistNetWarning, stacklevel=2 + depth)


class Handle:
    """A push_pull in flight; :meth:`wait` collects its parameters.

    A handle that is dropped gives its parameters up: the push counts as ever, and the client goes on.

    Thread safety: :meth:`wait` from the client's thread; any thread may drop it.

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


class Client:
    """One worker's session with all shards of a server; :func:`connect` makes it.

    Arrays that it returns belong to it and are overwritten by its next pull; ``out=`` chooses others. Gradients are
    lists (or dicts, in any order, where the server was given a dict) of float32 arrays of the model's shapes, and may
    be overwritten once the call returns. C-contiguous arrays of NumPy are used where they are; what else NumPy can see
    as float32 without a guess is taken, too, and copied where need be: other orders and strides, scalars, PyTorch's
    tensors on the CPU. Arrays for ``out=`` are C-contiguous ones of NumPy.

    Every call raises :class:`~distnet.PeerClosed` where the server is gone,
    :class:`~distnet.DeadlineExceeded` where it was silent for the timeout, :class:`~distnet.Fenced`
    where a newer session of this rank took over, and obeys Ctrl-C. After any of them, and after an error of the call's
    own, the client either goes on or is :attr:`closed`; a push that was broken off is settled once, applied or not,
    before the next one. A call that waits is refused with :class:`~distnet.ConfigError` while a handle is out, before
    anything is sent. Calls warn (:class:`~distnet.DistNetWarning`) of what the server noticed meanwhile.

    In a ``with`` block it is closed in order at the end. Where an exception ends the block it is not, and the server
    counts the worker as died.

    Attributes:
        rank: this worker's number; None for an observer.

    Thread safety: one thread a client; a handle may be dropped by any thread. Not usable after a fork.

    Example:
        >>> model = {"w": np.zeros(2, np.float32)}
        >>> with distnet.ParameterServer(model, semantics="sync", workers=1) as server:
        ...     with distnet.connect(server.address, rank=0) as client:
        ...         for step in range(3):
        ...             fresh = client.push_pull({"w": np.ones(2, np.float32)})
        ...         client.version, client.applied, client.round
        (3, 3, 3)
    """

    def __init__(self, native: _native.Client, rank: int | None) -> None:
        self._native = native
        self._finished = False
        self.rank = rank
        self._manifest = Manifest.of_engine(native.manifest())
        self._flat = self._manifest.flat
        self._arrays: Arrays = self._manifest.structured(native.own_arrays())

    def pull(self, *, ema: bool = False, out: ArraysLike | None = None, alias: bool = False) -> Arrays:
        """Return the parameters, or their exponential moving average (EMA); a pull joins no round.

        Args:
            ema: return the EMA.
            out: writable arrays of the model's shapes, float32, to write to and return: a list or ``{name: array}``.
                None: the client's own arrays.
            alias: return read-only views of the server's own memory where that can be mapped (one shard, shared
                memory), valid until this client's next call; a copy elsewhere. From a lock-free server they change
                while you look.

        Returns:
            Float32 arrays in the model's shapes, a list, or ``{name: array}`` where the server was given that.

        Raises:
            ConfigError: the server keeps no EMA.
            ManifestMismatch: ``out`` are other arrays than those.
        """
        self._check_destination(out)
        number = self._native.begin("pull_ema" if ema else "pull", None, out is None and not alias, True)
        return self._finish(number, out, alias=alias)

    def push_pull(self, gradients: ArraysLike, *, out: ArraysLike | None = None, alias: bool = False) -> Arrays:
        """Push one gradient and return fresh parameters, when the server's semantics says so.

        Args:
            gradients: one float32 array of its shape for each of the model's tensors, a list or ``{name: array}``.
            out: where to put the parameters, as :meth:`pull` takes it.
            alias: return views where there can be some, as :meth:`pull` does.

        Returns:
            The parameters, as :meth:`pull` returns them. Where the semantics replies first, they may lack this push.

        Raises:
            ManifestMismatch: arrays of other shapes, dtypes, names or number than the model's.
            NonFiniteGradient: the gradient holds NaN or infinity; nothing was applied, and a round goes on without it.
                Where the semantics replies first and only the server found that, the next call raises this and names
                the push. That call itself has been done, and a store that updates in place has applied what came
                before the first bad values (``refused_in_part`` of :class:`distnet.stats.ShardStatistics`).
            RoundAborted: the synchronous round ended without this push.
            ConfigError: this client is an observer, or has called :meth:`finish`.
        """
        self._check_destination(out)
        number = self._native.begin("push_pull", self._flat(gradients), out is None and not alias, True)
        return self._finish(number, out, alias=alias)

    def push(self, gradients: ArraysLike) -> None:
        """Push one gradient; replies when :meth:`push_pull` would, without parameters.

        Args:
            gradients: as :meth:`push_pull` takes them.

        Raises:
            DistNetError: what :meth:`push_pull` raises.
        """
        self._finish(self._native.begin("push", self._flat(gradients), False, True), None, alias=False)

    def begin_push_pull(self, gradients: ArraysLike) -> Handle:
        """Push one gradient and return at once.

        At most the server's ``max_inflight`` pushes may be in flight. One that is refused here, such as a push with
        NaN, does not count.

        Args:
            gradients: as :meth:`push_pull` takes them; they may be overwritten once this returns.

        Returns:
            A handle, whose :meth:`Handle.wait` collects the parameters.

        Raises:
            ConfigError: as many are in flight already; this one was not sent.
            DistNetError: what :meth:`push_pull` raises.
        """
        gradients = self._flat(gradients)
        handle = Handle(self)
        try:
            self._native.begin("push_pull", gradients, False, False)
        except BaseException:
            handle._not_begun()
            raise
        _warn_of_notices(self._native)
        return handle

    def barrier(self, *, timeout: float | None = None) -> None:
        """Wait until all ranks are here, and everything that they pushed before is applied at all shards.

        All are ranks 0 to :attr:`workers` - 1, also those yet to connect, but not those that have ended or that the
        server excuses. A rank that stops waiting, by its timeout or Ctrl-C, is missing again until its next call. A
        long wait is told through ``logging.getLogger("distnet")``.

        Args:
            timeout: seconds to wait at most. None: as long as it takes.

        Raises:
            ConfigError: this client is an observer, its rank is beyond the server's ``workers=``, or a handle is out.
            DeadlineExceeded: ``timeout`` passed; it says who is missing.
            PeerClosed: a rank, which is named, died while others waited here. Each rank hears of it once.
            RoundAborted: ranks wait for each other at different places: a barrier and a round, whose push ends with
                this error, too, or a barrier and :meth:`finish`. All hear who is where, and go on.
            NonFiniteGradient: all were here; the server has refused this client's last push since.
        """
        wait_for_all_ranks(self._native, "barrier", self.rank, timeout)
        _warn_of_notices(self._native)

    def finish(self, *, timeout: float | None = None) -> Arrays:
        """Push no more: wait until no rank does, and return the final parameters, the same for all.

        The rank leaves all later rounds at once, also where this raises; then it may be called again. A later push is
        refused; :meth:`pull` stays allowed. It waits for those that :meth:`barrier` waits for.

        Args:
            timeout: seconds to wait at most. None: as long as it takes.

        Returns:
            The parameters, as :meth:`pull` returns them.

        Raises:
            DistNetError: what :meth:`barrier` raises.
        """
        if not self._finished:
            wait_for_all_ranks(self._native, "finish", self.rank, timeout)
            self._finished = True
        return self._finish(self._native.begin("pull_settled", None, True, True), None, alias=False)

    def unsent(self) -> Arrays | None:
        """Return a copy of what a lossy push format has left unsent so far: it goes along with the next push.

        It is part of a worker's checkpoint.

        Returns:
            Float32 arrays as :meth:`pull` returns them. None where gradients travel as they are, as float32 or through
            shared memory.
        """
        arrays = self._manifest.empty_arrays()
        return self._manifest.structured(arrays) if self._native.unsent(arrays) else None

    def restore_unsent(self, arrays: ArraysLike) -> None:
        """Go on with what :meth:`unsent` returned to an earlier worker.

        Args:
            arrays: what that returned, a list or ``{name: array}``.

        Raises:
            ConfigError: gradients travel as they are here.
            NonFiniteGradient: they hold NaN or infinity; nothing was restored.
            ManifestMismatch: arrays of other shapes, dtypes, names or number than the model's.
        """
        self._native.restore_unsent(list(self._flat(arrays)))

    def set_learning_rate(self, learning_rate: float) -> None:
        """Replace the optimizer's schedule by a constant, for rank 0; groups multiply it as they did the schedule.

        On return it stands: this client's next push is applied with it, what the client pushed before with the former
        one. In ``sync`` it counts from one round on, the same at all shards: the next that closes, also for what other
        ranks have pushed for that already. Snapshots keep it. Setting it again replaces it.

        Args:
            learning_rate: finite, at least 0.

        Raises:
            ConfigError: this client is not rank 0's, a handle is out, or the learning rate is not finite or negative.
        """
        check_number("learning_rate", learning_rate)
        self._native.set_learning_rate(float(learning_rate))

    def save_with(self, data: bytes) -> None:
        """Have the server keep bytes with this client's next push: a place in the data, a seed.

        A snapshot has them exactly if it has that push (over several asynchronous shards: shard 0's part of it), and
        so has a server that was restored from it; then they are :attr:`saved` to the next client of this rank. A push
        that is refused drops its bytes. Before the push, a later call replaces an earlier one.

        Args:
            data: ``bytes``, ``bytearray`` or ``memoryview`` of at most 65,536 bytes.

        Raises:
            ConfigError: too many bytes, or something else than bytes; this client is an observer, or has called
                :meth:`finish`; in asynchronous semantics also a rank above 63 that is not below the server's
                ``workers``.

        Example:
            >>> with distnet.ParameterServer([np.zeros(1, np.float32)], workers=1) as server:
            ...     with distnet.connect(server.address, rank=0) as client:
            ...         client.save_with(b"epoch 3, batch 17")
            ...         client.push([np.ones(1, np.float32)])
            ...     snapshot = server.snapshot()
            >>> with distnet.ParameterServer(restore=snapshot) as server:
            ...     with distnet.connect(server.address, rank=0) as client:
            ...         client.saved
            b'epoch 3, batch 17'
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise ConfigError(
                f"save_with() got {type(data).__name__}; expected bytes, such as json.dumps(state).encode() gives"
            )
        self._native.save_with(bytes(data))

    def close(self) -> None:
        """Leave in order: returns once everything this client pushed is settled.

        Closing twice is allowed. The client is closed in any case, also after Ctrl-C or a timeout broke a call off: its
        connections have ended and its rank is free.

        Raises:
            TransportError: the server was gone or silent, so it is not known whether it settled what was pushed.
            KeyboardInterrupt: Ctrl-C came while this waited; as after a TransportError.
        """
        self._native.close()
        _warn_of_notices(self._native)

    def stats(self) -> list[ShardStatistics]:
        """Return the counters of every shard.

        Returns:
            A :class:`distnet.stats.ShardStatistics` for each shard, in order.
        """
        return [ShardStatistics.from_dict(shard) for shard in json.loads(self._native.stats_json())]

    @property
    def closed(self) -> bool:
        """Whether this client has ended, by :meth:`close` or by an error after which it cannot go on."""
        return self._native.closed

    @property
    def saved(self) -> bytes | None:
        """The newest bytes that :meth:`save_with` saved for this rank, as of when this client connected.

        None where there are none.
        """
        return self._native.saved

    @property
    def timeout(self) -> float:
        """Seconds of silence after which either end gives the other up, from 1 to 3600."""
        return self._native.timeout

    @property
    def workers(self) -> int:
        """How many workers the server expects, as it says."""
        return self._native.workers

    @property
    def transport(self) -> str:
        """``"shm"`` where all shards are reached through shared memory, else ``"tcp"``."""
        return self._native.transport

    @property
    def versions(self) -> list[int]:
        """The version of each shard in the newest reply."""
        return self._native.versions

    @property
    def version(self) -> int:
        """The smallest of :attr:`versions`."""
        return min(self._native.versions)

    @property
    def accepted(self) -> int:
        """Sequence number (from 1) of this client's newest push that every shard has accepted."""
        return self._native.accepted

    @property
    def applied(self) -> int:
        """Sequence number of this client's newest push that every shard had applied when it replied."""
        return self._native.applied

    @property
    def staleness(self) -> int:
        """Updates between the version that push number :attr:`applied` was computed from and its own.

        Over several shards it is the largest.
        """
        return self._native.staleness

    @property
    def round(self) -> int:
        """The synchronous round now open, from 0."""
        return self._native.round

    @property
    def names(self) -> list[str]:
        """Names of the model's tensors, in order; ``"0"``, ``"1"``, … where the server was given a list."""
        return list(self._manifest.names)

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the model's tensors, in order."""
        return list(self._manifest.shapes)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._native.close()
            _warn_of_notices(self._native)
        else:
            self._native.abandon()  # not an orderly end: the server counts this worker as died

    def _finish(self, number: int, out: ArraysLike | None, *, alias: bool) -> Arrays:
        """Receive a call's parameters, and warn in the name of the code two calls above this one."""
        if alias and out is None:
            arrays = self._manifest.structured(self._native.finish_in_place(number))
            _warn_of_notices(self._native, depth=2)
            return arrays
        if self._native.finish(number, None if out is None else self._flat(out)):
            _warn_of_notices(self._native, depth=2)
        if out is None:
            return self._arrays
        return out if isinstance(out, dict) else list(self._flat(out))

    def _check_destination(self, out: ArraysLike | None) -> None:
        """Refuse arrays that no reply could be written to before the call begins, so that it changes nothing."""
        if out is not None:
            self._manifest.check_destination(out)

    def _check_model(self, named: bool, initial: list[tuple[str, Array]]) -> None:
        given = {name: array.shape for name, array in initial}
        held = dict(zip(self._manifest.names, self._manifest.shapes, strict=True))
        if named == self._manifest.named and given == held:
            return
        with contextlib.suppress(TransportError):  # the server has gone meanwhile: the caller's mistake stays one
            self._native.close()  # in order, because abandon() would be the death of a worker
        difference = next((name for name in {**held, **given} if held.get(name) != given.get(name)), "")
        if named != self._manifest.named:
            here = "is a list, and `parameters` have names" if named else "has names, and `parameters` are a list"
        else:
            here = f"has {_shown(held, difference)}, and `parameters` have {_shown(given, difference)}"
        raise ManifestMismatch(
            f"`parameters` are not the model that the server holds: that {here}; pull() gives the server's, or start "
            "another server"
        )


def _shown(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return f"{name!r} of shape {shapes[name]}" if name in shapes else f"no tensor {name!r}"
