"""How often checkpoints are written: every so many updates, or every so many minutes."""

from __future__ import annotations

import dataclasses
import math
import re

from distnet.errors import ConfigError

__all__ = ["DEFAULT_EVERY", "Every", "parse_every"]

DEFAULT_EVERY = "10min"

_FORM = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]+)\s*", re.ASCII)
_UPDATES = ("update", "updates")
_SECONDS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1.0),
    **dict.fromkeys(("min", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
}


@dataclasses.dataclass(frozen=True)
class Every:
    """A distance between checkpoints: a number of updates, or a time.

    Args:
        updates: a whole number of updates, above 0, counted by the shard that has the fewest.
        seconds: in seconds, above 0.

    Raises:
        ConfigError: neither or both are given, or one that is out of range.

    Thread safety: it never changes.

    Example:
        >>> distnet.checkpoint.Every(seconds=90.0)
        Every(updates=None, seconds=90.0)
        >>> print(distnet.checkpoint.Every(updates=500))
        500updates
    """

    updates: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.updates is None) == (self.seconds is None):
            raise ConfigError(f"{self!r}; expected updates or seconds, and one of them")
        if self.updates is not None and (type(self.updates) is not int or self.updates < 1):
            raise ConfigError(f"{self!r}; expected a whole number of updates, at least 1")
        if self.seconds is not None and not 0 < _number(self.seconds) < math.inf:
            raise ConfigError(f"{self!r}; expected seconds above 0")

    def __str__(self) -> str:
        if self.updates is not None:
            return f"{self.updates}updates"
        minutes = _number(self.seconds) / 60
        return f"{minutes:.0f}min" if minutes.is_integer() else f"{self.seconds:g}s"


def _number(seconds: object) -> float:
    """Return a number of seconds, or raise ConfigError where it is none."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise ConfigError(f"Every.seconds is {seconds!r}; expected a number")
    return float(seconds)


def parse_every(text: str | Every) -> Every:
    """Return the distance that a text says.

    Args:
        text: a number with a unit, such as ``"500updates"``, ``"90s"``, ``"10min"`` or ``"1.5h"``; blanks do not
            matter. What is an :class:`Every` already is returned.

    Returns:
        The distance.

    Raises:
        ConfigError: it says nothing of the kind.

    Example:
        >>> distnet.checkpoint.parse_every("1.5 h")
        Every(updates=None, seconds=5400.0)
    """
    if isinstance(text, Every):
        return text
    found = _FORM.fullmatch(str(text).lower())
    if found is not None:
        number, unit = float(found[1]), found[2]
        if unit in _UPDATES and number.is_integer() and number > 0:
            return Every(updates=int(number))
        if unit in _SECONDS and number > 0:
            return Every(seconds=number * _SECONDS[unit])
    raise ConfigError(f"checkpoint_every is {text!r}; expected a text such as '500updates' or '10min'")
