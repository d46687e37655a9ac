"""The right to write to a folder, which one server has at a time; it ends with the process that has it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import threading
from pathlib import Path

from distnet.errors import CheckpointError

__all__ = ["Claim"]

_NAME = ".lock"
_HELD = (errno.EACCES, errno.EAGAIN)
_claimed: set[tuple[int, int]] = set()  # by this process: device and number of the file
_claiming = threading.Lock()


class Claim:
    """A POSIX lock on the file ``.lock`` in a folder.

    Such a lock belongs to a process, so a forked child neither holds it nor keeps it; it is gone when the process ends,
    however it ends. Within a process it excludes nobody, so those of this process are in a set beside it.

    Raises:
        CheckpointError: somebody else has the right; the message says who.
        OSError: the file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._owner = os.getpid()
        self._descriptor = -1
        path = folder / _NAME
        with _claiming:
            # Closing any descriptor of the file would let this process's lock go, so nothing is opened before a look.
            if _key(path) in _claimed:
                raise CheckpointError(_taken(folder, "another server of this process"))
            self._descriptor = _locked(folder, path)
            self._key = _key(self._descriptor)
            _claimed.add(self._key)
        with contextlib.suppress(OSError):  # on a full disk nobody reads who it was
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"process {self._owner} on {socket.gethostname()}\n".encode(), 0)

    def release(self) -> None:
        """Let another have it. Twice is allowed; in a forked child nothing happens."""
        if self._descriptor < 0 or os.getpid() != self._owner:
            return
        descriptor, self._descriptor = self._descriptor, -1
        with _claiming:
            _claimed.discard(self._key)
            os.close(descriptor)


def _key(file: Path | int) -> tuple[int, int]:
    try:
        status = os.stat(file)
    except FileNotFoundError:
        return (-1, -1)
    return (status.st_dev, status.st_ino)


def _locked(folder: Path, path: Path) -> int:
    """Return a descriptor of the file, once this process has its lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        os.close(descriptor)
        if error.errno in _HELD:
            raise CheckpointError(_taken(folder, holder or "another process")) from None
        raise
    return descriptor


def _taken(folder: Path, holder: str) -> str:
    return f"{holder} writes checkpoints to {folder} already; give this server a folder of its own"
