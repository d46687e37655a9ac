"""How many there may be of something, and how long something may take: each bound once.

Those that the engine has, too, are named with its constant; ``tests/python/test_bounds.py`` compares the two.
"""

from __future__ import annotations

from distnet.errors import ConfigError

__all__ = [
    "ENDED_SESSIONS",
    "LONGEST_SECONDS",
    "MOST_DIMENSIONS",
    "MOST_DIMENSIONS_IN_A_GROUP",
    "MOST_FLOATS",
    "MOST_GROUP_NAME_BYTES",
    "MOST_IN_FLIGHT",
    "MOST_KEPT_CHECKPOINTS",
    "MOST_MEMBERS",
    "MOST_NAME_BYTES",
    "MOST_RANK",
    "MOST_SAVED_BYTES",
    "MOST_SERVERS",
    "check_seconds",
    "check_whole",
    "most_workers",
]

MOST_SERVERS = 1024  # shards of one model
MOST_RANK = 2**32 - 1  # where a rank is a label; else ranks are below the number of workers
MOST_IN_FLIGHT = 16  # pushes of one session; kMaxInFlight
MOST_SAVED_BYTES = 65_536  # that a rank has the server keep; kMaxSavedBytes
MOST_NAME_BYTES = 1024  # of a tensor's name in UTF-8; kMaxNameBytes
MOST_DIMENSIONS = 32  # of a tensor; kMaxDimensions
MOST_FLOATS = 2**40  # of a model, and so of an extent; kMaxFloats
MOST_KEPT_CHECKPOINTS = 1_000_000  # in a folder
ENDED_SESSIONS = 64  # the newest ones, which a server's counters list; kMostEnded
LONGEST_SECONDS = 1e9  # of any wait: 31 years, so what is longer was not meant
MOST_MEMBERS = 1024  # of a process group; kMostRanks
MOST_GROUP_NAME_BYTES = 256  # of a process group, or of an operation in it; kMaxGroupNameBytes
MOST_DIMENSIONS_IN_A_GROUP = 8  # of an array in a process group; kMostDimensions

_MOST_SESSIONS = 4096  # of a shard; kMaxSessions
_MOST_MEMBERS = 1024  # of a round: a shard keeps saved bytes for each; kMaxSavedRanks


def most_workers(joins: str) -> int:
    """Return how many workers a job has at most whose updates join ``"one"`` push, or one of ``"all"`` members."""
    return _MOST_MEMBERS if joins == "all" else _MOST_SESSIONS


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """Raise ConfigError unless it is a whole number between these, both included."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{name} is {value!r}; expected a whole number from {least} to {most}")


def check_seconds(name: str, value: object, *, above_zero: bool = False) -> None:
    """Raise ConfigError unless it is a number of seconds, 0 or above, or above 0, that somebody may mean."""
    is_number = not isinstance(value, bool | str) and hasattr(value, "__float__")
    seconds = float(value) if is_number else -1.0  # type: ignore[arg-type]
    if not (seconds > 0 if above_zero else seconds >= 0) or not seconds < LONGEST_SECONDS:
        least = "above 0" if above_zero else "0 or above"
        raise ConfigError(f"{name} is {value!r}; expected seconds, {least} and below {LONGEST_SECONDS:,.0f}")
