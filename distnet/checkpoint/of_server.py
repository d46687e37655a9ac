"""The checkpoints of one server: in its own folder, now and then and at the end, and elsewhere where it is asked."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from distnet.checkpoint.every import DEFAULT_EVERY, Every, parse_every
from distnet.checkpoint.folder import CheckpointFolder
from distnet.checkpoint.periodic import PeriodicCheckpoints
from distnet.checkpoint.writer import CheckpointWriter
from distnet.errors import ConfigError
from distnet.snapshot import Cut, Moment
from distnet.stats import ServerStatistics

__all__ = ["ServerCheckpoints", "Source"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """What checkpoints are made of: calls of a server, from any thread.

    Attributes:
        learn: has the server learn which optimizer came with the model, and call
            :meth:`ServerCheckpoints.take_arguments` then.
        cut: gives the state at one moment, to be read within its context.
        stats: returns the server's counters.
    """

    learn: Callable[[], None]
    cut: Callable[[], AbstractContextManager[Cut]]
    stats: Callable[[], ServerStatistics]

    def moment(self) -> Moment:
        """Return the moment of a cut that is made now."""
        with self.cut() as cut:
            return cut.moment


class ServerCheckpoints:
    """What writes one server's checkpoints.

    Args:
        folder: the server's own; None: it has none.
        every: how often one is written there by itself; None: only at the end, and when asked.
        keep: how many are kept in a folder.
        arguments: of the server, those that a checkpoint keeps, each with a value.

    Raises:
        ConfigError: ``every`` makes no sense, or is given without a folder.

    Thread safety: ``write()`` and ``take_arguments()`` from any thread, the rest from the one that starts and stops the
    server.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None,
        every: str | Every | None,
        keep: int,
        arguments: Mapping[str, Any],
    ) -> None:
        if folder is None and every not in (None, DEFAULT_EVERY):
            raise ConfigError(f"checkpoint_every is {every!r}, without checkpoint=: give it a folder")
        self._every = None if every is None else parse_every(every)
        self._keep = keep
        self._folder = None if folder is None else CheckpointFolder(folder, keep)
        self._periodic: PeriodicCheckpoints | None = None
        self.take_arguments(arguments)

    def take_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Write these arguments of the server into every later checkpoint.

        Args:
            arguments: those that a checkpoint keeps, each with a value.
        """
        self._writer = CheckpointWriter(arguments, None if self._folder is None else self._every)

    # ---- the server's own folder -----------------------------------------------------------------------------------
    def take_folder(self, restored: Path | None) -> None:
        """Claim the server's folder, before the server starts.

        Args:
            restored: the file that the server goes on from; None: it begins anew.

        Raises:
            CheckpointError: no checkpoint can be written there, or another server writes there.
        """
        if self._folder is not None:
            self._folder.take(restored)

    def release_folder(self) -> None:
        """Let the folder go, where the server could not start."""
        if self._folder is not None:
            self._folder.release()

    def begin(self, source: Source, started_from: Moment) -> None:
        """Write checkpoints into the server's folder from now on.

        Args:
            source: the server; it is held until :meth:`end`.
            started_from: the moment that the server began at.
        """
        if self._folder is not None:
            self._periodic = PeriodicCheckpoints(
                self._folder,
                self._every,
                write=functools.partial(self._write_into, source),
                moment=source.moment,
                stats=source.stats,
                started_from=started_from,
            )

    @property
    def writing(self) -> bool:
        """Whether checkpoints are written into the server's folder: it has one, and has begun and not ended."""
        return self._periodic is not None

    def write_last(self) -> None:
        """Write the last one now, if anything has changed; :meth:`end` then writes none.

        Raises:
            DistNetError: it cannot be written.
        """
        if self._periodic is not None:
            self._periodic.write_last()

    def end(self) -> str | None:
        """Write the last one, if anything has changed, and let the folder go.

        Returns:
            Why the last one is missing; None where it is not.
        """
        periodic, self._periodic = self._periodic, None
        return None if periodic is None else periodic.end()

    # ---- any folder ------------------------------------------------------------------------------------------------
    def write(self, source: Source, folder: str | os.PathLike[str] | CheckpointFolder | None) -> Path:
        """Write one now.

        Args:
            source: the server.
            folder: where; None: into the server's own.

        Returns:
            Its file.

        Raises:
            ConfigError: no folder was given, here or to the server.
            DistNetError: it cannot be written.
        """
        own = self._periodic
        if folder is None and own is None:
            raise ConfigError("checkpoint() needs a folder where the server was not given checkpoint=, or does not run")
        path = folder.path if isinstance(folder, CheckpointFolder) else folder
        if own is not None and (path is None or own.is_of(path)):
            return own.write_now()
        if not isinstance(folder, CheckpointFolder):
            assert path is not None
            folder = CheckpointFolder(path, self._keep)
        return self._write_into(source, folder)[0]

    def _write_into(
        self, source: Source, folder: CheckpointFolder, within_s: float | None = None
    ) -> tuple[Path, Moment]:
        source.learn()
        return self._writer.write(folder, within_s, cut=source.cut, stats=source.stats)
