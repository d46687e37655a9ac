"""What a server goes on from: a file, a folder's latest, or a snapshot, with what is the file's to decide."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distnet._private.arrays import ArraysLike
from distnet.checkpoint.arguments import Difference, arguments_from_spec, decide
from distnet.checkpoint.contents import Checkpoint
from distnet.checkpoint.folder import load
from distnet.errors import ConfigError
from distnet.optimizers import state_meaning
from distnet.semantics import SEMANTICS, Semantics
from distnet.snapshot import Snapshot, check_optimizer_kind, check_same_tensors, described

__all__ = ["Restored", "Restoring"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored:
    """What a server went on from.

    Attributes:
        path: the checkpoint's file; None for a :class:`distnet.Snapshot`.
        versions: the version of each shard at that moment.
        round: in ``sync`` the number of the round that was open; else None.
        differences: a :class:`Difference` for each argument that was given and is not as it was.

    Thread safety: it never changes.

    Example:
        >>> with distnet.ParameterServer([np.ones(2, np.float32)], workers=2) as server:
        ...     file = server.checkpoint("checkpoints")
        >>> restored = distnet.ParameterServer(restore="checkpoints", workers=4).restored
        >>> restored.path.name == file.name, restored.versions
        (True, (0,))
        >>> print(*restored.differences)
        workers is 4, and was 2
    """

    path: Path | None
    versions: tuple[int, ...]
    round: int | None
    differences: tuple[Difference, ...]


class Restoring:
    """The value of a server's argument ``restore=``.

    Args:
        restore: the argument.
        given: the other arguments that count here (:data:`distnet.checkpoint.arguments.DEFAULTS`); None: not given.

    Attributes:
        arguments: all of those: what was given, else the checkpoint's, else the default.
        restored: what the server tells about it.

    Raises:
        ConfigError: something else than what can be restored, or an optimizer of another kind.
        CheckpointError: what :func:`distnet.checkpoint.load` raises.
    """

    def __init__(self, restore: object, given: Mapping[str, Any]) -> None:
        self._state: Snapshot | None = None
        self._path: Path | None = None
        if isinstance(restore, str | os.PathLike):
            restore = load(restore)
            self._path = restore.path  # memory for its arrays is held only until the server has them
        elif not isinstance(restore, Checkpoint | Snapshot):
            raise ConfigError(
                f"restore is {type(restore).__name__}; expected the path of a checkpoint, that of a folder of them, or "
                "what snapshot() returns, a distnet.Snapshot"
            )
        state = restore.snapshot() if isinstance(restore, Checkpoint) else restore
        optimizer: Any = given.get("optimizer")
        if optimizer is not None:
            where = str(restore.path) if isinstance(restore, Checkpoint) else "the snapshot"
            check_optimizer_kind(state, optimizer.to_spec(), where)
            _check_state_meaning(state, optimizer.to_spec(), where)
        kept = (
            restore.arguments() if isinstance(restore, Checkpoint) else _arguments_of(restore, given.get("semantics"))
        )
        self.arguments, differences = decide(given, kept)
        spec = self.arguments["optimizer"].to_spec()
        self._rate_counts = spec["schedule"] == kept["optimizer"].to_spec()["schedule"]
        if state.learning_rate is not None and not self._rate_counts:
            differences.append(
                Difference("learning_rate", state.learning_rate, optimizer.learning_rate)
            )  # it was given
        self.restored = Restored(
            path=restore.path if isinstance(restore, Checkpoint) else None,
            versions=state.versions,
            round=state.round,
            differences=tuple(differences),
        )
        self._state = self._adjusted(state)

    def state(self) -> Snapshot:
        """Return the state to go on from; a file is read again where :meth:`let_go` was called.

        Returns:
            The state, without what the server's arguments have no use for.
        """
        if self._state is None:
            assert self._path is not None
            self._state = self._adjusted(load(self._path).snapshot())
        return self._state

    def let_go(self) -> None:
        """Give the memory of a file's arrays back, once every shard has its share."""
        if self._path is not None:
            self._state = None

    def check(self, parameters: ArraysLike) -> None:
        """Compare a model with the state's tensors: by name, in any order, or by order in lists.

        Args:
            parameters: a list of arrays, or ``{name: array}``.

        Raises:
            ConfigError: they are not the same.
        """
        where = "the snapshot" if self.restored.path is None else str(self.restored.path)
        kept = self.state().parameters
        seen, expected = described(parameters), described(kept)
        if isinstance(parameters, Mapping) and isinstance(kept, Mapping):
            seen, expected = sorted(seen), sorted(expected)
        check_same_tensors("parameters=", seen, where, expected)

    def _adjusted(self, state: Snapshot) -> Snapshot:
        """Leave out what the server's arguments have no use for."""
        return dataclasses.replace(
            state,
            ema=state.ema if self.arguments["ema_decay"] else None,
            learning_rate=state.learning_rate if self._rate_counts else None,
        )


def _arguments_of(snapshot: Snapshot, given: Semantics | None) -> dict[str, Any]:
    """Return the arguments that a snapshot tells of: the optimizer, and by its open round that it joined all pushes.

    Args:
        snapshot: in memory.
        given: the semantics that the server is told. One that joins all pushes, too, may be what the snapshot had.
    """
    arguments = arguments_from_spec({"optimizer": dict(snapshot.optimizer)})
    if snapshot.round is None or (given is not None and given.joins == "all"):
        return arguments
    return {**arguments, "semantics": SEMANTICS["sync"]}


def _check_state_meaning(snapshot: Snapshot, spec: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError where as many vectors mean something else; another number of them is the engine's to refuse."""
    (_, kept, *held), (_, needed, *holds) = state_meaning(snapshot.optimizer), state_meaning(spec)
    if len(kept) == len(needed) and (kept, held) != (needed, holds):
        raise ConfigError(
            f"{where} was made with {spec['name']} of {dict(snapshot.optimizer.get('settings', {}))}, and the server "
            f"has one of {spec['settings']}; its state means something else there: use the settings that it was made "
            "with"
        )
