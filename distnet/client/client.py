"""A worker's session with all shards of a server."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType, TracebackType
from typing import Literal

from distnet import _native
from distnet._private.arrays import Arrays, ArraysLike
from distnet._private.gathering import wait_for_all_ranks
from distnet._private.manifest import Manifest
from distnet.client.handle import Handle
from distnet.client.notices import warn_of_notices
from distnet.client.push_settings import MOST_RATE, PushSettings, Rates, push_settings
from distnet.errors import ConfigError
from distnet.optimizers import Group, Optimizer
from distnet.schedules import check_number
from distnet.semantics import Semantics
from distnet.shards.settings import settings_from_text
from distnet.stats import ShardStatistics

__all__ = ["Client"]

# What stands for a call that brings nothing.
_ABSTENTIONS = MappingProxyType(
    {"push": "abstain", "push_pull": "abstain_pull", "add": "abstain", "add_pull": "abstain_pull"}
)


class Client:
    """One worker's session with all shards of a server; :func:`connect` makes it.

    Arrays that it returns belong to it and are overwritten by its next pull (:meth:`replica_arrays`); ``out=`` chooses
    others. Gradients are
    lists (or dicts, in any order, where the server was given a dict) of float32 arrays of the model's shapes, and may
    be overwritten once the call returns. C-contiguous arrays of NumPy are used where they are; what else NumPy can see
    as float32 without a guess is taken, too, and copied where need be: other orders and strides, scalars, PyTorch's
    tensors on the CPU. Arrays for ``out=`` are C-contiguous ones of NumPy.

    Every call raises :class:`~distnet.PeerClosed` where the server is gone,
    :class:`~distnet.DeadlineExceeded` where it was silent for the timeout, :class:`~distnet.Fenced`
    where a newer session of this rank took over, and obeys Ctrl-C and the stop flag of :func:`connect`. After any of
    them, and after an error of the call's own, the client either goes on or is :attr:`closed`; a push that was broken
    off is settled once, applied or not, before the next one. A call that waits is refused with
    :class:`~distnet.ConfigError` while a handle is out, before anything is sent. Calls warn
    (:class:`~distnet.DistNetWarning`) of what the server noticed meanwhile.

    In a ``with`` block it is closed in order at the end. Where an exception ends the block it is not, and the server
    counts the worker as died.

    Attributes:
        rank: this worker's number; None for an observer.
        address: of the server, as :func:`connect` took it.

    Thread safety: any thread may call it, but one at a time: two that share a client take turns by a lock of their own.
    A handle may be dropped by any thread at any time. Not usable after a fork.

    Example:
        >>> model = {"w": np.zeros(2, np.float32)}
        >>> with distnet.ParameterServer(model, semantics="sync", workers=1) as server:
        ...     with distnet.connect(server.address, rank=0) as client:
        ...         for step in range(3):
        ...             fresh = client.push_pull({"w": np.ones(2, np.float32)})
        ...         client.version, client.applied, client.round
        (3, 3, 3)
    """

    def __init__(self, native: _native.Client, rank: int | None, address: str) -> None:
        self._native = native
        self._finished = False
        self.rank = rank
        self.address = address
        self._manifest = Manifest.of_engine(native.manifest())
        self._flat = self._manifest.flat
        self._arrays: Arrays = self._manifest.structured(native.own_arrays())

    def pull(self, *, ema: bool = False, out: ArraysLike | None = None, alias: bool = False) -> Arrays:
        """Return the parameters, or their exponential moving average (EMA); a pull joins no round.

        Args:
            ema: return the EMA.
            out: writable arrays of the model's shapes, float32, to write to and return: a list or ``{name: array}``.
                Where the call raises, a part of them may have been written.
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

    def push_pull(
        self,
        gradients: ArraysLike | None,
        *,
        learning_rate: Rates | None = None,
        weight: float | None = None,
        out: ArraysLike | None = None,
        alias: bool = False,
    ) -> Arrays:
        """Push one gradient and return fresh parameters, when the server's semantics says so.

        Args:
            gradients: one float32 array of its shape for each of the model's tensors, a list or ``{name: array}``.
                None: this worker abstains, because a step of loss scaling was skipped or its data have ended. An
                abstention is a push without a gradient: it takes a sequence number, a round does not wait for this
                worker's gradient and takes the mean of those that came, and nothing is applied for it. Its settings
                are checked and not used. A round of abstentions alone makes no update.
            learning_rate: of the update that applies this push, 0 or above and below 3.4e38; groups multiply it. A dict
                has learning rates for groups, by the patterns of the server's ``groups=``; the others have theirs as
                without it. None: the one that :meth:`set_learning_rate` set, else the optimizer's or its schedule's,
                which counts this update like any other. In a round those of the lowest rank that brought a gradient
                count, also where that said None; rounds whose pushes differ are counted
                (``rates_differed`` of :class:`distnet.stats.ShardStatistics`) and warned of once.
            weight: of this gradient in the mean of its round, above 0, as float32: sum(weight * gradient) /
                sum(weight), in the order of ranks. None: 1. Where all are equal, the mean is the one without weights.
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
            ConfigError: this client is an observer, or has called :meth:`finish`; a setting that is out of range, a
                pattern that is none of the server's groups, or a weight where no mean of a round is taken: in
                asynchronous semantics, and with ``reduction="sum"``.

        Example:
            >>> model = [np.zeros(2, np.float32)]
            >>> with distnet.ParameterServer(model, semantics="sync", workers=1) as server:
            ...     with distnet.connect(server.address, rank=0) as client:
            ...         fresh = client.push_pull([np.ones(2, np.float32)], learning_rate=0.5)
            ...         fresh = client.push_pull(None)  # abstains
            ...         client.applied, client.version, fresh[0].tolist()
            (2, 1, [-0.5, -0.5])
        """
        self._check_destination(out)
        settings = None if learning_rate is None and weight is None else self._settings(learning_rate, weight)
        number = self._begin("push_pull", gradients, out is None and not alias, True, settings)
        return self._finish(number, out, alias=alias)

    def push(
        self, gradients: ArraysLike | None, *, learning_rate: Rates | None = None, weight: float | None = None
    ) -> None:
        """Push one gradient; replies when :meth:`push_pull` would, without parameters.

        Args:
            gradients: as :meth:`push_pull` takes them; None abstains.
            learning_rate: as :meth:`push_pull` takes it.
            weight: as :meth:`push_pull` takes it.

        Raises:
            DistNetError: what :meth:`push_pull` raises.
        """
        settings = None if learning_rate is None and weight is None else self._settings(learning_rate, weight)
        number = self._begin("push", gradients, False, True, settings)
        self._finish(number, None, alias=False)

    def add(self, changes: ArraysLike | None) -> None:
        """Push a change of the parameters, which is added to them: for workers that step their own optimizers.

        It is neither stepped by the server's optimizer nor clipped, unless that optimizer is one for changes, such as
        :class:`distnet.OuterNesterov`. It counts as an update: a version, the moving average, the schedule. In a round
        the mean of all ranks' changes is added (with ``reduction="sum"`` their sum), and all ranks must add: a push of
        another kind than that of the lowest rank with either is refused.

        Args:
            changes: as :meth:`push_pull` takes gradients; None abstains.

        Raises:
            ConfigError: in a round, others pushed gradients; or a lossy format has left something unsent of gradients.
            DistNetError: what :meth:`push_pull` raises.
        """
        number = self._begin("add", changes, False, True)
        self._finish(number, None, alias=False)

    def add_pull(self, changes: ArraysLike | None, *, out: ArraysLike | None = None, alias: bool = False) -> Arrays:
        """Push a change of the parameters as :meth:`add` does, and return fresh ones as :meth:`push_pull` does.

        Args:
            changes: as :meth:`add` takes them.
            out: where to put the parameters, as :meth:`pull` takes it.
            alias: return views where there can be some, as :meth:`pull` does.

        Returns:
            The parameters, as :meth:`push_pull` returns them.

        Raises:
            DistNetError: what :meth:`add` raises.

        Example:
            >>> model = [np.zeros(2, np.float32)]
            >>> with distnet.ParameterServer(model, semantics="sync", workers=1) as server:
            ...     with distnet.connect(server.address, rank=0) as client:
            ...         before = client.pull()[0].copy()
            ...         after = before + 0.5  # steps of the worker's own
            ...         client.add_pull([after - before])[0].tolist()
            [0.5, 0.5]
        """
        self._check_destination(out)
        number = self._begin("add_pull", changes, out is None and not alias, True)
        return self._finish(number, out, alias=alias)

    def begin_push_pull(
        self, gradients: ArraysLike | None, *, learning_rate: Rates | None = None, weight: float | None = None
    ) -> Handle:
        """Push one gradient and return at once.

        At most the server's ``max_inflight`` pushes may be in flight. One that is refused here, such as a push with
        NaN, does not count.

        Args:
            gradients: as :meth:`push_pull` takes them; they may be overwritten once this returns. None abstains.
            learning_rate: as :meth:`push_pull` takes it.
            weight: as :meth:`push_pull` takes it.

        Returns:
            A handle, whose :meth:`Handle.wait` collects the parameters.

        Raises:
            ConfigError: as many are in flight already; this one was not sent.
            DistNetError: what :meth:`push_pull` raises.
        """
        settings = None if learning_rate is None and weight is None else self._settings(learning_rate, weight)
        handle = Handle(self)
        try:
            self._begin("push_pull", gradients, False, False, settings)
        except BaseException:
            handle._not_begun()
            raise
        warn_of_notices(self._native)
        return handle

    def replica_arrays(self) -> Arrays:
        """Return the arrays that replies go to where no ``out=`` is given; they are the same for the client's life.

        A framework whose own parameters share their memory has every reply in place without a copy. Each array begins
        on a multiple of 64 bytes. They hold zeros until the first reply, and after :meth:`close` what they held then.
        A call without ``out=`` may write to them from its beginning to its end. Between two calls they are the
        caller's, who may write to them, too.

        Returns:
            Writable float32 arrays in the model's shapes, a list, or ``{name: array}`` where the server was given that.

        Example:
            >>> with distnet.ParameterServer([np.ones(2, np.float32)]) as server:
            ...     with distnet.connect(server.address, rank=0) as client:
            ...         (mine,) = client.replica_arrays()
            ...         fresh = client.pull()
            ...         mine.tolist(), mine.ctypes.data % 64, fresh[0] is mine
            ([1.0, 1.0], 0, True)
        """
        return self._arrays

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
        warn_of_notices(self._native)

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
            learning_rate: 0 or above, and below 3.4e38.

        Raises:
            ConfigError: this client is not rank 0's, a handle is out, or the learning rate is not finite or negative.
        """
        check_number("learning_rate", learning_rate, below=MOST_RATE)
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
        warn_of_notices(self._native)

    def stats(self) -> list[ShardStatistics]:
        """Return the counters of every shard.

        Returns:
            A :class:`distnet.stats.ShardStatistics` for each shard, in order.
        """
        return [ShardStatistics.from_dict(shard) for shard in json.loads(self._native.stats_json())]

    @property
    def server_semantics(self) -> Semantics | None:
        """The server's semantics; None where it does not say."""
        return settings_from_text(self._native.about).get("semantics")

    @property
    def server_optimizer(self) -> Optimizer | None:
        """The optimizer that the server was given, or that came with the model; None where it does not say."""
        return settings_from_text(self._native.about_optimizer).get("optimizer")

    @property
    def server_groups(self) -> Mapping[str, Group]:
        """The groups that go with :attr:`server_optimizer`."""
        groups: Mapping[str, Group] = settings_from_text(self._native.about_optimizer).get("groups", {})
        return groups

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
        """Sequence number of this client's newest push that every shard had applied when it replied.

        An abstention counts as soon as it is settled: there was nothing to apply.
        """
        return self._native.applied

    @property
    def staleness(self) -> int:
        """Updates between the version that push number :attr:`applied` was computed from and its own.

        Over several shards it is the largest. It is 0 for an abstention.
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
            warn_of_notices(self._native)
        else:
            self._native.abandon()  # not an orderly end: the server counts this worker as died

    def _settings(self, learning_rate: Rates | None, weight: float | None) -> PushSettings:
        patterns = self._native.groups if isinstance(learning_rate, Mapping) else ()  # made anew by each call
        return push_settings(learning_rate, weight, patterns)

    def _begin(
        self,
        kind: Literal["push", "push_pull", "add", "add_pull"],
        values: ArraysLike | None,
        into_own: bool,
        waits: bool,
        settings: PushSettings | None = None,
    ) -> int:
        """Begin a call that brings values, or abstains where there are none; return its number."""
        if values is None:
            return self._native.begin(_ABSTENTIONS[kind], None, into_own, waits, settings)
        return self._native.begin(kind, self._flat(values), into_own, waits, settings)

    def _finish(self, number: int, out: ArraysLike | None, *, alias: bool) -> Arrays:
        """Receive a call's parameters, and warn in the name of the code two calls above this one."""
        if alias and out is None:
            arrays = self._manifest.structured(self._native.finish_in_place(number))
            warn_of_notices(self._native, depth=2)
            return arrays
        if self._native.finish(number, None if out is None else self._flat(out)):
            warn_of_notices(self._native, depth=2)
        if out is None:
            return self._arrays
        return out if isinstance(out, dict) else list(self._flat(out))

    def _check_destination(self, out: ArraysLike | None) -> None:
        """Refuse arrays that no reply could be written to before the call begins, so that it changes nothing."""
        if out is not None:
            self._manifest.check_destination(out)
