"""The right to write to a folder, which one server has at a time; it ends with the process that has it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import socket
import struct
import weakref
from pathlib import Path

from distnet.errors import CheckpointError

__all__ = ["Claim"]

_NAME = ".lock"
_HELD = (errno.EACCES, errno.EAGAIN)
_WHOLE_FILE = "hhqqi0q"  # a struct flock: type, whence, start, length, process


class Claim:
    """A lock on the file ``.lock`` in a folder, which belongs to this object's own opening of the file (an OFD lock).

    It excludes other processes and other objects of this one. Another opening of the file, such as that of a copy of
    the folder, may come and go. The lock is gone when the process ends, however it ends: a forked child closes its copy
    of the descriptor.

    Args:
        folder: one that exists.

    Raises:
        CheckpointError: somebody else has the right; the message says who.
        OSError: the file cannot be made.
    """

    def __init__(self, folder: Path) -> None:
        self._descriptor = _locked(folder)
        _let_go_after_a_fork()
        _claims_of_this_process.add(self)
        with contextlib.suppress(OSError):  # on a full disk nobody reads who it was
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, f"{_this_process()}\n".encode(), 0)

    def release(self) -> None:
        """Let another have it. Twice is allowed; in a forked child nothing happens."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                _set_lock(descriptor, fcntl.F_UNLCK)  # also for a child that was forked this moment
            os.close(descriptor)

    def let_go(self) -> None:
        """Close this process's descriptor: what a forked process does with that of its parent."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


_claims_of_this_process: weakref.WeakSet[Claim] = weakref.WeakSet()


@functools.cache
def _let_go_after_a_fork() -> None:
    def let_go() -> None:
        for claim in list(_claims_of_this_process):
            claim.let_go()
        _claims_of_this_process.clear()

    os.register_at_fork(after_in_child=let_go)


def _locked(folder: Path) -> int:
    """Return a descriptor of the folder's file, which has the lock."""
    descriptor = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        _set_lock(descriptor, fcntl.F_WRLCK)
    except OSError as error:
        holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
        os.close(descriptor)
        if error.errno in _HELD:
            who = "another server of this process" if holder == _this_process() else holder or "another process"
            raise CheckpointError(
                f"{who} writes checkpoints to {folder} already; give this server a folder of its own"
            ) from None
        raise
    return descriptor


def _set_lock(descriptor: int, kind: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack(_WHOLE_FILE, kind, os.SEEK_SET, 0, 0, 0))


def _this_process() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"
