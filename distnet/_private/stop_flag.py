"""What ends the waits of a client or a group from another thread: whatever can say that it is set."""

from __future__ import annotations

from typing import Protocol

from distnet.errors import ConfigError

__all__ = ["StopFlag", "check_stop_flag"]


class StopFlag(Protocol):
    """A :class:`threading.Event`, or another object that can be asked whether it is set, from any thread."""

    def is_set(self) -> bool:
        """Return whether waits are to end."""
        ...


def check_stop_flag(name: str, value: object) -> None:
    """Raise ConfigError unless it is None or can be asked whether it is set."""
    if value is not None and not callable(getattr(value, "is_set", None)):
        raise ConfigError(f"{name} is {value!r}; expected an object with is_set(), such as a threading.Event, or None")
