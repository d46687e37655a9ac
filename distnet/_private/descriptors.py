"""How many file descriptors a process may have."""

from __future__ import annotations

import contextlib
import resource

__all__ = ["raise_descriptor_limit"]


def raise_descriptor_limit() -> int:
    """Raise this process's soft limit of file descriptors to its hard one. Returns the limit that holds now.

    A session takes some descriptors, so a server under the usual soft limit of 1,024 is full at about 150 clients. Only
    for processes that run nothing but DistNet: programs that use ``select()`` rely on low numbers, and a user's own
    process keeps the limit that the user gave it.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # a system that grants less than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
