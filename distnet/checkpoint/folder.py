"""A folder of checkpoints: a file for each version, ``latest``, and the last few kept.

::

    checkpoint-000000000500.safetensors
    checkpoint-000000001000.safetensors
    latest -> checkpoint-000000001000.safetensors
    .lock                                          says whose the folder is

Invariants:

- A name without a dot before it stands for a whole file that is on the disk: a file is written and flushed under
  another name, then renamed, and the folder is flushed before ``latest`` is moved to it.
- ``latest`` is moved in one step, and the file that it names is never removed here. So whenever a writer is killed, the
  checkpoint before or the new one is there.
- One process at a time writes (``claim.py``). So what has the name of an unfinished file was left by one that is gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from distnet._private.bounds import MOST_KEPT_CHECKPOINTS, check_whole
from distnet.checkpoint.claim import Claim
from distnet.checkpoint.contents import Checkpoint, read_checkpoint, write_checkpoint
from distnet.checkpoint.file import reserve_file, write_file
from distnet.checkpoint.layout import layout_of
from distnet.errors import CheckpointError, DistNetError
from distnet.optimizers import state_names
from distnet.snapshot import Cut, Snapshot, cut_of

__all__ = ["CheckpointFolder", "load"]

_LOG = logging.getLogger("distnet")
_LATEST = "latest"
_FILE = re.compile(r"checkpoint-(\d{12,19})\.safetensors", re.ASCII)
_UNFINISHED = re.compile(r"\.(checkpoint|latest|try|try-link)\.part", re.ASCII)
_ATTEMPTS = 5  # to read the latest, where a writer removes files meanwhile


class Server(Protocol):
    """What has a state to write: a :class:`distnet.ParameterServer`."""

    def checkpoint(self, folder: CheckpointFolder, /) -> Path:
        """Write its state into the folder."""


class CheckpointFolder:
    """A folder of checkpoints, for one server at a time.

    Args:
        path: the folder's path; the folder is made where it is not there, with its parents.
        keep: how many are kept, at least 1, of the checkpoints up to the one that was written last. Files of later
            versions, which a server that started from an earlier one finds, are left alone until it passes them.

    Attributes:
        path: the folder's absolute path.
        keep: how many are kept.

    Raises:
        ConfigError: ``keep`` is less than 1.

    Thread safety: one thread at a time writes; any may look.

    Example:
        >>> folder = distnet.checkpoint.CheckpointFolder("checkpoints", keep=1)
        >>> with distnet.ParameterServer([np.zeros(1, np.float32)]) as server:
        ...     first = folder.write(server)
        ...     with distnet.connect(server.address, rank=0) as client:
        ...         client.push([np.ones(1, np.float32)])
        ...     second = folder.write(server)
        >>> [file.name for file in folder.files()], folder.latest() == second
        (['checkpoint-000000000001.safetensors'], True)
    """

    def __init__(self, path: str | os.PathLike[str], keep: int = 3) -> None:
        check_whole("the number of checkpoints to keep", keep, 1, MOST_KEPT_CHECKPOINTS)
        self.path = Path(path).absolute()  # the process may go elsewhere
        self.keep = keep
        self._unfinished = self.path / ".checkpoint.part"
        self._claim: Claim | None = None

    def claim(self) -> None:
        """Make the folder, and have it for this object alone until :meth:`release`, or until the process ends.

        Raises:
            CheckpointError: another server writes there, or the folder cannot be made.
        """
        if self._claim is None:
            with self._writing():
                _make(self.path)
                self._claim = Claim(self.path)

    def take(self, restored: Path | None) -> None:
        """Claim the folder for a server that starts, try it, and say so where checkpoints of another run are in it.

        Args:
            restored: the file that the server goes on from; None: it begins anew.

        Raises:
            CheckpointError: what :meth:`claim` and :meth:`check_writable` raise.
        """
        self.claim()
        try:
            self.check_writable()
            files = self.files()
        except BaseException:
            self.release()
            raise
        if files and (restored is None or restored.resolve().parent != self.path.resolve()):
            _LOG.warning(
                "%s holds checkpoints of an earlier run, up to %s, which this server does not go on from; those of the "
                "same versions are replaced (restore= goes on from them, another folder keeps them apart)",
                self.path,
                files[-1].name,
            )

    def release(self) -> None:
        """Let others write to the folder."""
        claim, self._claim = self._claim, None
        if claim is not None:
            claim.release()

    def check_writable(self) -> None:
        """Do all that writing a checkpoint does, with a small file, and leave nothing of it.

        Raises:
            CheckpointError: it cannot be done; the message has the folder and the reason.
        """
        with self._claimed(), self._writing():
            self._remove_unfinished()
            unfinished, link = self.path / ".try.part", self.path / ".try-link.part"
            write_file(unfinished, layout_of([("try", (1024,))], ema=False, state=()), lambda _: b"saved", {})
            os.symlink(unfinished.name, link)
            os.replace(link, unfinished)
            self._flush()
            os.unlink(unfinished)

    def write(self, source: Server | Snapshot) -> Path:
        """Write a checkpoint of a server as it is now, or of a snapshot.

        Args:
            source: the server, which runs, or the snapshot.

        Returns:
            The file, which is on the disk by then.

        Raises:
            CheckpointError: it cannot be written; the message has the folder and the reason.
            DistNetError: what :meth:`distnet.ParameterServer.snapshot` raises.
        """
        if not isinstance(source, Snapshot):
            return source.checkpoint(self)
        cut = cut_of(source)
        layout = layout_of(cut.tensors, ema=cut.ema, state=state_names(cut.optimizer, cut.state_vectors))
        with self.room(layout.data_bytes):
            return self.write_cut(cut, {})

    @contextlib.contextmanager
    def room(self, expected_bytes: int) -> Iterator[None]:
        """Have the folder, and disk space for a file of about that size, for one :meth:`write_cut` within.

        A cut is begun within it and not before: taking the space takes long where the file system has no call for it,
        and the shards would give up a cut whose reader is busy with that.

        Args:
            expected_bytes: about how large the file will be.

        Yields:
            None.

        Raises:
            CheckpointError: there is no such space, or another server writes there.
        """
        with self._claimed():
            try:
                with self._writing():
                    self._remove_unfinished()
                    reserve_file(self._unfinished, expected_bytes)
                yield
            finally:
                with contextlib.suppress(OSError):
                    os.unlink(self._unfinished)

    def write_cut(self, cut: Cut, arguments: Mapping[str, Any]) -> Path:
        """Write a state, which is read on the way; within :meth:`room`.

        Args:
            cut: the state.
            arguments: those of the server, as plain values.

        Returns:
            The file, which is on the disk by then.

        Raises:
            CheckpointError: it cannot be written; the message has the folder and the reason.
            DistNetError: what ended the reading of the cut.
        """
        name = f"checkpoint-{cut.version:012d}.safetensors"
        file = self.path / name
        with self._writing():
            write_checkpoint(self._unfinished, cut, arguments)
            os.replace(self._unfinished, file)
            self._flush()
            link = self.path / f".{_LATEST}.part"
            os.symlink(name, link)
            os.replace(link, self.path / _LATEST)
            self._flush()
            self._remove_old(cut.version)
        return file

    def latest(self) -> Path | None:
        """Return the file that ``latest`` names.

        Returns:
            Its path. Where there is no such link or file, that of the highest version; None where there is no
            checkpoint.
        """
        return newest_in(self.path)

    def files(self) -> list[Path]:
        """Return the files of all checkpoints.

        Returns:
            Their paths, in the order of their versions.
        """
        return [self.path / name for _, name in _versions_in(self.path)]

    @contextlib.contextmanager
    def _claimed(self) -> Iterator[None]:
        had = self._claim is not None
        self.claim()
        try:
            yield
        finally:
            if not had:
                self.release()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, DistNetError):  # of the server that is read: some are errors of the system, too
                raise
            raise CheckpointError(f"cannot write a checkpoint to {self.path}: {error.strerror or error}") from error

    def _flush(self) -> None:
        """Have the folder's own entries on the disk."""
        _flush(self.path)

    def _remove_unfinished(self) -> None:
        for name in os.listdir(self.path):
            if _UNFINISHED.fullmatch(name):
                os.unlink(self.path / name)

    def _remove_old(self, version: int) -> None:
        names = [name for found, name in _versions_in(self.path) if found <= version]
        for name in names[: -self.keep]:
            try:
                os.unlink(self.path / name)
            except OSError as error:  # the checkpoint itself is there
                _LOG.warning("cannot remove the old checkpoint %s: %s", self.path / name, error.strerror or error)


def _make(folder: Path) -> None:
    """Make a folder, with its parents, and have their entries on the disk."""
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    for place in reversed(missing):
        place.mkdir(exist_ok=True)
        _flush(place.parent)
    folder.mkdir(exist_ok=True)  # an error where there is something else in its place


def _flush(folder: Path) -> None:
    """Have a folder's entries on the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _versions_in(folder: Path) -> list[tuple[int, str]]:
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    return sorted((int(found[1]), name) for name in names if (found := _FILE.fullmatch(name)))


def newest_in(folder: Path) -> Path | None:
    """Return the newest checkpoint of a folder.

    Args:
        folder: one that may be missing.

    Returns:
        The file that its ``latest`` names, else that of the highest version; None where it has none.
    """
    latest = folder / _LATEST
    with contextlib.suppress(OSError):
        if latest.is_file():
            return folder / os.readlink(latest) if latest.is_symlink() else latest
    versions = _versions_in(folder)
    return folder / versions[-1][1] if versions else None


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Return a checkpoint: of a file, or the latest of a folder.

    Args:
        path: the file's path, or the folder's.

    Returns:
        All of it, read into memory.

    Raises:
        CheckpointError: there is none, or the file is no checkpoint, is of a newer format, is cut short or damaged.

    Thread safety: any thread; also while a server writes to the folder.

    Example:
        The server writes a last checkpoint when it stops.

        >>> model = {"w": np.ones(2, np.float32)}
        >>> with distnet.ParameterServer(model, checkpoint="checkpoints") as server:
        ...     with distnet.connect(server.address, rank=0) as client:
        ...         client.push({"w": np.ones(2, np.float32)})
        >>> distnet.checkpoint.load("checkpoints").version
        1
    """
    place = Path(path)
    for attempt in range(_ATTEMPTS):
        if not place.is_dir():
            return read_checkpoint(place)
        file = newest_in(place)
        if file is None:
            raise CheckpointError(f"the folder {place} holds no checkpoint")
        try:
            return read_checkpoint(file)
        except CheckpointError:
            # A writer may have put a newer one there, and removed this one.
            if file.exists() or attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")
