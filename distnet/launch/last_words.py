"""What children say while they are stopped, without the tracebacks that are only of being stopped."""

from __future__ import annotations

from collections.abc import Callable

from distnet.launch.children import Child, Ended, Line

__all__ = ["LastWords"]

_TRACEBACK = "Traceback (most recent call last)"


class LastWords:
    """Hands on lines of children that are being stopped.

    A traceback on standard error is held until its last line; one that ends in ``KeyboardInterrupt`` is left out: the
    launcher's own signal made it.

    Args:
        show: takes the lines.

    Thread safety: one thread.
    """

    def __init__(self, show: Callable[[Line], None]) -> None:
        self._show = show
        self._held: dict[Child, list[Line]] = {}

    def take(self, event: Line | Ended) -> None:
        """Take in what a child said, or its end."""
        if isinstance(event, Ended) or not event.whole:
            return
        held = self._held.get(event.child)
        if event.stream == "stdout":
            self._show(event)
        elif held is None and event.text.lstrip("^C").startswith(_TRACEBACK):
            self._held[event.child] = [event]
        elif held is None:
            self._show(event)
        elif event.text.startswith(" ") or not event.text:
            held.append(event)
        else:
            del self._held[event.child]
            if not event.text.startswith("KeyboardInterrupt"):
                self._show_all([*held, event])

    def close(self) -> None:
        """Show what is held: a traceback that was cut off."""
        for lines in self._held.values():
            self._show_all(lines)
        self._held.clear()

    def _show_all(self, lines: list[Line]) -> None:
        for line in lines:
            self._show(line)
