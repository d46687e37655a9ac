"""What children say while they are stopped, without the tracebacks that are only of being stopped."""

from __future__ import annotations

from collections.abc import Callable

from distnet.launch.children.child import Child, Ended, Line

__all__ = ["LastWords"]

_TRACEBACK = "Traceback (most recent call last)"
_LINKS = ("During handling of the above exception", "The above exception was the direct cause")


class LastWords:
    """Hands on lines of children that are being stopped.

    A traceback on standard error is held until what comes after its last line, which may lead to another one; those
    that end in ``KeyboardInterrupt`` are left out: the launcher's own signal made them.

    Args:
        show: takes the lines.

    Thread safety: one thread.
    """

    def __init__(self, show: Callable[[Line], None]) -> None:
        self._show = show
        self._held: dict[Child, list[Line]] = {}
        self._ended: set[Child] = set()  # whose held traceback has had its last line

    def take(self, event: Line | Ended) -> None:
        """Take in what a child said, or its end."""
        if isinstance(event, Ended) or not event.whole:
            return
        child, text = event.child, event.text
        held = self._held.get(child)
        begins = text.lstrip("^C").startswith(_TRACEBACK)
        if event.stream == "stdout":
            self._show(event)
        elif held is None:
            if begins:
                self._held[child] = [event]
            else:
                self._show(event)
        elif not text or text.startswith((" ", *_LINKS)) or begins:
            self._ended -= {child} if begins else set()
            held.append(event)
        elif child in self._ended:
            self._release(child)
            self._show(event)
        elif text.startswith("KeyboardInterrupt"):
            del self._held[child]
        else:
            held.append(event)
            self._ended.add(child)

    def close(self) -> None:
        """Show what is held: a traceback that nothing came after, or that was cut off."""
        for child in list(self._held):
            self._release(child)

    def _release(self, child: Child) -> None:
        self._ended.discard(child)
        for line in self._held.pop(child):
            self._show(line)
