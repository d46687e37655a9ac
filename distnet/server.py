"""The parameter server: shards in this process, or in processes of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import secrets
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from distnet import _native
from distnet.addresses import advertised, shard_endpoint, usable_elsewhere
from distnet.arrays import Array, Arrays, ArraysLike, named_arrays
from distnet.errors import ConfigError, DistNetError
from distnet.formats import format_spec
from distnet.optimizers import SGD, Group, Optimizer
from distnet.semantics import Semantics, resolve_semantics
from distnet.shard_process import ShardProcess
from distnet.snapshot import (
    MemoryFile,
    Snapshot,
    check_optimizer_kind,
    check_same_tensors,
    described,
    restore_arguments,
)
from distnet.stats import ServerStatistics, ShardStatistics
from distnet.tuning import Tuning

__all__ = ["ParameterServer"]

_REST_BYTES = 64 << 20
_SNAPSHOT_SECONDS = 60.0
MOST = 1024  # shards of a model, or ranks of a synchronous job


class ParameterServer:
    """Holds a model's parameters and applies the gradients that workers push.

    Args:
        parameters: initial values, a list of float32 arrays or ``{name: array}`` (any memory layout, and whatever NumPy
            sees as float32 without a guess, such as PyTorch's; they are copied). They win over what clients bring.
            None: the first rank-0 client brings them; the others wait.
        semantics: a name of :data:`distnet.SEMANTICS`, or a :class:`distnet.Semantics`.
        optimizer: applied on the server; its first argument is the learning rate, a float or a schedule.
        workers: how many ranks make up the first round of a synchronous job; otherwise what displays expect.
        servers: shards that the vector is cut into. None: as many as the semantics needs at least.
        address: ``"shm://"`` or ``"shm://name"`` for clients of this host, ``"tcp://host:port"`` for any (they take
            shared memory where they are on this host). Port 0 is any free one; several shards take the ports after it.
        advertise: what clients are told instead of where the shards listen, for mapped ports and names of containers: a
            host, ``"tcp://host:port"`` of the first shard (the others are at the ports after it), or a list with one of
            these for each shard. A client keeps to the host and port that it was given for the first shard, and to that
            host for all others that are said to be on the same one.
        processes: run each shard in a process of its own.
        ema_decay: decay of an exponential moving average of the parameters, for evaluation; it ramps up as
            ``min(ema_decay, (1 + update) / (10 + update))``. None: none is kept.
        groups: ``{name pattern: Group}`` with shell wildcards; the first pattern that matches a tensor's name counts.
        push_format: how gradients travel over TCP: a name of :data:`distnet.FORMATS`; what a lossy one leaves unsent
            goes along with the worker's next push. Shared memory moves float32.
        pull_format: how parameters do; any but ``"topk"``.
        reconnect_timeout: seconds, 0 or above. A worker whose TCP connection ended without a goodbye is *away* for so
            long, at most for its own ``timeout``, before it counts as died: rounds wait for it, and a replacement can
            take its rank at once. One that uses shared memory is dead as soon as its process is.
        tuning: which of the engine's fast paths to take; the default is all.
        restore: what :meth:`snapshot` of this or another server returned. The server goes on from it: parameters,
            optimizer state, EMA, schedule and rounds. The number of shards may be another. The optimizer must be
            of the same kind; an EMA that the snapshot does not hold starts from the parameters. `parameters`
            and what clients bring are then only checked against the snapshot's tensors.

    Raises:
        ConfigError: arguments that contradict each other, or a model of more than 2**20 tensors, or whose names and
            shapes take more than 64 MiB; a snapshot of another model or kind of optimizer.
        ConnectError: the address is taken.
        ManifestMismatch: parameters that are not float32.

    Thread-safety: ``start()`` and ``stop()`` from one thread, the rest from any.
    """

    def __init__(
        self,
        parameters: ArraysLike | None = None,
        *,
        semantics: str | Semantics = "async-lockfree",
        optimizer: Optimizer | None = None,
        workers: int = 1,
        servers: int | None = None,
        address: str = "shm://",
        advertise: str | Sequence[str] | None = None,
        processes: bool = False,
        ema_decay: float | None = None,
        groups: Mapping[str, Group] | None = None,
        push_format: str = "float32",
        pull_format: str = "float32",
        reconnect_timeout: float = 0.0,
        tuning: Tuning | None = None,
        restore: Snapshot | None = None,
    ) -> None:
        self.semantics = resolve_semantics(semantics)
        self.servers = self.semantics.minimum_servers if servers is None else servers
        self.workers = workers
        _check_count("servers", self.servers, self.semantics.minimum_servers)
        _check_count("workers", workers, 1)
        _check_optimizer(optimizer)
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise ConfigError(f"ema_decay is {ema_decay}; expected a decay between 0 and 1, such as 0.999")
        _check_seconds("reconnect_timeout", reconnect_timeout)
        self._model = named_arrays(parameters) if parameters is not None else None
        if self._model is not None and not self._model[1]:
            raise ConfigError("a model without parameters; give at least one array, or None to have rank 0 bring them")
        if self._model is not None:
            _native.check_model(*self._model)
        self._restore = restore
        if restore is not None:
            self._model = _restored_model(restore, parameters, optimizer or SGD(0.01))
        self._address = address
        self._advertise = advertise
        if advertise is not None:
            advertised(advertise, [shard_endpoint(address, index) for index in range(self.servers)])  # raises now
        self._processes = processes
        self._settings = self._make_settings(optimizer or SGD(0.01), ema_decay, dict(groups or {})) | {
            "push_format": format_spec(push_format, what="push"),
            "pull_format": format_spec(pull_format, what="pull"),
            "reconnect_timeout": float(reconnect_timeout),
            "model_from_owner": self._model is not None,
            "tuning": (tuning or Tuning()).to_spec(),
        }
        self._shards: list[_LocalShard | ShardProcess] = []
        self._directory = ""

    def start(self) -> ParameterServer:
        """Listen and serve. Returns self."""
        if self._shards:
            return self
        try:
            with contextlib.ExitStack() as restoring:
                memory = None
                if self._restore is not None and self._processes:
                    memory = MemoryFile(self._restore)
                    restoring.callback(memory.close)
                for index in range(self.servers):
                    self._shards.append(self._make_shard(index, memory))
                endpoints = [shard.endpoint for shard in self._shards]
                told = endpoints if self._advertise is None else advertised(self._advertise, endpoints)
                self._directory = ",".join(map(usable_elsewhere, told))
                self._give_model(memory)
            for shard in self._shards:
                shard.set_directory(",".join(told), endpoints[0])
                shard.start()
            if self._model is not None and self._processes and self._restore is None:
                self._observe(self._model).close()  # brings it; another client's model is not taken
        except BaseException:
            self.stop()
            raise
        return self

    def _make_shard(self, index: int, memory: MemoryFile | None) -> _LocalShard | ShardProcess:
        settings = self._settings | {"shard": index}
        endpoint = shard_endpoint(self._address, index)
        if not self._processes:
            return _LocalShard(settings, endpoint)
        return ShardProcess(settings, endpoint, pass_fds=() if memory is None else (memory.fd,))

    def _give_model(self, memory: MemoryFile | None) -> None:
        """Give each shard its share, before it serves. Processes are brought a new model later, as by a client."""
        if self._restore is not None:
            joins_all = self.semantics.joins == "all"
            versions = self._restore.versions_for(self.servers, joins_all=joins_all)
            first_round = self._restore.round or 0 if joins_all else 0
            what = memory.description if memory is not None else restore_arguments(self._restore)
            for index, shard in enumerate(self._shards):
                place: dict[str, Any] = {"shard": index, "shards": self.servers, "version": versions[index]}
                shard.restore(**what, **place, first_round=first_round)
        elif self._model is not None and not self._processes:
            for index, shard in enumerate(self._shards):
                assert isinstance(shard, _LocalShard)
                shard.initialise(*self._model, index, self.servers)

    def stop(self) -> None:
        """Apply everything that was accepted, end every session, and let the memory go. Stopping twice is allowed."""
        shards, self._shards = self._shards, []
        with contextlib.ExitStack() as stack:  # the others, too, where one cannot
            for shard in reversed(shards):
                stack.callback(shard.stop)

    @property
    def address(self) -> str:
        """What clients connect to, also with several shards and on other machines.

        A server at every interface (``tcp://0.0.0.0:port``) is named by this host's name.
        """
        if not self._shards:
            raise ConfigError("the server is not started; call start(), or use it in a with statement")
        return self._directory

    @property
    def local_address(self) -> str:
        """What clients of this host may connect to as well, whatever is advertised: where the shards listen."""
        if not self._shards:
            raise ConfigError("the server is not started; call start(), or use it in a with statement")
        return ",".join(shard.endpoint for shard in self._shards)

    @property
    def running(self) -> bool:
        """Whether the server serves: started, not stopped, and none of its processes dead."""
        return bool(self._shards) and not self.failures()

    def failures(self) -> list[str]:
        """Return a line for each shard process that died, such as ``"shard 1 was killed by SIGKILL"``."""
        return [f"shard {i} {why}" for i, shard in enumerate(self._shards) if (why := shard.failure()) is not None]

    def parameters(self, *, ema: bool = False) -> Arrays:
        """Return a copy of the parameters (or of their EMA), with every push that was accepted before the call.

        Pushes of a synchronous round that is still open are not applied yet, and not part of it.
        """
        client = self._observe()
        try:
            call = "pull_ema_settled" if ema else "pull_settled"
            number = client.begin(call, None, False, True)
            arrays = _empty_arrays(client)
            client.finish(number, arrays)
            return _structured(client, arrays)
        finally:
            client.close()

    def optimizer_state(self) -> list[Arrays]:
        """Return copies of the optimizer's state vectors, each structured as the parameters: for checkpoints.

        In the order of PyTorch's state: SGD has none, momentum its buffer, Adagrad and RMSProp their sum or mean of
        squares, Adam and AdamW ``exp_avg`` and ``exp_avg_sq``. It is that of one moment, as :meth:`snapshot` takes it,
        which has the parameters of the same moment, too, and raises the same errors.
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

        Raises:
            ConfigError: `at_round` is past, or the semantics has no rounds; the server has no memory for a snapshot.
            DeadlineExceeded: the timeout passed.
            RoundAborted: the rounds ended before `at_round`, or parted the shards when they ended.

        Thread-safety: any thread.
        """
        _check_round(at_round)
        if timeout is not None:
            _check_seconds("timeout", timeout)
        if timeout == 0:
            raise ConfigError("timeout is 0; expected seconds above 0")
        client = self._observe()
        try:
            shape = client.begin_snapshot(at_round, _SNAPSHOT_SECONDS if timeout is None else float(timeout))
            vectors = [_empty_arrays(client) for _ in range(1 + shape["ema"] + shape["state_vectors"])]
            client.read_snapshot(vectors)
            parameters, *others = (_structured(client, arrays) for arrays in vectors)
        finally:
            client.close()
        return Snapshot(
            parameters=parameters,
            ema=others.pop(0) if shape["ema"] else None,
            optimizer_state=tuple(others),
            versions=tuple(shape["versions"]),
            round=shape["round"],
            optimizer=self._settings["optimizer"],
        )

    def stats(self) -> ServerStatistics:
        """Return the counters over all shards, and those of each.

        Raises:
            ConfigError: the server is not started.
        """
        if not self._shards:
            raise ConfigError("the server is not started")
        return ServerStatistics.over(self._shard_statistics())

    def _shard_statistics(self) -> list[ShardStatistics]:
        return [ShardStatistics.from_dict(json.loads(shard.stats_json())) for shard in self._shards]

    def memory(self, *, workers: int | None = None, observers: int | None = None) -> dict[str, int]:
        """Return the most bytes that all shards together take with so many sessions, by what they are for.

        It is a bound whatever the clients do, and depends on how many there are alone. For each shard, where `n` is the
        size of its float32 parameters, `b` that of a version (`n`, or `2 n` where an EMA is kept), each in whole
        pages, and `m` the semantics' ``max_inflight``:

        - ``versions``: ``(3 + (workers + observers) * (m + 1)) * b``: the newest version, the one that is made next,
          one that the server itself reads, and those that replies still hold. With the lock-free guard just ``b``.
        - ``optimizer``: ``n`` for each vector of the optimizer's state.
        - ``snapshot``: ``b`` and the optimizer's term once more: what a :meth:`snapshot` keeps while it is read.
        - ``in_flight``: ``workers * (m + 1) * n``: the slots of each worker's gradients, and its replica.
        - ``sessions``: 640 KiB for each session that is busy; an idle one takes 64 KiB.
        - ``tables``: what does not depend on who is there: of sessions, pushes in flight, chunks and tensors; 2 to
          8 MiB for common models.
        - ``rest``: 64 MiB for each shard: code, the interpreter with NumPy, and what is allocated and freed again.
        - ``total``: the sum.

        Memory for versions is kept once it was needed, and used again. So what counts is how many sessions were there
        at one time since the start.

        Args:
            workers: sessions of workers at one time. None: as many as the server was told to expect, or the most that
                there were if that is more.
            observers: the same for observers. None: the most that there were, and at least the one by which the server
                itself reads :meth:`parameters`.

        Raises:
            ConfigError: the model is not known yet, or the server is not started.
        """
        shards = [json.loads(shard.memory_json()) for shard in self._shards]
        if not shards:
            raise ConfigError("the server is not started; call start(), or use it in a with statement")
        bound = dict.fromkeys(("versions", "optimizer", "snapshot", "in_flight", "sessions", "tables"), 0)
        for shard in shards:
            working = max(self.workers, shard["most_workers"]) if workers is None else workers
            observing = max(1, shard["most_observers"]) if observers is None else observers
            for name in bound:
                bound[name] += (
                    shard["fixed"][name] + working * shard["worker"][name] + observing * shard["observer"][name]
                )
        bound["rest"] = len(shards) * _REST_BYTES
        return bound | {"total": sum(bound.values())}

    def __enter__(self) -> ParameterServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _make_settings(self, optimizer: Optimizer, ema_decay: float | None, groups: dict[str, Group]) -> dict[str, Any]:
        policy = dataclasses.asdict(self.semantics)
        del policy["minimum_servers"]
        return {
            "policy": policy | {"workers": self.workers},
            "optimizer": optimizer.to_spec(),
            "ema_decay": ema_decay or 0.0,
            "groups": [
                (pattern, group.learning_rate_multiplier, group.weight_decay) for pattern, group in groups.items()
            ],
            "shards": self.servers,
            "job_secret": (_secret(), _secret()),
            "owner": _secret(),
        }

    def _observe(self, model: tuple[bool, list[tuple[str, Array]]] | None = None) -> _native.Client:
        if failures := self.failures():
            raise DistNetError("; ".join(failures))
        named, initial = model if model is not None else (False, [])
        owner = self._settings["owner"]
        return _native.Client(self.local_address, None, 30.0, "auto", named, initial, Tuning().to_spec(), 0, owner)


def _restored_model(
    restore: object, parameters: ArraysLike | None, optimizer: Optimizer
) -> tuple[bool, list[tuple[str, Array]]]:
    """Return the snapshot's model, checked against what the server was given beside it."""
    if not isinstance(restore, Snapshot):
        raise ConfigError(f"restore is {type(restore).__name__}; expected what snapshot() returns, a distnet.Snapshot")
    if parameters is not None:
        check_same_tensors("parameters=", described(parameters), "the snapshot", described(restore.parameters))
    check_optimizer_kind(restore, optimizer.to_spec())
    return named_arrays(restore.parameters)


def _check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or not least <= value <= MOST:
        raise ConfigError(f"{name} is {value!r}; expected a whole number from {least} to {MOST}")


def _check_round(at_round: object) -> None:
    if at_round is not None and (
        isinstance(at_round, bool) or not isinstance(at_round, int) or not 0 <= at_round < 2**63
    ):
        raise ConfigError(f"at_round is {at_round!r}; expected the number of a round, or None")


def _check_seconds(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise ConfigError(f"{name} is {value!r}; expected a finite number of seconds, 0 or above")


def _secret() -> int:
    """Return a random number from 1 to 2**63 - 1."""
    return secrets.randbelow(2**63 - 1) + 1


def _check_optimizer(optimizer: object) -> None:
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise ConfigError(f"optimizer is {optimizer!r}; expected one such as distnet.Adam(0.001)")


def _empty_arrays(client: _native.Client) -> list[Array]:
    return [np.empty(shape, np.float32) for _, shape, _, _ in client.manifest()["tensors"]]


def _structured(client: _native.Client, arrays: list[Array]) -> Arrays:
    manifest = client.manifest()
    if not manifest["named"]:
        return arrays
    return dict(zip((tensor[0] for tensor in manifest["tensors"]), arrays, strict=True))


class _LocalShard:
    """A shard in this process."""

    def __init__(self, settings: dict[str, Any], endpoint: str) -> None:
        self._native = _native.ShardServer(settings, endpoint)
        self.initialise = self._native.initialise
        self.restore = self._native.restore
        self.set_directory = self._native.set_directory
        self.start = self._native.start
        self.stop = self._native.stop
        self.stats_json = self._native.stats_json
        self.memory_json = self._native.memory_json
        self.endpoint = self._native.endpoint

    def failure(self) -> str | None:
        return None
