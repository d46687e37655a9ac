"""The child processes of a launcher: started, listened to, and stopped in order.

Invariants: no child outlives its launcher (the tether ends it when the launcher is killed; ``stop`` when it is not);
every child has its own process group, so that Ctrl-C in a terminal reaches the launcher alone, which decides the order.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO

from distnet.launch.children import tether
from distnet.launch.children.child import Child, Ended, Line
from distnet.launch.output.lines import LineCutter, Piece

__all__ = ["Children"]

_LOOK_FOR_PARTS_S = 0.1  # how often a line without an end is looked at
_DRAIN_S = 1.0  # how long a dead child's pipe is still read when a grandchild holds it open


class Children:
    """The children of one job. Leaving the ``with`` block stops those still alive.

    Args:
        partial_after_s: after how long a line without an end is told of, too; progress bars are then told of as they
            move. None: only whole lines are, for children that write records.

    Thread safety: one thread. It should be the main thread: the tether is tied to the thread that started a child.
    """

    def __init__(self, *, partial_after_s: float | None = None) -> None:
        self._children: list[Child] = []
        self._selector = selectors.DefaultSelector()
        self._partial_after_s = partial_after_s
        self._cutters: dict[tuple[Child, str], LineCutter] = {}
        self._unfinished: set[tuple[Child, str]] = set()  # whose line has no end yet, and was not told of

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._selector.close()

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        log: Path | None = None,
        stdin: bool = False,
    ) -> Child:
        """Start a child and listen to it.

        Args:
            name: what messages call it.
            arguments: the program and its arguments.
            environment: the child's; None hands on this process's.
            log: a file for its standard error, added to; None delivers those lines as events, too.
            stdin: whether ``Child.send`` is to work; else the child's standard input is empty.
        """
        with contextlib.ExitStack() as files:
            stderr: int | IO[bytes] = subprocess.PIPE if log is None else files.enter_context(log.open("ab"))
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), *arguments],
                stdin=subprocess.PIPE if stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment,
                start_new_session=True,
            )
        child = Child(name, process, log)
        self._children.append(child)
        for stream, pipe in (("stdout", process.stdout), ("stderr", process.stderr)):
            if pipe is not None:
                os.set_blocking(pipe.fileno(), False)
                self._selector.register(pipe, selectors.EVENT_READ, (child, stream))
                self._cutters[child, stream] = LineCutter(self._partial_after_s)
                child.open_streams += 1
        return child

    @property
    def running(self) -> list[Child]:
        """The children whose end has not been reported yet."""
        return [child for child in self._children if not child.reported]

    def wait(self, timeout_s: float) -> list[Line | Ended]:
        """Return what happened within ``timeout_s`` seconds: lines, then ends; at once when something did."""
        events: list[Line | Ended] = []
        if self._selector.get_map():
            for key, _ in self._selector.select(min(timeout_s, _LOOK_FOR_PARTS_S) if self._unfinished else timeout_s):
                child, stream = key.data
                events.extend(self._read(key.fileobj, child, stream))
        else:
            self._wait_for_an_end(timeout_s)
        events.extend(self._unfinished_lines())
        events.extend(self._ends())
        return events

    def stop(
        self,
        *,
        grace_s: float = 5.0,
        told_by: int = signal.SIGINT,
        heard: Callable[[Line | Ended], None] | None = None,
    ) -> None:
        """Stop every child still alive: asked by Ctrl-C, told by SIGTERM, then killed; in the order they were started.

        A second Ctrl-C kills at once. May be called again.

        Args:
            grace_s: how long they may take to end by themselves.
            told_by: the signal that ends the job. Children that handle it are asked by it, and not by Ctrl-C.
            heard: takes what they still write, and their ends.
        """
        heard = heard or (lambda event: None)

        def ask(child: Child) -> int:
            return told_by if child.catches(told_by) else signal.SIGINT

        try:
            self._signal_and_wait(ask, grace_s, heard)
            self._signal_and_wait(lambda child: signal.SIGTERM, 1.0, heard)
        except KeyboardInterrupt:
            pass
        for child in self._children:
            child.signal_group(signal.SIGKILL)
            child.process.wait()
        for event in self.wait(0.0) if self._selector.get_map() else []:
            heard(event)
        self._close_pipes()

    def _signal_and_wait(
        self, number: Callable[[Child], int], patience_s: float, heard: Callable[[Line | Ended], None]
    ) -> None:
        alive = [child for child in self._children if child.status() is None]
        for child in alive:
            child.close_input()
            child.signal_group(number(child))
        give_up = time.monotonic() + patience_s
        while alive and time.monotonic() < give_up:
            for event in self.wait(0.05):  # keeps their pipes empty, so that none of them blocks on its last words
                heard(event)
            alive = [child for child in alive if child.status() is None]

    def _read(self, pipe: object, child: Child, stream: str) -> list[Line]:
        assert hasattr(pipe, "fileno")
        try:
            data = os.read(pipe.fileno(), 1 << 16)
        except BlockingIOError:
            return []
        if not data:
            return self._end_of_stream(pipe, child, stream)
        return self._lines(child, stream, self._cutters[child, stream].feed(data, time.monotonic()))

    def _end_of_stream(self, pipe: object, child: Child, stream: str) -> list[Line]:
        self._selector.unregister(pipe)  # type: ignore[arg-type]
        pipe.close()  # type: ignore[attr-defined]
        child.open_streams -= 1
        return self._lines(child, stream, self._cutters[child, stream].close())

    def _unfinished_lines(self) -> list[Line]:
        now_s = time.monotonic()
        return [
            line
            for child, stream in list(self._unfinished)
            for line in self._lines(child, stream, self._cutters[child, stream].due(now_s))
        ]

    def _lines(self, child: Child, stream: str, pieces: list[Piece]) -> list[Line]:
        """Return a child's pieces as its lines, and note whether it has an unfinished one."""
        if self._cutters[child, stream].waits:
            self._unfinished.add((child, stream))
        else:
            self._unfinished.discard((child, stream))
        if stream == "stderr":
            for piece in pieces:
                if piece.whole:
                    child.remember(piece.text)
        return [Line(child, stream, piece.text, piece.whole) for piece in pieces]

    def _ends(self) -> list[Ended]:
        ended = []
        for child in self.running:
            status = child.status()
            if status is None:
                continue
            child.ended_at = child.ended_at or time.monotonic()
            if child.open_streams == 0 or time.monotonic() - child.ended_at > _DRAIN_S:
                child.reported = True
                ended.append(Ended(child, status, child.ended_at))
        return ended

    def _wait_for_an_end(self, timeout_s: float) -> None:
        """Wait where no pipe is open any more: for the end of a child that closed its output early."""
        give_up_s = time.monotonic() + timeout_s
        while time.monotonic() < give_up_s and self.running and all(child.status() is None for child in self.running):
            time.sleep(min(0.02, timeout_s))

    def _close_pipes(self) -> None:
        for key in list(self._selector.get_map().values()):
            self._selector.unregister(key.fileobj)
            key.fileobj.close()  # type: ignore[union-attr]
        for child in self._children:
            child.close_input()
