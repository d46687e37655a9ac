"""A server in a process of its own, whose descriptors, threads and memory can be watched and limited."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAM = Path(__file__).parent / "workers" / "limited.py"
WAIT_S = 60.0


def end_by_closing(process: subprocess.Popen[bytes], within_s: float) -> None:
    """End a process that reads its orders from a pipe by closing that; kill it where it does not end in time."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    try:
        process.wait(within_s)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class LimitedServer:
    """Serves a model of zeros, in a ``with`` statement.

    Args:
        limit: the soft limit of descriptors of its process; 0 leaves it.
        floats: of the model; 0 has rank 0 bring it.
        arguments: of ``ParameterServer``, as JSON can say them.

    Attributes:
        address: what clients connect to.
    """

    def __init__(self, limit: int = 0, *, floats: int = 1000, **arguments: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(limit), json.dumps({"floats": floats, **arguments})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.address = ""

    def __enter__(self) -> LimitedServer:
        self.address = self._line()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end_by_closing(self._process, WAIT_S)
        assert kind is not None or self._process.returncode == 0

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, question: str) -> Any:
        """Return the answer to ``"stats"`` or ``"memory"`` (bytes)."""
        assert self._process.stdin is not None
        self._process.stdin.write(question.encode() + b"\n")
        self._process.stdin.flush()
        return self._line()

    def descriptors(self) -> int:
        """Return how many its process has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def descriptors_of_peers(self) -> int:
        """Return how many there are beside memory files: buffers of versions are made when first needed, and kept."""
        count = 0
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                count += not os.readlink(entry).startswith("/memfd:distnet")
        return count

    def threads(self) -> int:
        """Return how many threads its process has."""
        return len(os.listdir(f"/proc/{self.pid}/task"))

    def memory_bytes(self) -> int:
        """Return what its process holds of its own and of shared memory."""
        fields = (line.split() for line in Path(f"/proc/{self.pid}/status").read_text().splitlines())
        kilobytes = {field[0]: int(field[1]) for field in fields if field[0] in ("RssAnon:", "RssShmem:")}
        return 1024 * sum(kilobytes.values())

    def _line(self) -> Any:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], WAIT_S)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            raise EOFError("the server's process has not answered")
        return json.loads(line)
