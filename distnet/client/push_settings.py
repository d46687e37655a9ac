"""What one push says of itself beside its gradient: learning rates and a weight."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from distnet.errors import ConfigError
from distnet.schedules import check_number

__all__ = ["MOST_RATE", "PushSettings", "Rates", "push_settings"]

MOST_RATE = 3.4e38  # about the largest that float32 holds: a step is made in that

Rates: TypeAlias = "float | Mapping[str, float]"  # of a push: one, or by the patterns of the server's groups
# One learning rate, a weight, and a learning rate for each group.
PushSettings: TypeAlias = "tuple[float | None, float | None, list[float]]"


def push_settings(learning_rate: Rates | None, weight: float | None, patterns: Sequence[str]) -> PushSettings:
    """Check the settings of one push.

    Args:
        learning_rate: as :meth:`distnet.Client.push_pull` takes it.
        weight: as that takes it.
        patterns: of the server's groups; they count where ``learning_rate`` names some.

    Returns:
        The settings as the engine takes them.

    Raises:
        ConfigError: a setting is out of range, or a pattern is none of the server's.
    """
    groups: list[float] = []
    if isinstance(learning_rate, Mapping):
        groups = _group_rates(learning_rate, patterns)
        learning_rate = None
    elif learning_rate is not None:
        check_number("learning_rate", learning_rate, below=MOST_RATE)
        learning_rate = float(learning_rate)
    if weight is not None:
        check_number("weight", weight, above=0)
        weight = float(weight)
    return learning_rate, weight, groups


def _group_rates(rates: Mapping[str, float], known: Sequence[str]) -> list[float]:
    """Return a learning rate for each of the server's groups, NaN for those that are not named."""
    by_number = [math.nan] * len(known)
    for pattern, rate in rates.items():
        if not pattern or pattern not in known:
            here = f"they are {', '.join(map(repr, filter(None, known)))}" if any(known) else "it has none"
            raise ConfigError(
                f"learning_rate names {pattern!r}, which is no pattern of the server's groups; {here}. Give the "
                "server groups={pattern: Group()}, of which the first 64 can have rates of their own"
            )
        check_number(f"learning_rate[{pattern!r}]", rate, below=MOST_RATE)
        by_number[known.index(pattern)] = float(rate)
    return by_number if rates else []
