"""A shard in a process of its own, seen from its owner; ``distnet.shards.main`` is what the child runs.

The two speak JSON lines over the child's stdin and stdout; an answer carries the number of its question. The child ends
when it is told to, or when its owner is gone. Neither waits for the end of its stdin: a process that the owner forked
may hold that pipe open.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import select
import signal
import subprocess
import threading
import time
import weakref
from typing import Any

from distnet import errors
from distnet._private.spawn import python_command

__all__ = ["ShardProcess"]

STOP_SECONDS = 30.0  # the last bound: a shard that was told to stop settles what it has accepted
START_SECONDS = 120.0  # in which a new process imports the module and answers, also on a busy machine
ANSWER_SECONDS = 30.0  # in which it answers a question: a process that is stopped answers none


class ShardProcess:
    """A shard in a child process, which is spawned, never forked.

    Thread safety: any number of threads may ask; ``stop()`` is for one. In a process that the owner forked, this object
    does nothing: the shard is the owner's.
    """

    def __init__(self, settings: dict[str, Any], endpoint: str, *, pass_fds: tuple[int, ...] = ()) -> None:
        self._owner = os.getpid()
        self._asking = threading.Lock()  # a question and its answer belong together
        self._asked = 0
        self._received = b""
        self._unsent = b""
        self._process = subprocess.Popen(
            python_command("distnet.shards.main", str(self._owner)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=pass_fds,
            bufsize=0,  # a forked process must not write what a thread of the owner had left in a buffer
            start_new_session=True,  # Ctrl-C in the terminal goes to the owner, which ends its children in order
        )
        _let_go_after_a_fork()
        _shards_of_this_process.add(self)
        try:
            answer = self._ask({"settings": settings, "endpoint": endpoint}, START_SECONDS)
            self.endpoint: str = answer["endpoint"]
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def restore(self, **what: Any) -> None:
        """Give the shard its share of a snapshot, in a memory file that it was started with."""
        self._ask({"restore": what})

    def set_directory(self, directory: str, leader: str) -> None:
        """Tell the shard where clients find all shards, and where shard 0 listens."""
        self._ask({"directory": directory, "leader": leader})

    def start(self) -> None:
        """Begin to accept clients."""
        self._ask({"start": True})

    def excuse(self, rank: int) -> None:
        """Tell the shard, which is the first, that this rank will not come."""
        self._ask({"excuse": rank})

    def stats_json(self) -> str:
        """Return the shard's counters as JSON.

        Raises:
            DeadlineExceeded: the shard's process has not answered for :data:`ANSWER_SECONDS`: it is stopped, or stuck.
            PeerClosed: it is dead.
        """
        answer: str = self._ask({"stats": True})["stats"]
        return answer

    def memory_json(self) -> str:
        """Return what bounds the shard's memory as JSON."""
        answer: str = self._ask({"memory": True})["memory"]
        return answer

    def failure(self) -> str | None:
        """Return how the child died; None while it lives."""
        if os.getpid() != self._owner:
            return None  # only the owner can know
        code = self._process.poll()
        if code is None:
            return None
        if code < 0:
            hint = " (out of memory?)" if -code == signal.SIGKILL else ""
            return f"was killed by {signal.Signals(-code).name}{hint}"
        return f"ended with exit code {code}"

    def stop(self) -> None:
        """Tell the child to end in order, and wait for that; kill it where it does not."""
        if os.getpid() != self._owner:
            return
        stdin, stdout = self._pipes()
        if not stdin.closed:
            # Beside a question that another thread has asked: the child answers that one first, or just ends.
            with contextlib.suppress(BrokenPipeError):  # it is dead already
                os.write(stdin.fileno(), b'{"stop": true}\n')
            stdin.close()
        if self._asking.acquire(blocking=False):  # nobody reads: an answer that is left must not keep the child
            stdout.close()
            self._asking.release()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        stdout.close()

    def let_go(self) -> None:
        """Close this process's ends of the pipes: what a forked process does with those of its parent."""
        for pipe in self._pipes():
            pipe.close()

    def _pipes(self) -> tuple[Any, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def _ask(self, request: dict[str, Any], within_s: float | None = None) -> dict[str, Any]:
        if os.getpid() != self._owner:
            raise errors.ConfigError("this process was forked from the server's; only the server's own may use it")
        until_s = time.monotonic() + (ANSWER_SECONDS if within_s is None else within_s)
        if not self._asking.acquire(timeout=max(0.0, until_s - time.monotonic())):
            raise self._silent()
        try:
            self._asked += 1
            answer = self._exchange({**request, "number": self._asked}, until_s)
        except BrokenPipeError:
            answer = None
        finally:
            self._asking.release()
        if answer is None:
            self._process.wait(STOP_SECONDS)
            raise errors.PeerClosed(f"the server's process {self.failure()}")
        if "error" in answer:
            raise getattr(errors, answer["error"])(answer["message"])
        return answer

    def _exchange(self, request: dict[str, Any], until_s: float) -> dict[str, Any] | None:
        """Return the answer to one request; None where the child has closed its end."""
        stdin, _ = self._pipes()
        if stdin.closed:
            return None
        line = self._unsent + json.dumps(request).encode() + b"\n"
        self._unsent = b""
        try:
            while line:
                self._wait_for(stdin, select.POLLOUT, until_s)
                line = line[os.write(stdin.fileno(), line[: select.PIPE_BUF]) :]  # so much fits where anything does
        except BaseException:
            self._unsent = line  # the rest of a line that was begun comes before the next one
            raise
        while received := self._line(until_s):
            answer: dict[str, Any] = json.loads(received)
            if answer["number"] == request["number"]:
                return answer
            # else: a question that was given up, by Ctrl-C or for its timeout, had asked for this one
        return None

    def _line(self, until_s: float) -> bytes:
        _, stdout = self._pipes()
        while b"\n" not in self._received:
            self._wait_for(stdout, select.POLLIN, until_s)
            chunk = os.read(stdout.fileno(), 1 << 16)
            if not chunk:
                return b""
            self._received += chunk
        line, _, self._received = self._received.partition(b"\n")
        return line

    def _wait_for(self, pipe: Any, event: int, until_s: float) -> None:
        """Wait until a pipe can be read or written, or the child has closed its end of it."""
        poll = select.poll()  # takes any descriptor, where select() takes only those below 1,024
        poll.register(pipe.fileno(), event)
        if not poll.poll(max(0.0, until_s - time.monotonic()) * 1e3):
            raise self._silent()

    def _silent(self) -> errors.DeadlineExceeded:
        return errors.DeadlineExceeded(
            f"the server's process {self.pid} has not answered for {ANSWER_SECONDS:.0f} s: is it stopped?"
        )


_shards_of_this_process: weakref.WeakSet[ShardProcess] = weakref.WeakSet()


@functools.cache
def _let_go_after_a_fork() -> None:
    """Have each process that this one forks, such as a loader of ``multiprocessing``, close its copies of the pipes."""

    def let_go() -> None:
        for shard in list(_shards_of_this_process):
            shard.let_go()
        _shards_of_this_process.clear()

    os.register_at_fork(after_in_child=let_go)
