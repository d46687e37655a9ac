"""The engine's fast paths, each of which can be switched off, so that its worth can be measured."""

from __future__ import annotations

import dataclasses
from typing import Any

from distnet.errors import ConfigError

__all__ = ["Tuning"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """How a server and its clients move bytes.

    Results are the same with every value; the defaults were measured best. A server and each of its clients have a
    value of their own, so an argument says whose it is.

    Args:
        spin: both: microseconds from 0 to 1,000,000 that either end waits awake before it sleeps, never on the core
            that the other end runs on. 0: it sleeps at once.
        announce_early: client, shared memory: wake the server before a gradient is staged, not after.
        apply_arriving: server: apply a gradient while it arrives, where the semantics replies after it, joins one push
            and guards by versions, and the optimizer keeps no state of its own.
        read_drafts: client, shared memory: read the version that a push makes while the server makes it.
        deliver: both, shared memory: where the semantics replies first, the server writes parameters into the client's
            own arrays while the gradient arrives.
        past_cache: both: copy vectors larger than the last level of cache past it.
        duplex: both, TCP: where the semantics replies first, parameters set out while the gradient arrives.
        congestion_control: both: of TCP connections within a host, a name of at most 15 characters; empty, or one that
            the system lacks: the system's own.

    Raises:
        ConfigError: a value of another type, or out of range.

    Thread safety: it never changes.

    Example:
        >>> tuning = distnet.Tuning(spin=0, duplex=False)
        >>> tuning.spin, tuning.duplex, tuning.deliver
        (0, False, True)
    """

    spin: float = 50.0
    announce_early: bool = True
    apply_arriving: bool = True
    read_drafts: bool = True
    deliver: bool = True
    past_cache: bool = True
    duplex: bool = True
    congestion_control: str = "reno"

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, expected = getattr(self, field.name), type(field.default)
            if not isinstance(value, (int, float) if expected is float else expected):
                raise ConfigError(f"Tuning.{field.name} is {value!r}; expected one like {field.default!r}")
        if not 0 <= self.spin <= 1e6:
            raise ConfigError(f"Tuning.spin is {self.spin!r}; expected microseconds from 0 to 1,000,000")
        if len(self.congestion_control) > 15:
            raise ConfigError(
                f"Tuning.congestion_control is {self.congestion_control!r}; expected a name such as 'reno', or ''"
            )

    def to_spec(self) -> dict[str, Any]:
        """Return the values as the native module takes them.

        Returns:
            A dict with the name of every argument.
        """
        return dataclasses.asdict(self)
