"""A shard in a process of its own, seen from the parent; ``distnet.shard_main`` is what the child runs.

The two speak JSON lines over the child's stdin and stdout. The child ends when its stdin does, so it never outlives its
parent.
"""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import threading
from typing import Any

from distnet import errors
from distnet.spawn import python_command

__all__ = ["ShardProcess"]

STOP_SECONDS = 30.0


class ShardProcess:
    """A shard in a child process, which is spawned, never forked."""

    def __init__(self, settings: dict[str, Any], endpoint: str) -> None:
        self._asking = threading.Lock()  # a question and its answer belong together
        self._process = subprocess.Popen(
            python_command("distnet.shard_main"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C in the terminal goes to the parent, which ends its children in order
        )
        try:
            self.endpoint: str = self._ask({"settings": settings, "endpoint": endpoint})["endpoint"]
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def set_directory(self, directory: str) -> None:
        """Tell the shard where all shards listen."""
        self._ask({"directory": directory})

    def start(self) -> None:
        """Begin to accept clients."""
        self._ask({"start": True})

    def stats_json(self) -> str:
        """Return the shard's counters as JSON."""
        answer: str = self._ask({"stats": True})["stats"]
        return answer

    def failure(self) -> str | None:
        """Return how the child died; None while it lives."""
        code = self._process.poll()
        if code is None:
            return None
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}"
        return f"ended with exit code {code}"

    def stop(self) -> None:
        """End the child in order; kill it where it does not."""
        if self._process.stdin is not None and not self._process.stdin.closed:
            with contextlib.suppress(BrokenPipeError):  # it is dead already
                self._process.stdin.close()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._asking:
            try:
                self._process.stdin.write(json.dumps(request) + "\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
            except BrokenPipeError:
                line = ""
        if not line:
            self._process.wait(STOP_SECONDS)
            raise errors.PeerClosed(f"the shard's process {self.failure()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise getattr(errors, answer["error"])(answer["message"])
        return answer
