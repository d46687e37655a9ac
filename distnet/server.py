"""The parameter server: shards in this process, or in processes of their own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import secrets
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import numpy as np

from distnet import _native
from distnet.arrays import Array, Arrays, ArraysLike, named_arrays
from distnet.errors import ConfigError, DistNetError
from distnet.formats import format_spec
from distnet.optimizers import SGD, Group, Optimizer
from distnet.semantics import Semantics, resolve_semantics
from distnet.shard_process import ShardProcess
from distnet.stats import ServerStatistics, ShardStatistics
from distnet.tuning import Tuning

__all__ = ["ParameterServer"]

_REST_BYTES = 64 << 20
MOST = 1024  # shards of a model, or ranks of a synchronous job


def _shard_endpoint(address: str, shard: int) -> str:
    """Return where shard number `shard` listens, for the address of shard 0: the next ports, or names with a number."""
    if shard == 0:
        return address
    scheme, _, rest = address.partition("://")
    if scheme == "tcp":
        host, _, port = rest.rpartition(":")
        return f"tcp://{host}:{int(port) + shard if port.isdigit() and int(port) else 0}"
    return f"{scheme}://{rest}.{shard}" if rest else address


class ParameterServer:
    """Holds a model's parameters and applies the gradients that workers push.

    Args:
        parameters: initial values, a list of float32 arrays or ``{name: array}`` (any memory layout; they are copied).
            They win over what clients bring. None: the first rank-0 client brings them; the others wait.
        semantics: a name of :data:`distnet.SEMANTICS`, or a :class:`distnet.Semantics`.
        optimizer: applied on the server; its first argument is the rate, a float or a schedule.
        workers: how many ranks make up the first round of a synchronous job; otherwise what displays expect.
        servers: shards that the vector is cut into. None: as many as the semantics needs at least.
        address: ``"shm://"`` or ``"shm://name"`` for clients of this host, ``"tcp://host:port"`` for any (they take
            shared memory where they are on this host). Port 0 is any free one; several shards take the ports after it.
        processes: run each shard in a process of its own.
        average: decay of a moving average of the parameters, for evaluation; it ramps up as
            ``min(average, (1 + update) / (10 + update))``. None: none is kept.
        groups: ``{name pattern: Group}`` with shell wildcards; the first pattern that matches a tensor's name counts.
        push_format: how gradients travel over TCP: a name of :data:`distnet.FORMATS`; what a lossy one leaves unsent
            goes along with the worker's next push. Shared memory moves float32.
        pull_format: how parameters do; any but ``"topk"``.
        reconnect_timeout: seconds, 0 or above. A worker whose TCP connection ended without a goodbye is *away* for so
            long, at most for its own ``deadline``, before it counts as died: rounds wait for it, and a replacement can
            take its rank at once. One that uses shared memory is dead as soon as its process is.
        tuning: which of the engine's fast paths to take; the default is all.

    Raises:
        ConfigError: arguments that contradict each other, or a model of more than 2**20 tensors, or whose names and
            shapes take more than 64 MiB.
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
        processes: bool = False,
        average: float | None = None,
        groups: Mapping[str, Group] | None = None,
        push_format: str = "float32",
        pull_format: str = "float32",
        reconnect_timeout: float = 0.0,
        tuning: Tuning | None = None,
    ) -> None:
        self.semantics = resolve_semantics(semantics)
        self.servers = self.semantics.minimum_servers if servers is None else servers
        self.workers = workers
        _check_count("servers", self.servers, self.semantics.minimum_servers)
        _check_count("workers", workers, 1)
        _check_optimizer(optimizer)
        if average is not None and not 0 < average < 1:
            raise ConfigError(f"average is {average}; expected a decay between 0 and 1, such as 0.999")
        _check_seconds("reconnect_timeout", reconnect_timeout)
        self._model = named_arrays(parameters) if parameters is not None else None
        if self._model is not None and not self._model[1]:
            raise ConfigError("a model without parameters; give at least one array, or None to have rank 0 bring them")
        if self._model is not None:
            _native.check_model(*self._model)
        self._address = address
        self._processes = processes
        self._settings = self._make_settings(optimizer or SGD(0.01), average, dict(groups or {})) | {
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
            for index in range(self.servers):
                settings = self._settings | {"shard": index}
                endpoint = _shard_endpoint(self._address, index)
                shard = ShardProcess(settings, endpoint) if self._processes else _LocalShard(settings, endpoint)
                self._shards.append(shard)
            self._directory = ",".join(shard.endpoint for shard in self._shards)
            if self._model is not None and not self._processes:
                for index, shard in enumerate(self._shards):
                    assert isinstance(shard, _LocalShard)
                    shard.initialise(*self._model, index, self.servers)
            for shard in self._shards:
                shard.set_directory(self._directory)
                shard.start()
            if self._model is not None and self._processes:
                self._observe(self._model).close()  # brings it; another client's model is not taken
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Apply everything that was accepted, end every session, and let the memory go. Stopping twice is allowed."""
        shards, self._shards = self._shards, []
        with contextlib.ExitStack() as stack:  # the others, too, where one cannot
            for shard in reversed(shards):
                stack.callback(shard.stop)

    @property
    def address(self) -> str:
        """What clients connect to, also with several shards."""
        if not self._shards:
            raise ConfigError("the server is not started; call start(), or use it in a with statement")
        return self._directory

    @property
    def running(self) -> bool:
        """Whether the server serves: started, not stopped, and none of its processes dead."""
        return bool(self._shards) and not self.failures()

    def failures(self) -> list[str]:
        """Return a line for each shard process that died, such as ``"shard 1 was killed by SIGKILL"``."""
        return [f"shard {i} {why}" for i, shard in enumerate(self._shards) if (why := shard.failure()) is not None]

    def parameters(self, *, average: bool = False) -> Arrays:
        """Return a copy of the parameters (or of their moving average), with every push accepted before the call.

        Pushes of a synchronous round that is still open are not applied yet, and not part of it.
        """
        client = self._observe()
        try:
            call = "pull_average_settled" if average else "pull_settled"
            number = client.begin(call, None, False, True)
            arrays = _empty_arrays(client)
            client.finish(number, arrays)
            return _structured(client, arrays)
        finally:
            client.close()

    def optimizer_state(self) -> list[Arrays]:
        """Return copies of the optimizer's state vectors, each structured as the parameters: for checkpoints.

        In the order of PyTorch's state: SGD has none, momentum its buffer, Adagrad and RMSProp their sum or mean of
        squares, Adam and AdamW ``exp_avg`` and ``exp_avg_sq``. Not one cut with :meth:`parameters` while workers push.
        """
        client = self._observe()
        try:
            state: list[Arrays] = []
            while client.optimizer_state(len(state), arrays := _empty_arrays(client)):
                state.append(_structured(client, arrays))
            return state
        finally:
            client.close()

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
        size of its float32 parameters, `b` that of a version (`n`, or `2 n` where an average is kept), each in whole
        pages, and `m` the semantics' ``max_inflight``:

        - ``versions``: ``(3 + (workers + observers) * (m + 1)) * b``: the newest version, the one that is made next,
          one that the server itself reads, and those that replies still hold. With the lock-free guard just ``b``.
        - ``optimizer``: ``n`` for each vector of the optimizer's state.
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
        bound = dict.fromkeys(("versions", "optimizer", "in_flight", "sessions", "tables"), 0)
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

    def _make_settings(self, optimizer: Optimizer, average: float | None, groups: dict[str, Group]) -> dict[str, Any]:
        policy = dataclasses.asdict(self.semantics)
        del policy["minimum_servers"]
        return {
            "policy": policy | {"workers": self.workers},
            "optimizer": optimizer.to_spec(),
            "average": average or 0.0,
            "groups": [(pattern, group.rate, group.weight_decay) for pattern, group in groups.items()],
            "shards": self.servers,
            "job_secret": (_secret(), _secret()),
            "owner": _secret(),
        }

    def _observe(self, model: tuple[bool, list[tuple[str, Array]]] | None = None) -> _native.Client:
        if failures := self.failures():
            raise DistNetError("; ".join(failures))
        named, initial = model if model is not None else (False, [])
        owner = self._settings["owner"] if model is not None else 0
        return _native.Client(self.address, None, 30.0, "auto", named, initial, Tuning().to_spec(), 0, owner)


def _check_count(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or not least <= value <= MOST:
        raise ConfigError(f"{name} is {value!r}; expected a whole number from {least} to {MOST}")


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
        self.set_directory = self._native.set_directory
        self.start = self._native.start
        self.stop = self._native.stop
        self.stats_json = self._native.stats_json
        self.memory_json = self._native.memory_json
        self.endpoint = self._native.endpoint

    def failure(self) -> str | None:
        return None
