"""All shards of one server: they start together, are watched, and end together."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from distnet._private.addresses import advertised, check_address, shard_endpoint, usable_elsewhere
from distnet._private.arrays import Array
from distnet.errors import ConfigError, DistNetError
from distnet.shards.in_process import LocalShard
from distnet.shards.memory import bound_over
from distnet.shards.observer import Observer
from distnet.shards.owner import ShardProcess
from distnet.snapshot import MemoryFile, Moment, Snapshot, restore_arguments
from distnet.stats import ShardStatistics

__all__ = ["AllShards", "Model", "Shard"]

Shard: TypeAlias = "LocalShard | ShardProcess"
Model: TypeAlias = "tuple[bool, list[tuple[str, Array]]]"  # whether its tensors have names, and (name, array) pairs


class AllShards:
    """The shards of a server, in order; none before they start and after they have ended.

    Args:
        count: how many there are.
        joins_all: whether they go from round to round together.
        owner: the server's secret, by which they know its own sessions.
        address: of the first; the others follow it.
        advertise: what clients are told in place of where they listen, as :class:`distnet.ParameterServer` takes it.
        processes: whether each runs in a process of its own.

    Raises:
        ConfigError: the address is none, or ``advertise`` does not suit it and the number of shards.

    Thread safety: one thread starts and stops them, any may do the rest.
    """

    def __init__(
        self,
        count: int,
        *,
        joins_all: bool,
        owner: int,
        address: str,
        advertise: str | Sequence[str] | None,
        processes: bool,
    ) -> None:
        self._count = count
        self._joins_all = joins_all
        self._owner = owner
        self._address = address
        self._advertise = advertise
        self._processes = processes
        self._shards: list[Shard] = []
        self._directory = ""
        check_address("address", address)
        if advertise is not None:
            advertised(advertise, [shard_endpoint(address, index) for index in range(count)])  # raises now

    # ---- how they start and end ------------------------------------------------------------------------------------
    def start(self, settings: Mapping[str, Any], model: Model | None, state: Snapshot | None) -> None:
        """Start all, and give each its share of a state or of a new model before it serves.

        Where this raises, those that have started run until :meth:`stop`.

        Args:
            settings: what they share, as the engine takes it.
            model: initial values; None: a client brings them, or there is a state.
            state: to go on from, which counts before the model.

        Raises:
            ConnectError: the address is taken.
        """
        with contextlib.ExitStack() as restoring:
            memory = None
            if state is not None and self._processes:
                memory = MemoryFile(state)
                restoring.callback(memory.close)
            for index in range(self._count):
                self._shards.append(self._make({**settings, "shard": index}, memory))
            endpoints = [shard.endpoint for shard in self._shards]
            told = endpoints if self._advertise is None else advertised(self._advertise, endpoints)
            self._directory = ",".join(map(usable_elsewhere, told))
            self._give_model(model, state, memory)
        for shard in self._shards:
            shard.set_directory(",".join(told), endpoints[0])
            shard.start()
        if model is not None and self._processes and state is None:
            self.observe(model).close()  # brings it; another client's model is not taken

    def _make(self, settings: dict[str, Any], memory: MemoryFile | None) -> Shard:
        endpoint = shard_endpoint(self._address, settings["shard"])
        if not self._processes:
            return LocalShard(settings, endpoint)
        return ShardProcess(settings, endpoint, pass_fds=() if memory is None else (memory.fd,))

    def _give_model(self, model: Model | None, state: Snapshot | None, memory: MemoryFile | None) -> None:
        """Give each shard its share, before it serves. Processes are brought a new model later, as by a client."""
        if state is not None:
            begins = self.beginning(state)
            what = memory.description if memory is not None else restore_arguments(state)
            for index, shard in enumerate(self._shards):
                place: dict[str, Any] = {"shard": index, "shards": self._count, "version": begins.versions[index]}
                shard.restore(**what, **place, first_round=begins.round or 0)
        elif model is not None and not self._processes:
            for index, shard in enumerate(self._shards):
                assert isinstance(shard, LocalShard)
                shard.initialise(*model, index, self._count)

    def beginning(self, state: Snapshot | None) -> Moment:
        """Return the moment that the shards begin at, with a state or at their beginning."""
        if state is None:
            return Moment((0,) * self._count, 0 if self._joins_all else None, None)
        versions = state.versions_for(self._count, joins_all=self._joins_all)
        return Moment(versions, state.round or 0 if self._joins_all else None, state.learning_rate)

    def stop(self) -> None:
        """End all in order; those that are left, too, where one cannot."""
        shards, self._shards = self._shards, []
        with contextlib.ExitStack() as stack:
            for shard in reversed(shards):
                stack.callback(shard.stop)

    # ---- what they say ---------------------------------------------------------------------------------------------
    def check_started(self) -> None:
        """Raise ConfigError where none runs."""
        if not self._shards:
            raise ConfigError("the server is not started; call start(), or use it in a with statement")

    @property
    def address(self) -> str:
        """What clients connect to, also on other machines."""
        self.check_started()
        return self._directory

    @property
    def local_address(self) -> str:
        """Where the shards listen."""
        self.check_started()
        return ",".join(shard.endpoint for shard in self._shards)

    def failures(self) -> list[str]:
        """Return a line for each shard's process that died."""
        return [f"server {i} {why}" for i, shard in enumerate(self._shards) if (why := shard.failure()) is not None]

    def observe(self, model: Model | None = None) -> Observer:
        """Return a session of the server's own with all of them.

        Args:
            model: to bring to them; None: the model is waited for.

        Raises:
            ConfigError: they are not started.
            DistNetError: the process of a shard died; or what the session raises.
        """
        if failures := self.failures():
            raise DistNetError("; ".join(failures))
        return Observer(self.local_address, self._owner, model)

    def excuse(self, rank: int) -> None:
        """Tell the first shard, which leads, that this rank will not come."""
        self.check_started()
        self._shards[0].excuse(rank)

    def statistics(self) -> list[ShardStatistics]:
        """Return the counters of each."""
        self.check_started()
        return [ShardStatistics.from_dict(json.loads(shard.stats_json())) for shard in self._shards]

    def memory(self, *, expected: int, workers: int | None, observers: int | None) -> dict[str, int]:
        """Return what bounds the memory of all, as :meth:`distnet.ParameterServer.memory` describes it.

        Args:
            expected: how many workers the server was told of.
            workers: sessions of workers; None: as many as expected, or as there were if that is more.
            observers: the same for observers; None: as there were, and at least one.
        """
        self.check_started()
        shards = [json.loads(shard.memory_json()) for shard in self._shards]
        return bound_over(shards, expected=expected, workers=workers, observers=observers)

    # ---- as a sequence ---------------------------------------------------------------------------------------------
    def __getitem__(self, index: int) -> Shard:
        return self._shards[index]

    def __len__(self) -> int:
        return len(self._shards)

    def __iter__(self) -> Iterator[Shard]:
        return iter(self._shards)
