"""When to speak: of a wait at growing intervals, and of what happens to hundreds of workers in few lines."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

__all__ = ["Gathered", "Patience"]

_LONGEST_PAUSE_S = 1800.0
_WAITS_TOLD_SOON, _LATE_WORD_S = 8, 60.0
_SINGLE_LINES, _GATHERED_EVERY_S = 16, 10.0


class Patience:
    """When to speak about a wait. Where waits of one kind come again and again, only long ones are spoken of."""

    def __init__(self, first_s: float) -> None:
        self._first_s = first_s
        self._waits_told = 0
        self._what: Hashable = None
        self._since_s = self._next_s = 0.0
        self.spoken = False

    def waited_s(self, what: Hashable, now_s: float) -> float | None:
        """Return how long ``what`` has been waited for, when that should be said; None at all other times.

        ``what`` tells one wait from the next; None: nothing is waited for.
        """
        if what != self._what:
            first_s = self._first_s if self._waits_told < _WAITS_TOLD_SOON else max(self._first_s, _LATE_WORD_S)
            self._what, self._since_s, self._next_s, self.spoken = what, now_s, now_s + first_s, False
        if what is None or now_s < self._next_s:
            return None
        waited_s = now_s - self._since_s
        self._next_s = now_s + min(_LONGEST_PAUSE_S, max(waited_s, self._first_s))
        self._waits_told += not self.spoken
        self.spoken = True
        return waited_s

    def lasted_s(self, now_s: float) -> float:
        """Return how long the present wait has lasted."""
        return now_s - self._since_s


class Gathered:
    """Ranks to which the same happened: the first lines come at once, later ones together."""

    def __init__(self) -> None:
        self._ranks: list[int] = []
        self._lines = 0
        self._next_s = 0.0

    def add(self, ranks: Iterable[int]) -> None:
        self._ranks.extend(ranks)

    def take(self, now_s: float) -> list[int]:
        """Return those to tell of now."""
        if not self._ranks or now_s < self._next_s:
            return []
        ranks, self._ranks = self._ranks, []
        self._lines += 1
        if self._lines >= _SINGLE_LINES:
            self._next_s = now_s + _GATHERED_EVERY_S
        return ranks
