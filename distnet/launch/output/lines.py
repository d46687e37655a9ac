"""Cuts what a process writes into lines, and tells what a line that has no end yet looks like so far.

A progress bar is one line that is written again and again after a carriage return; a terminal shows its newest state.
"""

from __future__ import annotations

import dataclasses

__all__ = ["LineCutter", "Piece"]

_LONGEST_LINE_BYTES = 1 << 20
_REWRITTEN_AFTER_S = 0.1  # a bar's new state may come in several writes; then it is taken as it is


@dataclasses.dataclass(frozen=True)
class Piece:
    """A line without its end; where ``whole`` is False, what it looks like so far."""

    text: str
    whole: bool = True


class LineCutter:
    """The lines of one stream.

    Args:
        partial_after_s: how long a line without an end is waited for before ``due`` tells of it. None: for ever, and a
            carriage return is a character like others: for records, which only count whole.

    Thread safety: none; its owner guards it.
    """

    def __init__(self, partial_after_s: float | None) -> None:
        self._partial_after_s = partial_after_s
        self._rest = b""  # what has no end yet; where a bar rewrites it, its newest state
        self._rewritten = False
        self._changed_s = 0.0
        self._told = True

    @property
    def waits(self) -> bool:
        """Whether ``due`` will have something to tell, unless the line's end comes first."""
        return self._partial_after_s is not None and not self._told

    def feed(self, data: bytes, now_s: float) -> list[Piece]:
        """Take in what was read; returns the lines that it ends, and the state of a bar that has a new one."""
        *lines, rest = (self._rest + data).split(b"\n")
        if len(rest) > _LONGEST_LINE_BYTES:
            lines, rest = [*lines, rest], b""
        pieces = [self._whole(line) for line in lines]
        self._rest, self._changed_s, self._told = rest, now_s, not rest
        if self._partial_after_s is not None and b"\r" in rest:
            pieces.extend(self._rewrite(rest))
        return pieces

    def due(self, now_s: float) -> list[Piece]:
        """Return the line without an end, once, where nothing was added to it for long enough."""
        if not self.waits or self._partial_after_s is None:
            return []
        if now_s - self._changed_s < (_REWRITTEN_AFTER_S if self._rewritten else self._partial_after_s):
            return []
        self._told = True
        return [Piece(_text(self._rest.rstrip(b"\r")), whole=False)]

    def close(self) -> list[Piece]:
        """The stream has ended: what has no end is a line, too."""
        rest, self._rest, self._told = self._rest, b"", True
        return [self._whole(rest)] if rest else []

    def _whole(self, line: bytes) -> Piece:
        self._rewritten = False
        return Piece(_text(line if self._partial_after_s is None else _newest_state(line)))

    def _rewrite(self, rest: bytes) -> list[Piece]:
        """Keep the newest state of a line that was rewritten; one that its writer has ended is told at once."""
        self._rewritten = True
        state = _newest_state(rest)
        ended = rest.endswith(b"\r")
        self._rest = state + (b"\r" if ended else b"")
        self._told = ended or not state
        return [Piece(_text(state), whole=False)] if ended and state else []


def _newest_state(line: bytes) -> bytes:
    return next((state for state in reversed(line.split(b"\r")) if state), b"")


def _text(line: bytes) -> str:
    return line.decode(errors="replace")
