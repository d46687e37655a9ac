"""The parameter server: shards in this process, or in processes of their own."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from distnet._private.arrays import Arrays, ParametersLike
from distnet._private.bounds import check_seconds
from distnet.checkpoint.contents import Checkpoint
from distnet.checkpoint.every import DEFAULT_EVERY, Every
from distnet.checkpoint.folder import CheckpointFolder
from distnet.checkpoint.of_server import ServerCheckpoints, Source
from distnet.checkpoint.restoring import Restored
from distnet.errors import CheckpointError, ConfigError, DistNetError
from distnet.optimizers import Group, Optimizer
from distnet.schedules import check_number
from distnet.semantics import Semantics
from distnet.shards.all_shards import AllShards
from distnet.shards.arguments import ServerArguments
from distnet.shards.observer import Observer
from distnet.shards.settings import check_rank, check_round
from distnet.shards.unmatched_groups import UnmatchedGroups
from distnet.snapshot import Cut, Snapshot
from distnet.stats import ServerStatistics
from distnet.tuning import Tuning

__all__ = ["ParameterServer"]

_log = logging.getLogger("distnet")

_SNAPSHOT_SECONDS = 60.0


class ParameterServer:
    """Holds a model's parameters and applies the gradients that workers push.

    With ``restore=``, semantics, optimizer, workers, servers, ema_decay, groups, formats and reconnect_timeout that are
    not given (None) are those of the checkpoint; :attr:`restored` has those that were given and differ. A
    :class:`distnet.Snapshot` tells of these only the optimizer, and whether there were rounds: then it is ``sync``.

    Args:
        parameters: initial values, a list of arrays or ``{name: array}`` (any memory layout, and whatever NumPy sees as
            floats without a guess, such as PyTorch's; they are copied, and float16, bfloat16 and float64 are cast to
            float32). They win over what clients bring. None: the first rank-0 client brings them; the others wait.
        semantics: a name of :data:`distnet.SEMANTICS`, or a :class:`distnet.Semantics`. None: ``"async-lockfree"``.
        optimizer: applied on the server; its first argument is the learning rate, a float or a schedule. None: where
            ``groups`` is None as well, the optimizer and the groups that came with the model, if any did; else
            ``SGD(0.01)``.
        workers: how many ranks make up the first round of a synchronous job; otherwise what displays expect. None: 1.
        servers: shards that the vector is cut into. None: as many as the semantics needs at least.
        address: ``"shm://"`` or ``"shm://name"`` for clients of this host, ``"tcp://host:port"`` for any (they take
            shared memory where they are on this host). Port 0 is any free one; several shards take the ports after it.
        advertise: what clients are told instead of where the shards listen, for mapped ports and names of containers: a
            host, ``"tcp://host:port"`` of the first shard (the others are at the ports after it), or a list with one of
            these for each shard. A client keeps to the host and port that it was given for the first shard, and to that
            host for all others that are said to be on the same one.
        processes: run each shard in a process of its own.
        ema_decay: decay of an exponential moving average (EMA) of the parameters, for evaluation; it ramps up as
            ``min(ema_decay, (1 + update) / (10 + update))``. 0 or None: none is kept.
        groups: ``{name pattern: Group}`` with shell wildcards; the first pattern that matches a tensor's name counts.
        push_format: how gradients travel over TCP: a name of :data:`distnet.FORMATS`; what a lossy one leaves unsent
            goes along with the worker's next push. Shared memory moves float32. None: ``"float32"``.
        pull_format: how parameters do; any but ``"topk"``. None: ``"float32"``.
        reconnect_timeout: seconds, 0 or above; None: 0. A worker whose TCP connection ended without a goodbye is
            *away* for so long, at most for its own ``timeout``, before it counts as died: rounds wait for it, and a
            replacement can take its rank at once. One that uses shared memory is dead as soon as its process is.
        tuning: which of the engine's fast paths to take; the default is all.
        restore: a checkpoint's file, a folder of checkpoints (its latest counts), a loaded
            :class:`distnet.checkpoint.Checkpoint`, or what :meth:`snapshot` of this or another server returned. The
            server goes on from it: parameters, optimizer state, EMA, schedule, rounds and saved bytes. The number of
            shards may be another. The optimizer must be of the same kind; an EMA that was not kept starts from the
            parameters. A learning rate that was set counts on, unless an optimizer with another learning rate or
            schedule is given. ``parameters`` and what clients bring are then only checked against its tensors.
        checkpoint: a folder for this server's checkpoints, which nobody else writes to meanwhile; :meth:`start` tries
            it. A last one is written when the server stops, by an exception or Ctrl-C, too, if anything has changed, or
            when the interpreter ends before that.
        checkpoint_every: how often one is written while it serves: ``"500updates"``, ``"10min"`` and the like, or an
            :class:`distnet.checkpoint.Every`. None: only at the end, and when :meth:`checkpoint` is called. One that
            cannot be written is logged at ERROR by the logger ``distnet``, and training goes on.
        keep_checkpoints: how many are kept, at least 1: the last ones.

    Attributes:
        semantics: the :class:`distnet.Semantics` that counts.
        servers: how many shards there are.
        workers: how many workers are expected.

    Raises:
        ConfigError: arguments that contradict each other, or a model of more than 2**20 tensors, or whose names and
            shapes take more than 64 MiB; a snapshot or checkpoint of another model or kind of optimizer.
        CheckpointError: what is restored is no checkpoint, or is damaged.
        ManifestMismatch: parameters that are no floats, or that float32 cannot hold.

    Thread safety: ``start()`` and ``stop()`` from one thread, the rest from any.

    Example:
        The client usually lives in a process of its own.

        >>> parameters = {"w": np.zeros(3, np.float32)}
        >>> with distnet.ParameterServer(parameters, optimizer=distnet.SGD(0.5)) as server:
        ...     with distnet.connect(server.address, rank=0) as client:
        ...         fresh = client.push_pull({"w": np.ones(3, np.float32)})
        ...     server.parameters()["w"].tolist()
        [-0.5, -0.5, -0.5]
    """

    def __init__(
        self,
        parameters: ParametersLike | None = None,
        *,
        semantics: str | Semantics | None = None,
        optimizer: Optimizer | None = None,
        workers: int | None = None,
        servers: int | None = None,
        address: str = "shm://",
        advertise: str | Sequence[str] | None = None,
        processes: bool = False,
        ema_decay: float | None = None,
        groups: Mapping[str, Group] | None = None,
        push_format: str | None = None,
        pull_format: str | None = None,
        reconnect_timeout: float | None = None,
        tuning: Tuning | None = None,
        restore: str | os.PathLike[str] | Checkpoint | Snapshot | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        checkpoint_every: str | Every | None = DEFAULT_EVERY,
        keep_checkpoints: int = 3,
    ) -> None:
        self._arguments = ServerArguments(
            parameters,
            restore,
            tuning,
            semantics=semantics,
            optimizer=optimizer,
            workers=workers,
            servers=servers,
            ema_decay=ema_decay,
            groups=groups,
            push_format=push_format,
            pull_format=pull_format,
            reconnect_timeout=reconnect_timeout,
        )
        kept = self._arguments.kept
        self.semantics: Semantics = kept["semantics"]
        self.servers: int = kept["servers"]
        self.workers: int = kept["workers"]
        self._shards = AllShards(
            self.servers,
            joins_all=self.semantics.joins == "all",
            owner=self._arguments.settings["owner"],
            address=address,
            advertise=advertise,
            processes=processes,
        )
        self._setting_learning_rate = threading.Lock()
        self._unmatched_groups = UnmatchedGroups(kept["groups"])
        if self._arguments.model is not None:
            self._unmatched_groups.check([name for name, _ in self._arguments.model[1]])
        self._checkpoints = ServerCheckpoints(checkpoint, checkpoint_every, keep_checkpoints, kept)

    @property
    def restored(self) -> Restored | None:
        """What the server was told to go on from, with what differs; None without ``restore=``."""
        restoring = self._arguments.restoring
        return None if restoring is None else restoring.restored

    def start(self) -> ParameterServer:
        """Listen and serve.

        Returns:
            The server itself. One that runs already is left as it is.

        Raises:
            CheckpointError: no checkpoint can be written to the folder, or another server writes there.
            ConnectError: the address is taken.
        """
        if self._shards:
            return self
        restoring = self._arguments.restoring
        self._checkpoints.take_folder(None if restoring is None else restoring.restored.path)
        try:
            state = None if restoring is None else restoring.state()
            self._shards.start(self._arguments.settings, self._arguments.model, state)
            self._checkpoints.begin(self._source(), self._shards.beginning(state))
        except BaseException:
            try:
                self.stop()
            finally:
                self._checkpoints.release_folder()
            raise
        if restoring is not None:
            restoring.let_go()
        return self

    def stop(self) -> None:
        """Apply everything that was accepted, end every session, and let the memory go.

        With ``checkpoint=``, it first writes a last checkpoint if anything has changed since the newest. Stopping twice
        is allowed.

        Raises:
            CheckpointError: that could not be written; the server has stopped all the same. Where a ``with`` block is
                left by an exception, it is logged, and the exception goes on.
        """
        if missing := self._end():
            raise CheckpointError(missing)

    def write_last_checkpoint(self) -> None:
        """With ``checkpoint=``, write the last checkpoint now, if anything has changed; :meth:`stop` then writes none.

        A program that also ends the workers calls this before it does. What they still push on their way out, such as a
        synchronous round of those that are left, is then in no checkpoint.

        Raises:
            CheckpointError: it cannot be written; :meth:`stop` tries once more.
            DistNetError: what :meth:`checkpoint` raises.

        Thread safety: that of :meth:`stop`.
        """
        self._checkpoints.write_last()

    def _end(self) -> str | None:
        """Stop; return why the last checkpoint is missing, if one is."""
        try:
            return self._checkpoints.end()
        finally:
            self._shards.stop()

    @property
    def address(self) -> str:
        """What clients connect to, also with several shards and on other machines.

        A server at every interface (``tcp://0.0.0.0:port``) is named by this host's name.

        Raises:
            ConfigError: the server is not started.
        """
        return self._shards.address

    @property
    def local_address(self) -> str:
        """Where the shards listen.

        Clients of this host may connect there as well, whatever is advertised.

        Raises:
            ConfigError: the server is not started.
        """
        return self._shards.local_address

    @property
    def running(self) -> bool:
        """Whether the server serves, that is, was started, was not stopped, and has no process that died."""
        return bool(self._shards) and not self.failures()

    def failures(self) -> list[str]:
        """Return a line for each shard's process that died, such as ``"server 1 was killed by SIGTERM"``.

        Returns:
            The lines; none where all processes run, or there are none.
        """
        return self._shards.failures()

    def parameters(self, *, ema: bool = False) -> Arrays:
        """Return a copy of the parameters, or of their EMA, with every push that was accepted before the call.

        Pushes of a synchronous round that is still open are not applied yet, and not part of it.

        Args:
            ema: return the EMA.

        Returns:
            New float32 arrays, a list, or ``{name: array}`` where the model was given so.

        Raises:
            ConfigError: the server is not started, or keeps no EMA.
            DeadlineExceeded: no model was there in 30 s.
            DistNetError: the process of a shard died.
        """
        with self._observe() as observer:
            return observer.parameters(ema=ema)

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer that the server was given, or that came with the model, which stays.

        :meth:`set_learning_rate` changes its learning rate alone.
        """
        self._hear_of_optimizer()
        optimizer: Optimizer = self._arguments.kept["optimizer"]
        return optimizer

    @optimizer.setter
    def optimizer(self, _: object) -> None:
        raise ConfigError(
            "a server keeps its optimizer: set_learning_rate() replaces its learning rate; for other settings start "
            "ParameterServer(restore=server.snapshot(), optimizer=...) with the same kind of optimizer"
        )

    @property
    def learning_rate(self) -> float:
        """What the next update uses, before groups multiply it; over several asynchronous shards, shard 0's next."""
        return self.stats().learning_rate

    @learning_rate.setter
    def learning_rate(self, _: object) -> None:
        raise ConfigError("call set_learning_rate(), which returns once every shard has the new learning rate")

    def set_learning_rate(self, learning_rate: float) -> None:
        """Replace the optimizer's schedule by a constant; groups multiply it as they did the schedule.

        On return it stands: each shard's updates that begin later have it, each from beginning to end; in ``sync`` from
        one round on, the same at all shards: the next that closes, also for what was pushed for that already. Snapshots
        keep it. Setting it again replaces it. To go back to a schedule, restore
        ``dataclasses.replace(server.snapshot(), learning_rate=None)``.

        Args:
            learning_rate: finite, at least 0.

        Raises:
            ConfigError: the learning rate is not finite or negative, or the server is not started.

        Thread safety: any thread. Where rank 0 sets it at the same moment, asynchronous shards may end with either.

        Example:
            >>> model = [np.zeros(1, np.float32)]
            >>> with distnet.ParameterServer(model, optimizer=distnet.SGD(0.5)) as server:
            ...     server.set_learning_rate(0.25)
            ...     server.learning_rate, server.optimizer.learning_rate
            (0.25, 0.5)
        """
        check_number("learning_rate", learning_rate)
        with self._setting_learning_rate, self._observe() as observer:  # two at once: in another order at each shard
            observer.set_learning_rate(float(learning_rate))

    def optimizer_state(self) -> list[Arrays]:
        """Return copies of the optimizer's state vectors: for checkpoints.

        They are those of one moment, as :meth:`snapshot` takes it, which has the parameters of the same moment, too.

        Returns:
            The vectors in the order of the optimizer's ``state_names``, each structured as the parameters; SGD has
            none.

        Raises:
            DistNetError: what :meth:`snapshot` raises.
        """
        return list(self.snapshot().optimizer_state)

    def snapshot(self, *, at_round: int | None = None, timeout: float | None = None) -> Snapshot:
        """Return a copy of the server's whole state at one moment, while workers go on.

        No push is half in it. Pushes that arrive meanwhile are held until those that were accepted before are applied,
        which takes about as long as one update; then the state is copied beside the workers' pushes
        (``stats()["snapshot_pause_last_s"]``). In ``sync`` all shards are cut before the same round; pushes of a round
        that is still open are not in it. In the other semantics each shard is cut by itself, at about the same time,
        and ``versions`` says where. A shard takes one snapshot at a time: a second one waits for its turn. While one is
        taken, a shard uses at most as much more memory as its parameters, EMA and optimizer state have.

        Args:
            at_round: ``sync`` only: cut before this round, when all earlier ones have been joined; it must not be past.
                None: before the round that is open.
            timeout: seconds, above 0, that the cut may take to come: this snapshot's turn, the round, and pushes in
                flight. None: 60. Reading it takes as long as it takes, while something moves.

        Returns:
            The state, in arrays of its own.

        Raises:
            ConfigError: ``at_round`` is past, or the semantics has no rounds; the server has no memory for a snapshot,
                or is not started.
            DeadlineExceeded: the timeout passed.
            RoundAborted: the rounds ended before ``at_round``, or parted the shards when they ended.

        Thread safety: any thread.

        Example:
            >>> with distnet.ParameterServer([np.ones(2, np.float32)]) as server:
            ...     snapshot = server.snapshot()
            >>> with distnet.ParameterServer(restore=snapshot, servers=2) as server:
            ...     server.parameters()[0].tolist()
            [1.0, 1.0]
        """
        with self._cut(at_round, timeout) as cut:
            return cut.snapshot()

    @contextlib.contextmanager
    def _cut(self, at_round: int | None = None, timeout: float | None = None) -> Iterator[Cut]:
        """Yield the state at one moment, to be read within; raises as :meth:`snapshot` does."""
        check_round(at_round)
        if timeout is not None:
            check_seconds("timeout", timeout, above_zero=True)
        with self._observe() as observer:
            within_s = _SNAPSHOT_SECONDS if timeout is None else float(timeout)
            yield observer.cut(at_round, within_s, self._arguments.settings["optimizer"])

    def checkpoint(self, folder: str | os.PathLike[str] | CheckpointFolder | None = None) -> Path:
        """Write a checkpoint of the whole state at one moment, as :meth:`snapshot` cuts it, while workers go on.

        The state is read into the file as it comes: it takes no memory beside what a snapshot takes in the shards.

        Args:
            folder: where to write it; ``latest`` then names it, and the last ``keep_checkpoints`` stay. None: the
                folder that the server was given as ``checkpoint=``.

        Returns:
            The file, which is on the disk by then.

        Raises:
            CheckpointError: it cannot be written; the message has the folder and the reason.
            ConfigError: no folder was given, here or to the server; or what :meth:`snapshot` raises it for.
            DeadlineExceeded: another checkpoint of this server has been on its way for ten minutes; or what
                :meth:`snapshot` raises it for.

        Thread safety: any thread; one checkpoint at a time is written, others wait.

        Example:
            >>> with distnet.ParameterServer([np.ones(2, np.float32)]) as server:
            ...     server.checkpoint("checkpoints").name
            'checkpoint-000000000000.safetensors'
        """
        return self._checkpoints.write(self._source(), folder)

    def _source(self) -> Source:
        return Source(learn=self._hear_of_optimizer, cut=self._cut, stats=self.stats)

    def excuse(self, rank: int, why: str = "") -> None:
        """Say that this rank will not come, or not come again: neither rounds nor barriers wait for it.

        The program that started the ranks calls this when it knows that one has ended, perhaps without connecting. Its
        end is then no loss (``on_loss``). A rank that connects after all, pushes, or waits at a barrier is waited for
        again.

        Args:
            rank: from 0 to ``workers`` - 1.
            why: for the log (``logging.getLogger("distnet")``).

        Raises:
            ConfigError: ``rank`` is out of range, or the server is not started.

        Thread safety: any thread.
        """
        check_rank(rank, self.workers)
        self._shards.excuse(rank)
        _log.info("rank %d is not waited for any more%s", rank, f": {why}" if why else "")

    def stats(self) -> ServerStatistics:
        """Return the counters over all shards, and those of each.

        The first call after a client has brought the model warns (``logging.getLogger("distnet")``) of groups that
        match none of its tensors.

        Returns:
            A frozen value, whose fields are keys, too.

        Raises:
            ConfigError: the server is not started.
            DistNetError: the process of a shard died.

        Example:
            >>> with distnet.ParameterServer({"w": np.zeros(96, np.float32)}) as server:
            ...     stats = server.stats()
            ...     stats.updates, stats["floats"], stats.staleness.mean
            (0, 96, 0.0)
        """
        statistics = ServerStatistics.over(self._shards.statistics())
        if self._unmatched_groups.unchecked and statistics.floats:
            with contextlib.suppress(DistNetError), self._observe() as observer:  # which another call will meet, too
                self._unmatched_groups.check(observer.manifest().names)
        return statistics

    def memory(self, *, workers: int | None = None, observers: int | None = None) -> dict[str, int]:
        """Return the most bytes that all shards together take with so many sessions, by what they are for.

        It is a bound whatever the clients do, and depends on how many there are alone. For each shard, where ``n`` is
        the size of its float32 parameters, ``b`` that of a version (``n``, or ``2 n`` where an EMA is kept), each in
        whole pages, and ``m`` the semantics' ``max_inflight``:

        - ``versions``: ``(3 + (workers + observers) * (m + 1)) * b``: the newest version, the one that is made next,
          one that the server itself reads, and those that replies still hold. With the lock-free guard just ``b``.
        - ``optimizer``: ``n`` for each vector of the optimizer's state.
        - ``snapshot``: ``b`` and the optimizer's term once more, and at shard 0 64 KiB for each rank that may save
          bytes: what a :meth:`snapshot` keeps while it is read.
        - ``in_flight``: ``workers * (m + 1) * n``: the slots of each worker's gradients, and its replica.
        - ``sessions``: 640 KiB for each session that is busy; an idle one takes 64 KiB. At shard 0 a worker may have
          ``m + 4`` times 64 KiB more on the way, by :meth:`distnet.Client.save_with`.
        - ``tables``: what does not depend on who is there: of sessions, pushes in flight, chunks and tensors; 2 to
          8 MiB for common models. At shard 0 also 64 KiB for each rank that may save bytes: ``workers``, and in
          asynchronous semantics at least 64.
        - ``rest``: 64 MiB for each shard: code, the interpreter with NumPy, and what is allocated and freed again.
        - ``total``: the sum.

        Memory for versions is kept once it was needed, and used again. So what counts is how many sessions were there
        at one time since the start.

        Args:
            workers: sessions of workers at one time. None: as many as the server was told to expect, or the most that
                there were if that is more.
            observers: the same for observers. None: the most that there were, and at least the one by which the server
                itself reads :meth:`parameters`.

        Returns:
            Bytes by those names.

        Raises:
            ConfigError: the model is not known yet, or the server is not started.
        """
        return self._shards.memory(expected=self.workers, workers=workers, observers=observers)

    def __enter__(self) -> ParameterServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        missing = self._end()  # which has been logged
        if missing and kind is None:
            raise CheckpointError(missing)

    def _observe(self) -> Observer:
        observer = self._shards.observe()
        if self._arguments.optimizer_may_come:
            self._arguments.take_brought(observer.optimizer_and_groups())
            self._checkpoints.take_arguments(self._arguments.kept)
        return observer

    def _hear_of_optimizer(self) -> None:
        """Learn which optimizer came with the model, where one may have come."""
        if self._arguments.optimizer_may_come and self._shards and self._shards.statistics()[0].floats:
            self._observe().close()
