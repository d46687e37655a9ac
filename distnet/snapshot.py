"""A server's whole state at one moment, as a frozen value, and how it is handed to a shard that goes on from it."""

from __future__ import annotations

import dataclasses
import mmap
import os
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from distnet._private.arrays import Array, Arrays, ArraysLike, named_arrays
from distnet._private.bounds import MOST_RANK, MOST_SAVED_BYTES
from distnet._private.manifest import Manifest
from distnet.errors import ConfigError
from distnet.schedules import check_number

__all__ = ["Snapshot"]

_ALIGN_BYTES = 64


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Snapshot:
    """A server's whole state at one moment, as a frozen value.

    :meth:`distnet.ParameterServer.snapshot` returns it and ``ParameterServer(restore=...)`` puts it back. No push is
    half in it. The arrays are the snapshot's own: no later update changes them, and a server copies them when it
    starts. One may also be made of arrays from elsewhere, such as a file.

    Args:
        parameters: float32 arrays, a list or ``{name: array}`` as the model was given.
        optimizer_state: for each of the optimizer's state vectors, one float32 array for each tensor, of its shape.
            In the order of PyTorch's state: SGD has none, momentum its buffer, Adagrad and RMSProp their sum or mean of
            squares (and RMSProp its momentum and, where it is centered, its mean), Adam, AdamW and NAdam ``exp_avg``
            and ``exp_avg_sq`` (and ``max_exp_avg_sq`` with amsgrad), Lion ``exp_avg``.
        ema: the exponential moving average (EMA) of the parameters, of the same shapes, float32; None where none is
            kept.
        versions: for each shard, how many updates are in it. They are the position of the optimizer's schedule and of
            its bias correction, too. In ``sync`` they are the same, unless one shard refused all gradients of a round.
        round: in ``sync`` the number of the round that was open: those before it are in, its pushes are not. Else None.
        optimizer: kind, settings and schedule of the optimizer as plain values (:meth:`distnet.Optimizer.to_spec`).
        learning_rate: what :meth:`distnet.ParameterServer.set_learning_rate` set last, which counts in place of the
            optimizer's schedule; None: the schedule counts.
        saved: for each rank that called :meth:`distnet.Client.save_with`, the bytes of its newest push that is in the
            snapshot; where shards were cut by themselves, in shard 0's part of it.

    Raises:
        ConfigError: vectors that do not have the tensors of ``parameters``, or counts below 0; a learning rate that is
            not finite or negative; in ``saved`` a rank below 0, or anything but at most 65,536 bytes.

    Thread safety: it never changes, if its arrays are left alone.

    Example:
        >>> snapshot = distnet.Snapshot(
        ...     parameters={"w": np.ones(2, np.float32)},
        ...     optimizer_state=(),
        ...     ema=None,
        ...     versions=(7,),
        ...     round=None,
        ...     optimizer=distnet.SGD(0.1).to_spec(),
        ... )
        >>> with distnet.ParameterServer(restore=snapshot) as server:
        ...     server.stats().version, server.optimizer.learning_rate
        (7, 0.1)
    """

    parameters: Arrays
    optimizer_state: tuple[Arrays, ...]
    ema: Arrays | None
    versions: tuple[int, ...]
    round: int | None
    optimizer: Mapping[str, Any]
    learning_rate: float | None = None
    saved: Mapping[int, bytes] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "optimizer_state", tuple(self.optimizer_state))
        object.__setattr__(self, "versions", tuple(self.versions))
        object.__setattr__(self, "optimizer", MappingProxyType(dict(self.optimizer)))
        if self.learning_rate is not None:
            check_number("the snapshot's learning_rate", self.learning_rate)
            object.__setattr__(self, "learning_rate", float(self.learning_rate))
        _check_saved(self.saved)
        object.__setattr__(self, "saved", MappingProxyType(dict(sorted(self.saved.items()))))
        expected = described(self.parameters)
        vectors = {f"optimizer_state[{i}]": vector for i, vector in enumerate(self.optimizer_state)}
        if self.ema is not None:
            vectors["ema"] = self.ema
        for name, vector in vectors.items():
            check_same_tensors(f"the snapshot's {name}", described(vector), "its parameters", expected)
        counts = [*self.versions] if self.round is None else [*self.versions, self.round]
        if not self.versions or not all(_is_count(count) for count in counts):
            raise ConfigError(
                f"a snapshot with versions={self.versions} and round={self.round}; expected a count of 0 or above for "
                "each shard, and for the round"
            )

    @property
    def version(self) -> int:
        """The smallest of ``versions``."""
        return min(self.versions)

    def versions_for(self, shards: int, *, joins_all: bool) -> tuple[int, ...]:
        """Return the version that each of so many shards goes on from.

        Args:
            shards: how many shards there will be.
            joins_all: whether an update joins a push of every member of a round.

        Returns:
            Its own version for each where their number is that of the snapshot; else, and where a round joins all, the
            smallest for each.
        """
        if shards == len(self.versions) and not joins_all:
            return self.versions
        return (self.version,) * shards


@dataclasses.dataclass(frozen=True)
class Moment:
    """The moment that a server's state is of.

    Two states of a server that are of the same moment are the same.

    Attributes:
        versions: those of the snapshot.
        round: that of the snapshot.
        learning_rate: that of the snapshot.
    """

    versions: tuple[int, ...]
    round: int | None
    learning_rate: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """A server's whole state at one moment, about to be read: a :class:`Snapshot` whose arrays are yet to come.

    Args:
        named: whether the model's tensors have names of their own.
        tensors: name and shape of each.
        ema: whether an EMA is kept.
        state_vectors: how many state vectors the optimizer keeps.
        versions: those of the snapshot.
        round: that of the snapshot.
        optimizer: that of the snapshot, as plain values.
        learning_rate: that of the snapshot.
        read: to be called once: fills one list of float32 arrays for each vector (parameters, EMA where one is kept,
            the optimizer's state), an array for each tensor, and returns the saved bytes by rank.
    """

    named: bool
    tensors: tuple[tuple[str, tuple[int, ...]], ...]
    ema: bool
    state_vectors: int
    versions: tuple[int, ...]
    round: int | None
    optimizer: Mapping[str, Any]
    learning_rate: float | None
    read: Callable[[list[list[Array]]], Mapping[int, bytes]]

    @property
    def version(self) -> int:
        """The smallest of ``versions``."""
        return min(self.versions)

    @property
    def moment(self) -> Moment:
        """The moment that the state is of."""
        return Moment(self.versions, self.round, self.learning_rate)

    def snapshot(self) -> Snapshot:
        """Read it into arrays of its own."""
        manifest = Manifest(
            named=self.named,
            names=tuple(name for name, _ in self.tensors),
            shapes=tuple(shape for _, shape in self.tensors),
        )
        vectors = [manifest.empty_arrays() for _ in range(1 + self.ema + self.state_vectors)]
        saved = self.read(vectors)
        parameters, *others = (manifest.structured(arrays) for arrays in vectors)
        return Snapshot(
            parameters=parameters,
            ema=others.pop(0) if self.ema else None,
            optimizer_state=tuple(others),
            versions=self.versions,
            round=self.round,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            saved=saved,
        )


def cut_of(snapshot: Snapshot) -> Cut:
    """Return a snapshot as a cut, which copies its arrays where it is read."""
    vectors = _Vectors.of(snapshot)

    def read(to: list[list[Array]]) -> Mapping[int, bytes]:
        for targets, arrays in zip(to, vectors.all(), strict=True):
            for target, array in zip(targets, arrays, strict=True):
                target[...] = array
        return snapshot.saved

    return Cut(
        named=vectors.named,
        tensors=tuple((n, a.shape) for n, a in zip(vectors.names, vectors.parameters, strict=True)),
        ema=snapshot.ema is not None,
        state_vectors=len(vectors.state),
        versions=snapshot.versions,
        round=snapshot.round,
        optimizer=snapshot.optimizer,
        learning_rate=snapshot.learning_rate,
        read=read,
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and 0 <= value < 2**63


def _check_saved(saved: Mapping[Any, Any]) -> None:
    for rank, data in saved.items():
        if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank <= MOST_RANK:
            raise ConfigError(f"a snapshot with saved bytes of rank {rank!r}; expected ranks of 0 or above")
        if not isinstance(data, bytes) or len(data) > MOST_SAVED_BYTES:
            seen = f"{len(data)} bytes" if isinstance(data, bytes) else type(data).__name__
            raise ConfigError(f"a snapshot's saved[{rank}] is {seen}; expected at most {MOST_SAVED_BYTES} bytes")


def described(arrays: ArraysLike) -> list[tuple[str, tuple[int, ...]]]:
    """Return name and shape of each array."""
    return [(name, array.shape) for name, array in named_arrays(arrays)[1]]


def check_same_tensors(
    what: str, seen: list[tuple[str, tuple[int, ...]]], where: str, expected: list[tuple[str, tuple[int, ...]]]
) -> None:
    """Raise ConfigError that names both where the tensors differ."""
    if len(seen) != len(expected):
        raise ConfigError(f"{what} has {len(seen)} tensors, {where} {len(expected)}; they must be the same model's")
    for (name, shape), (expected_name, expected_shape) in zip(seen, expected, strict=True):
        if (name, shape) != (expected_name, expected_shape):
            raise ConfigError(
                f"{what} has a tensor {name!r} of shape {shape} where {where} has {expected_name!r} of shape "
                f"{expected_shape}; they must be the same model's, in the same order"
            )


def check_optimizer_kind(snapshot: Snapshot, spec: Mapping[str, Any], where: str = "the snapshot") -> None:
    """Raise ConfigError unless the optimizer, given by its specification, is of the kind that made the snapshot."""
    taken_with, now = snapshot.optimizer.get("name"), spec["name"]
    if taken_with != now:
        raise ConfigError(
            f"{where} was made with the optimizer {taken_with!r}, and the server has {now!r}; its state means "
            "something else there: use the same kind (its settings may differ)"
        )


@dataclasses.dataclass(frozen=True)
class _Vectors:
    """A snapshot's vectors as lists of arrays, in one order of tensors."""

    named: bool
    names: list[str]
    parameters: list[Array]
    ema: list[Array] | None
    state: list[list[Array]]

    @classmethod
    def of(cls, snapshot: Snapshot) -> _Vectors:
        named, pairs = named_arrays(snapshot.parameters)
        return cls(
            named,
            [name for name, _ in pairs],
            [array for _, array in pairs],
            None if snapshot.ema is None else _arrays(snapshot.ema),
            [_arrays(vector) for vector in snapshot.optimizer_state],
        )

    def all(self) -> Iterator[list[Array]]:
        yield self.parameters
        if self.ema is not None:
            yield self.ema
        yield from self.state


def _arrays(vector: ArraysLike) -> list[Array]:
    return [array for _, array in named_arrays(vector)[1]]


def restore_arguments(snapshot: Snapshot) -> dict[str, Any]:
    """Return those arguments of the native ``ShardServer.restore`` that are the same for every shard."""
    vectors = _Vectors.of(snapshot)
    tensors = list(zip(vectors.names, vectors.parameters, strict=True))
    return {
        "named": vectors.named,
        "tensors": tensors,
        "ema": vectors.ema,
        "state": vectors.state,
        "learning_rate": snapshot.learning_rate,
        "saved": dict(snapshot.saved),
    }


class MemoryFile:
    """A snapshot's vectors in a memory file, for shards that run in processes of their own.

    The file holds the arrays of all vectors one after another, then the saved bytes of each rank, each beginning at a
    multiple of 64 bytes.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        vectors = _Vectors.of(snapshot)
        self.fd = os.memfd_create("distnet-restore", os.MFD_CLOEXEC)
        try:
            arrays = [array for vector in vectors.all() for array in vector]
            for array in arrays:
                _write(self.fd, array.reshape(-1).view(np.uint8).data)
            for data in snapshot.saved.values():
                _write(self.fd, memoryview(data))
        except BaseException:
            self.close()
            raise
        self.description: dict[str, Any] = {
            "fd": self.fd,
            "named": vectors.named,
            "tensors": [(n, a.shape) for n, a in zip(vectors.names, vectors.parameters, strict=True)],
            "ema": vectors.ema is not None,
            "state": len(vectors.state),
            "learning_rate": snapshot.learning_rate,
            "saved": [(rank, len(data)) for rank, data in snapshot.saved.items()],
        }

    def close(self) -> None:
        """Let the memory go, once every shard has taken its share."""
        os.close(self.fd)


def _padding(size_bytes: int) -> int:
    return -size_bytes % _ALIGN_BYTES


def _write(fd: int, data: memoryview) -> None:
    for part in (data, memoryview(bytes(_padding(data.nbytes)))):
        left = part
        while left:
            left = left[os.write(fd, left) :]


def take_memory_file(description: Mapping[str, Any]) -> dict[str, Any]:
    """Return what :func:`restore_arguments` does, from a memory file that this process was started with; closes it."""
    fd: int = description["fd"]
    try:
        size_bytes = os.fstat(fd).st_size
        memory = mmap.mmap(fd, size_bytes, access=mmap.ACCESS_READ) if size_bytes else b""
    finally:
        os.close(fd)
    offset = 0

    def take() -> list[Array]:
        nonlocal offset
        arrays = []
        for _, shape in description["tensors"]:
            count = int(np.prod(shape, dtype=np.int64))
            arrays.append(np.frombuffer(memory, np.float32, count, offset).reshape(shape))
            offset += 4 * count + _padding(4 * count)
        return arrays

    parameters = take()
    ema = take() if description["ema"] else None
    state = [take() for _ in range(description["state"])]
    saved = {}
    for rank, size in description["saved"]:
        saved[rank] = bytes(memory[offset : offset + size])
        offset += size + _padding(size)
    names = [name for name, _ in description["tensors"]]
    tensors = list(zip(names, parameters, strict=True))
    return {
        "named": description["named"],
        "tensors": tensors,
        "ema": ema,
        "state": state,
        "learning_rate": description["learning_rate"],
        "saved": saved,
    }
