"""The process of one shard: ``python -m distnet.shards.main OWNER``, where OWNER is the process id of its parent.

It does what JSON lines on its stdin say, until one says stop or the owner is gone; see ``distnet.shards.owner``.
Signals that a whole job gets, such as a scheduler's SIGTERM, are the owner's to act on: it may yet want the parameters.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import Any

from distnet import _native, errors
from distnet._private.descriptors import raise_descriptor_limit
from distnet.snapshot import take_memory_file

__all__ = ["main"]

_LOOK_FOR_OWNER_S = 0.5  # where the system cannot tell of its end


class Owner:
    """The process that started this one: what it says, and whether it is there."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._descriptor: int | None = None
        with contextlib.suppress(AttributeError, OSError):  # no such call in this Python or in this kernel
            self._descriptor = os.pidfd_open(pid)

    def requests(self) -> Iterator[dict[str, Any]]:
        """Yield what the owner asks, until it is gone or has closed its end."""
        stdin, received = sys.stdin.fileno(), b""
        watched = [stdin] if self._descriptor is None else [stdin, self._descriptor]
        # A parent that died before it could be watched has handed this process on to another.
        while os.getppid() == self._pid:
            ready, _, _ = select.select(watched, [], [], None if self._descriptor is not None else _LOOK_FOR_OWNER_S)
            if self._descriptor in ready:
                return
            if stdin not in ready:
                continue
            chunk = os.read(stdin, 1 << 16)
            if not chunk:
                return
            *lines, received = (received + chunk).split(b"\n")
            yield from (json.loads(line) for line in lines)

    def answer(self, answer: dict[str, Any]) -> None:
        """Say something to the owner, if it still listens; that it is gone is noticed elsewhere."""
        line = memoryview(json.dumps(answer).encode() + b"\n")
        with contextlib.suppress(BrokenPipeError):
            while line:
                line = line[os.write(sys.stdout.fileno(), line) :]


def _answer(server: _native.ShardServer, request: dict[str, Any]) -> dict[str, Any]:
    if "restore" in request:
        place = {key: request["restore"][key] for key in ("shard", "shards", "version", "first_round")}
        server.restore(**take_memory_file(request["restore"]), **place)
    if "directory" in request:
        server.set_directory(request["directory"], request["leader"])
    if "start" in request:
        server.start()
    if "excuse" in request:
        server.excuse(request["excuse"])
    if "stats" in request:
        return {"stats": server.stats_json()}
    if "memory" in request:
        return {"memory": server.memory_json()}
    return {}


def _serve(owner: Owner) -> None:
    server: _native.ShardServer | None = None
    try:
        for request in owner.requests():
            if "stop" in request:
                return
            try:
                if server is None:
                    server = _native.ShardServer(request["settings"], request["endpoint"])
                    answer = {"endpoint": server.endpoint}
                else:
                    answer = _answer(server, request)
            except errors.DistNetError as error:
                answer = {"error": type(error).__name__, "message": str(error)}
            owner.answer({**answer, "number": request["number"]})
    finally:
        if server is not None:
            server.stop()


def main() -> int:
    """Serve one shard until its owner says stop, or is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    owner = Owner(int(sys.argv[1]))
    raise_descriptor_limit()
    _serve(owner)
    return 0


if __name__ == "__main__":
    sys.exit(main())
