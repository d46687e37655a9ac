"""Where the output of several processes appears: each line with its writer's name, progress bars as they move.

A terminal shows lines without an end at its bottom, one for each process, rewritten in their place. A file gets the
first state of a bar at once, its last one, and states between at growing intervals; whole lines always.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import time
from typing import Protocol, TextIO

from distnet.launch.output.lines import Piece

__all__ = ["Output", "ProcessOutput"]

_MOST_LIVE_LINES = 8
_DRAW_EVERY_S = 0.1
_BAR_EVERY_S, _BAR_EVERY_AT_MOST_S = 0.5, 10.0
_BAR_GROWTH = 0.05  # of a bar's age: so much later comes its next state in a file
_MOVES = re.compile(r"\x1b\[[0-9;?]*[A-HJKSTfhlnsu]|[\b\x07]")  # escapes that move a cursor which is not theirs
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_NO_COLOUR = "\x1b[0m"


class ProcessOutput(Protocol):
    """What a job needs of the place where its processes' output appears."""

    def show(self, name: str, stream: str, piece: Piece) -> None:
        """Show what a process wrote to ``"stdout"`` or ``"stderr"``."""

    def note(self, text: str) -> None:
        """Show a line of the launcher's own."""

    def tick(self) -> None:
        """Show what had to wait; called several times a second."""


class Output:
    """Shows processes' output on this process's own, and the launcher's lines on standard error.

    Args:
        stdout_is_taken: whether standard output is for something else, such as JSON; everything then goes to standard
            error.

    Thread safety: one thread.
    """

    def __init__(self, *, stdout_is_taken: bool = False) -> None:
        out, err = (sys.stderr if stdout_is_taken else sys.stdout), sys.stderr
        if out is err or (out.isatty() and err.isatty()):
            shared = _place(err)
            self._places: dict[str, _Place] = {"stdout": shared, "stderr": shared}
        else:
            self._places = {"stdout": _place(out), "stderr": _place(err)}

    def show(self, name: str, stream: str, piece: Piece) -> None:
        """Show what a process wrote to ``"stdout"`` or ``"stderr"``."""
        place, text = self._places[stream], _MOVES.sub("", piece.text)
        if piece.whole:
            place.line((name, stream), text)
        else:
            place.update((name, stream), text.rstrip())

    def note(self, text: str) -> None:
        """Show a line of the launcher's own."""
        self._places["stderr"].write(f"distnet: {text}")

    def tick(self) -> None:
        """Show what had to wait; called several times a second."""
        for place in set(self._places.values()):
            place.tick()

    def close(self) -> None:
        """Show what is left, and leave a terminal with nothing but whole lines."""
        with contextlib.suppress(BrokenPipeError):
            for place in set(self._places.values()):
                place.close()


Key = tuple[str, str]
"""A process's name and which of its streams."""


class _Place(Protocol):
    def line(self, key: Key, text: str) -> None:
        """Show a whole line."""

    def update(self, key: Key, text: str) -> None:
        """Show what a line looks like so far."""

    def write(self, text: str) -> None:
        """Show a line of nobody's."""

    def tick(self) -> None:
        """Show what had to wait."""

    def close(self) -> None:
        """Show what is left."""


def _place(stream: TextIO) -> _Place:
    return _Terminal(stream) if stream.isatty() else _File(stream)


class _Terminal:
    """Whole lines move up; those without an end stay below them."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live: dict[Key, str] = {}  # the one that changed last comes last
        self._drawn_lines = 0
        self._drawn_s = 0.0
        self._changed = False

    def line(self, key: Key, text: str) -> None:
        self._live.pop(key, None)
        self.write(f"[{key[0]}] {text}")

    def update(self, key: Key, text: str) -> None:
        if text:
            self._live[key] = text
        else:
            self._live.pop(key, None)
        self._changed = True
        self.tick()

    def write(self, text: str) -> None:
        _write(self._stream, self._erasure() + text + "\n" + self._drawing())

    def tick(self) -> None:
        if self._changed and time.monotonic() - self._drawn_s >= _DRAW_EVERY_S:
            _write(self._stream, self._erasure() + self._drawing())

    def close(self) -> None:
        erasure, live, self._live = self._erasure(), self._live, {}
        _write(self._stream, erasure + "".join(f"[{key[0]}] {text}\n" for key, text in live.items()))

    def _erasure(self) -> str:
        lines, self._drawn_lines = self._drawn_lines, 0
        return f"\x1b[{lines}A\x1b[J" if lines else ""

    def _drawing(self) -> str:
        self._drawn_s, self._changed = time.monotonic(), False
        columns, rows = self._size()
        shown = list(self._live.items())[: max(1, min(_MOST_LIVE_LINES, rows - 2))]
        self._drawn_lines = len(shown)
        return "".join(_cut(f"[{key[0]}] {text}", columns - 1) + "\n" for key, text in shown)

    def _size(self) -> os.terminal_size:
        try:
            return os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            return os.terminal_size((80, 24))


class _Bar:
    """A line without an end, in a file."""

    def __init__(self, began_s: float) -> None:
        self.began_s = began_s
        self.text = self.written = ""
        self.next_s = began_s


class _File:
    """Everything is a line; of a line without an end, not each state is."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._bars: dict[Key, _Bar] = {}

    def line(self, key: Key, text: str) -> None:
        bar = self._bars.pop(key, None)
        text = _COLOURS.sub("", text)
        if bar is not None and bar.written == text.rstrip() != "":
            return  # all of it is there; only its end was missing
        self.write(f"[{key[0]}] {text}")

    def update(self, key: Key, text: str) -> None:
        if not text:  # an erased bar: its last state stays
            self._write_state(key, self._bars.pop(key, None))
            return
        now_s = time.monotonic()
        bar = self._bars.setdefault(key, _Bar(now_s))
        bar.text = _COLOURS.sub("", text)
        if now_s >= bar.next_s:
            self._write_state(key, bar)

    def write(self, text: str) -> None:
        _write(self._stream, text + "\n")

    def tick(self) -> None:
        now_s = time.monotonic()
        for key, bar in list(self._bars.items()):
            if now_s >= bar.next_s:
                self._write_state(key, bar)

    def close(self) -> None:
        for key, bar in self._bars.items():
            self._write_state(key, bar)
        self._bars.clear()

    def _write_state(self, key: Key, bar: _Bar | None) -> None:
        if bar is None or bar.text == bar.written:
            return
        bar.written = bar.text
        now_s = time.monotonic()
        bar.next_s = now_s + min(_BAR_EVERY_AT_MOST_S, max(_BAR_EVERY_S, _BAR_GROWTH * (now_s - bar.began_s)))
        self.write(f"[{key[0]}] {bar.text}")


def _cut(text: str, columns: int) -> str:
    """Return the beginning of a text that fits a terminal's line, with no colour that goes on behind it."""
    plain = _COLOURS.sub("", text)
    return (text + _NO_COLOUR if plain != text else text) if len(plain) <= columns else plain[:columns]


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError:  # a bar's blocks, where the locale knows none
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "replace").decode(encoding))
    stream.flush()
