"""One child process: what it says, how it ended, and what a message about its end says."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import subprocess
from collections import deque
from pathlib import Path

from distnet.errors import DistNetError
from distnet.launch.output.chatter import is_chatter

__all__ = ["Child", "ChildDied", "Ended", "Line", "death_of", "describe_status"]

# The last line of a traceback; PyTorch puts the rank before each line. Names of DistNet's own do not end in Error.
_ERROR = re.compile(
    r"(\[rank\d+\]:\s*)?(?P<error>(([A-Za-z_]\w*\.)*\w*(Error|Exception)|distnet\.errors\.\w+(?<!Warning))(: .*|:)?)$"
)
_WORDS_KEPT, _LONGEST_WORDS = 40, 2_000  # lines of a child without a log, and characters of each


class ChildDied(DistNetError):
    """A child process ended with an error or by a signal."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A line that a child wrote, without its end; ``stream`` is ``"stdout"`` or ``"stderr"``.

    Where ``whole`` is False, it is what a line that has no end yet looks like so far.
    """

    child: Child
    stream: str
    text: str
    whole: bool = True


@dataclasses.dataclass(frozen=True)
class Ended:
    """A child's end; ``status`` is as ``subprocess`` has it, negative for a signal; ``at_s``: when it was noticed."""

    child: Child
    status: int
    at_s: float


class Child:
    """One child process. ``name`` is what messages call it."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path | None) -> None:
        self.name = name
        self.process = process
        self.log = log
        self.reported = False
        self.ended_at: float | None = None
        self.open_streams = 0
        self._recent: deque[str] = deque(maxlen=_WORDS_KEPT)  # lines of its standard error, where it has no log

    def send(self, line: str) -> None:
        """Write a line to the child's standard input; a child that is gone is noticed by its end, not here."""
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.write(line.encode() + b"\n")
                self.process.stdin.flush()

    def close_input(self) -> None:
        """End the child's standard input."""
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()

    def signal_group(self, number: int) -> None:
        """Send a signal to the child, if it is alive, and to what it started itself."""
        if self.process.returncode is None:  # until it is waited for, its number is nobody else's
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, number)

    def status(self) -> int | None:
        """Return how the child ended, None while it is alive; what it left in its process group ends with it."""
        if self.process.returncode is None:
            if os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None
            self.signal_group(signal.SIGKILL)
        return self.process.poll()

    def remember(self, line: str) -> None:
        """Keep a line of the child's standard error for its last words."""
        self._recent.append(line[:_LONGEST_WORDS])

    def last_words(self, lines: int = 12) -> str:
        """Return the end of what the child wrote on its standard error, for the message about its death."""
        return "\n".join(f"    {line}" for line in self._said()[-lines:])

    @property
    def last_line(self) -> str:
        """What it wrote on its standard error last: the last line that is an error of Python's, or else the last line.

        After its error a Python program may still write what a framework warns of at its end.
        """
        lines = [line.strip() for line in reversed(self._said()) if line.strip()]
        errors = (found["error"] for line in lines if (found := _ERROR.match(line)))
        return next(errors, lines[0] if lines else "")

    def catches(self, number: int) -> bool:
        """Whether the child handles this signal itself, where the system can tell."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return False
        caught = next((line.split()[1] for line in status.splitlines() if line.startswith("SigCgt:")), "0")
        return bool(int(caught, 16) >> (number - 1) & 1)

    def _said(self) -> list[str]:
        lines = list(self._recent)
        if self.log is not None and self.log.exists():
            lines = self.log.read_bytes()[-16384:].decode(errors="replace").strip().splitlines()
        return [line for line in lines if not is_chatter(line)]


def describe_status(status: int) -> str:
    """Say in words how a process ended."""
    if status >= 0:
        return f"ended with exit code {status}"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        name = f"signal {-status}"
    hint = " (out of memory?)" if name == "SIGKILL" else ""
    return f"was killed by {name}{hint}"


def death_of(event: Ended) -> ChildDied:
    """Return the error that says how a child ended, with the last lines that it wrote on its standard error."""
    words = event.child.last_words()
    message = f"{event.child.name} {describe_status(event.status)}"
    return ChildDied(f"{message}; its last words:\n{words}" if words else f"{message} without a word")
