"""Learning-rate schedules by update count, as frozen values.

An optimizer's ``learning_rate`` is a float or one of these. Each shard counts its own updates from 0: the first update
of all has the schedule's value at 0. The engine computes the rates; here stands only what they are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from distnet.errors import ConfigError

__all__ = ["CosineDecay", "ExponentialDecay", "PiecewiseConstant", "LearningRate", "Schedule", "Warmup"]

_CONSTANT: Mapping[str, Any] = {
    "kind": "constant",
    "learning_rate": 0.0,
    "factor": 1.0,
    "period_updates": 1.0,
    "staircase": False,
    "final_learning_rate": 0.0,
    "boundaries": [],
    "values": [],
    "warmup_updates": 0,
    "warmup_learning_rate": 0.0,
}


class Schedule:
    """Base of all schedules."""

    def to_spec(self) -> dict[str, Any]:
        """Return the schedule as plain data that JSON can hold; :func:`learning_rate_from_spec` is the way back."""
        raise NotImplementedError


LearningRate: TypeAlias = float | Schedule


@dataclasses.dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """``learning_rate * factor ** (update / updates)``; with ``staircase`` the exponent is rounded down.

    Attributes:
        learning_rate: the learning rate at update 0.
        factor: what ``updates`` updates multiply the learning rate by, above 0.
        updates: the period, in updates, above 0.
        staircase: keep the learning rate for a whole period, then drop it at once.
    """

    learning_rate: float
    factor: float
    updates: float
    staircase: bool = False

    def __post_init__(self) -> None:
        check_number("ExponentialDecay.learning_rate", self.learning_rate)
        check_number("ExponentialDecay.factor", self.factor, above=0.0)
        check_number("ExponentialDecay.updates", self.updates, above=0.0)
        check_flag("ExponentialDecay.staircase", self.staircase)

    def to_spec(self) -> dict[str, Any]:
        """Return the schedule as plain data."""
        return {
            **_constant(self.learning_rate),
            "kind": "exponential",
            "factor": float(self.factor),
            "period_updates": float(self.updates),
            "staircase": self.staircase,
        }


@dataclasses.dataclass(frozen=True)
class PiecewiseConstant(Schedule):
    """``learning_rates[i]`` while ``update < boundaries[i]``, then the next; the last learning rate holds for ever.

    Attributes:
        boundaries: update counts, each larger than the one before.
        learning_rates: one more than boundaries.
    """

    boundaries: Sequence[int]
    learning_rates: Sequence[float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "boundaries", tuple(self.boundaries))
        object.__setattr__(self, "learning_rates", tuple(self.learning_rates))
        for boundary in self.boundaries:
            check_count("PiecewiseConstant.boundaries", boundary)
        if any(left >= right for left, right in zip(self.boundaries, self.boundaries[1:], strict=False)):
            raise ConfigError(f"PiecewiseConstant.boundaries are {self.boundaries}; expected each above the one before")
        for learning_rate in self.learning_rates:
            check_number("PiecewiseConstant.learning_rates", learning_rate)
        if len(self.learning_rates) != len(self.boundaries) + 1:
            raise ConfigError(
                f"PiecewiseConstant has {len(self.learning_rates)} learning rates for {len(self.boundaries)} "
                "boundaries; expected one more"
            )

    def to_spec(self) -> dict[str, Any]:
        """Return the schedule as plain data."""
        return {
            **_constant(self.learning_rates[0]),
            "kind": "piecewise",
            "boundaries": [int(boundary) for boundary in self.boundaries],
            "values": [float(learning_rate) for learning_rate in self.learning_rates],
        }


@dataclasses.dataclass(frozen=True)
class CosineDecay(Schedule):
    """Half a cosine from ``learning_rate`` down to ``final``, which then holds.

    Loshchilov and Hutter (2017), without restarts.

    Attributes:
        learning_rate: the learning rate at update 0.
        updates: how many updates the way takes, above 0.
        final: the learning rate at the end.
    """

    learning_rate: float
    updates: float
    final: float = 0.0

    def __post_init__(self) -> None:
        check_number("CosineDecay.learning_rate", self.learning_rate)
        check_number("CosineDecay.updates", self.updates, above=0.0)
        check_number("CosineDecay.final", self.final)

    def to_spec(self) -> dict[str, Any]:
        """Return the schedule as plain data."""
        return {
            **_constant(self.learning_rate),
            "kind": "cosine",
            "period_updates": float(self.updates),
            "final_learning_rate": float(self.final),
        }


@dataclasses.dataclass(frozen=True)
class Warmup(Schedule):
    """A straight line from ``start`` to the first learning rate of ``then``, which starts counting after it.

    Attributes:
        updates: how many updates the warm-up takes; update number ``updates`` is the first of ``then``.
        then: the learning rate, or the schedule, that follows.
        start: the learning rate at update 0.
    """

    updates: int
    then: LearningRate
    start: float = 0.0

    def __post_init__(self) -> None:
        check_count("Warmup.updates", self.updates)
        check_learning_rate("Warmup.then", self.then)
        if isinstance(self.then, Warmup):
            raise ConfigError("Warmup.then is itself a Warmup; expected a learning rate or another schedule")
        check_number("Warmup.start", self.start)

    def to_spec(self) -> dict[str, Any]:
        """Return the schedule as plain data."""
        return {
            **learning_rate_to_spec(self.then),
            "warmup_updates": int(self.updates),
            "warmup_learning_rate": float(self.start),
        }


def _constant(learning_rate: float) -> dict[str, Any]:
    return {**_CONSTANT, "learning_rate": float(learning_rate), "boundaries": [], "values": []}


def learning_rate_to_spec(learning_rate: LearningRate) -> dict[str, Any]:
    """Return a learning rate, constant or scheduled, as plain data with every key of the engine's ``ScheduleSpec``."""
    return learning_rate.to_spec() if isinstance(learning_rate, Schedule) else _constant(learning_rate)


def learning_rate_from_spec(spec: Mapping[str, Any]) -> LearningRate:
    """Return the learning rate that :func:`learning_rate_to_spec` was given.

    Raises:
        ConfigError: keys or values that make no schedule.
    """
    unknown = sorted(set(spec) - set(_CONSTANT))
    if unknown:
        raise ConfigError(f"a schedule has no {', '.join(unknown)}; expected {', '.join(_CONSTANT)}")
    full = {**_CONSTANT, **spec}
    then: LearningRate
    if full["kind"] == "constant":
        then = full["learning_rate"]
        check_number("learning_rate", then)
    elif full["kind"] == "exponential":
        then = ExponentialDecay(full["learning_rate"], full["factor"], full["period_updates"], full["staircase"])
    elif full["kind"] == "piecewise":
        then = PiecewiseConstant(full["boundaries"], full["values"])
    elif full["kind"] == "cosine":
        then = CosineDecay(full["learning_rate"], full["period_updates"], full["final_learning_rate"])
    else:
        raise ConfigError(f"schedule kind {full['kind']!r}; expected constant, exponential, piecewise or cosine")
    return Warmup(full["warmup_updates"], then, full["warmup_learning_rate"]) if full["warmup_updates"] else then


def start_of(learning_rate: LearningRate) -> float:
    """Return where a learning rate starts, after a warm-up."""
    if isinstance(learning_rate, Warmup):
        return start_of(learning_rate.then)
    if isinstance(learning_rate, PiecewiseConstant):
        return learning_rate.learning_rates[0]
    if isinstance(learning_rate, (CosineDecay, ExponentialDecay)):
        return learning_rate.learning_rate
    if isinstance(learning_rate, Schedule):
        raise ConfigError(f"{learning_rate!r} is none of the schedules here")
    return learning_rate


def started_from(learning_rate: LearningRate, start: float) -> LearningRate:
    """Return the same learning rate or schedule, but starting there; one in steps is unchanged only where it does."""
    if isinstance(learning_rate, Warmup):
        return dataclasses.replace(learning_rate, then=started_from(learning_rate.then, start))
    if isinstance(learning_rate, (CosineDecay, ExponentialDecay)):
        return dataclasses.replace(learning_rate, learning_rate=start)
    return learning_rate if start_of(learning_rate) == start else start


def check_learning_rate(name: str, learning_rate: object) -> None:
    """Raise :class:`~distnet.errors.ConfigError` unless it is a schedule, or a finite number of at least 0."""
    if not isinstance(learning_rate, Schedule):
        check_number(name, learning_rate, expected="a schedule or a number")


def check_number(
    name: str, value: object, *, above: float | None = None, below: float = math.inf, expected: str = "a number"
) -> None:
    """Raise :class:`~distnet.errors.ConfigError` unless ``value`` is finite and at least 0 (or over ``above``)."""
    low = "of at least 0" if above is None else f"above {above:g}"
    high = "" if below == math.inf else f" and below {below:g}"
    # `float` takes strings, too, so the type is asked for what makes a number: `__float__`.
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise ConfigError(f"{name} is {value!r}; expected {expected} {low}{high}")
    number = float(value)
    in_range = (number >= 0.0 if above is None else number > above) and number < below
    if not (math.isfinite(number) and in_range):
        raise ConfigError(f"{name} is {value!r}; expected {expected} {low}{high}, finite")


def check_count(name: str, value: object) -> None:
    """Raise :class:`~distnet.errors.ConfigError` unless ``value`` is a whole number of at least 0."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < 0:
        raise ConfigError(f"{name} is {value!r}; expected a whole number of at least 0")


def check_flag(name: str, value: object) -> None:
    """Raise :class:`~distnet.errors.ConfigError` unless ``value`` is a bool."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; expected True or False")
