"""Learning-rate schedules by update count, as frozen values.

An optimizer's ``learning_rate`` is a float or one of these. Each shard counts its own updates from 0: the first update
of all has the schedule's value at 0. The engine computes the rates; these classes only describe them.
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
    """Base of all schedules.

    Thread safety: a schedule never changes.
    """

    def to_spec(self) -> dict[str, Any]:
        """Return the schedule as plain values that JSON can hold.

        Returns:
            A dict with every key of the engine's ``ScheduleSpec``; an optimizer's ``to_spec()`` holds it as
            ``"schedule"``.
        """
        raise NotImplementedError


LearningRate: TypeAlias = float | Schedule


@dataclasses.dataclass(frozen=True)
class ExponentialDecay(Schedule):
    """A learning rate that is multiplied by a factor every so many updates, bit by bit or at once.

    With ``staircase`` the exponent is rounded down::

        rate(update) = learning_rate * factor ** (update / updates)

    Args:
        learning_rate: the learning rate at update 0, at least 0.
        factor: what so many updates multiply the learning rate by, above 0.
        updates: the period, in updates, above 0.
        staircase: keep the learning rate for a whole period, then drop it at once.

    Raises:
        ConfigError: a value that is not finite or out of range.

    Example:
        The server says what its next update uses.

        >>> schedule = distnet.ExponentialDecay(1.0, factor=0.5, updates=2, staircase=True)
        >>> model = [np.zeros(1, np.float32)]
        >>> with distnet.ParameterServer(model, optimizer=distnet.SGD(schedule)) as server:
        ...     with distnet.connect(server.address, rank=0) as client:
        ...         rates = [server.learning_rate]
        ...         for _ in range(4):
        ...             client.push([np.ones(1, np.float32)])
        ...             parameters = server.parameters()  # which has that push
        ...             rates.append(server.learning_rate)
        >>> rates
        [1.0, 1.0, 0.5, 0.5, 0.25]
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
        return {
            **_constant(self.learning_rate),
            "kind": "exponential",
            "factor": float(self.factor),
            "period_updates": float(self.updates),
            "staircase": self.staircase,
        }


@dataclasses.dataclass(frozen=True)
class PiecewiseConstant(Schedule):
    """A learning rate in steps.

    ``learning_rates[i]`` holds while ``update < boundaries[i]``, then the next; the last one holds for ever.

    Args:
        boundaries: counts of updates, each larger than the one before.
        learning_rates: one more than boundaries, each at least 0.

    Raises:
        ConfigError: another number of learning rates, boundaries that do not rise, or a value out of range.

    Example:
        >>> distnet.SGD(distnet.PiecewiseConstant([100, 200], [0.1, 0.01, 0.001])).learning_rate
        PiecewiseConstant(boundaries=(100, 200), learning_rates=(0.1, 0.01, 0.001))
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
        return {
            **_constant(self.learning_rates[0]),
            "kind": "piecewise",
            "boundaries": [int(boundary) for boundary in self.boundaries],
            "values": [float(learning_rate) for learning_rate in self.learning_rates],
        }


@dataclasses.dataclass(frozen=True)
class CosineDecay(Schedule):
    """Half a cosine from ``learning_rate`` down to ``final``, which then holds.

    ::

        rate(update) = final + (learning_rate - final) / 2 * (1 + cos(pi * min(1, update / updates)))

    Args:
        learning_rate: the learning rate at update 0, at least 0.
        updates: how many updates the way takes, above 0.
        final: the learning rate at the end, at least 0.

    Raises:
        ConfigError: a value that is not finite or out of range.

    Example:
        Under gradients of 1, the differences are the rates of updates 0, 1 and 2.

        >>> optimizer = distnet.SGD(distnet.CosineDecay(1.0, updates=2))
        >>> store = distnet.MutexStore(np.zeros(1, np.float32), optimizer)
        >>> out, values = np.empty(1, np.float32), [0.0]
        >>> for _ in range(3):
        ...     store.apply(np.ones(1, np.float32))
        ...     version = store.read(out)
        ...     values.append(float(out[0]))
        >>> [round(before - after, 6) for before, after in zip(values, values[1:])]
        [1.0, 0.5, 0.0]

    Source: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts", ICLR 2017, without the
    restarts.
    """

    learning_rate: float
    updates: float
    final: float = 0.0

    def __post_init__(self) -> None:
        check_number("CosineDecay.learning_rate", self.learning_rate)
        check_number("CosineDecay.updates", self.updates, above=0.0)
        check_number("CosineDecay.final", self.final)

    def to_spec(self) -> dict[str, Any]:
        return {
            **_constant(self.learning_rate),
            "kind": "cosine",
            "period_updates": float(self.updates),
            "final_learning_rate": float(self.final),
        }


@dataclasses.dataclass(frozen=True)
class Warmup(Schedule):
    """A straight line from ``start`` to the first learning rate of ``then``, which starts counting after it.

    Until update number ``updates``, where ``then`` begins::

        rate(update) = start + (first - start) * update / updates        first: the first learning rate of then

    Args:
        updates: how many updates the warm-up takes, a whole number of at least 0.
        then: the learning rate, or the schedule, that follows; not another Warmup.
        start: the learning rate at update 0, at least 0.

    Raises:
        ConfigError: a value out of range, or a Warmup within a Warmup.

    Example:
        >>> optimizer = distnet.SGD(distnet.Warmup(4, then=1.0))
        >>> store = distnet.MutexStore(np.zeros(1, np.float32), optimizer)
        >>> out, values = np.empty(1, np.float32), [0.0]
        >>> for _ in range(5):
        ...     store.apply(np.ones(1, np.float32))
        ...     version = store.read(out)
        ...     values.append(float(out[0]))
        >>> [before - after for before, after in zip(values, values[1:])]
        [0.0, 0.25, 0.5, 0.75, 1.0]

    Source: Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour", 2017 (arXiv:1706.02677).
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
        return {
            **learning_rate_to_spec(self.then),
            "warmup_updates": int(self.updates),
            "warmup_learning_rate": float(self.start),
        }


def _constant(learning_rate: float) -> dict[str, Any]:
    return {**_CONSTANT, "learning_rate": float(learning_rate), "boundaries": [], "values": []}


def learning_rate_to_spec(learning_rate: LearningRate) -> dict[str, Any]:
    """Return a learning rate, constant or scheduled, as plain values that JSON can hold.

    Args:
        learning_rate: a number, or a schedule.

    Returns:
        A dict with every key of the engine's ``ScheduleSpec``.
    """
    return learning_rate.to_spec() if isinstance(learning_rate, Schedule) else _constant(learning_rate)


def learning_rate_from_spec(spec: Mapping[str, Any]) -> LearningRate:
    """Return the learning rate that :func:`learning_rate_to_spec` was given.

    Args:
        spec: what that returned; keys left out have the values of a constant.

    Returns:
        A number, or a schedule.

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
    """Return where a learning rate starts, after a warm-up.

    Args:
        learning_rate: a number, or a schedule.

    Returns:
        The number.

    Raises:
        ConfigError: a schedule of a class that is not one of these.
    """
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
    """Return the same learning rate or schedule, but starting somewhere else.

    Args:
        learning_rate: a number, or a schedule.
        start: where it is to start, after a warm-up.

    Returns:
        The schedule with that start. A piecewise constant one, whose steps cannot be moved, is replaced by the constant
        ``start`` unless it starts there already.
    """
    if isinstance(learning_rate, Warmup):
        return dataclasses.replace(learning_rate, then=started_from(learning_rate.then, start))
    if isinstance(learning_rate, (CosineDecay, ExponentialDecay)):
        return dataclasses.replace(learning_rate, learning_rate=start)
    return learning_rate if start_of(learning_rate) == start else start


def check_learning_rate(name: str, learning_rate: object) -> None:
    """Raise :class:`~distnet.ConfigError` unless it is a schedule, or a finite number of at least 0."""
    if not isinstance(learning_rate, Schedule):
        check_number(name, learning_rate, expected="a schedule or a number")


def check_number(
    name: str, value: object, *, above: float | None = None, below: float = math.inf, expected: str = "a number"
) -> None:
    """Raise :class:`~distnet.ConfigError` unless ``value`` is finite and at least 0 (or over ``above``)."""
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
    """Raise :class:`~distnet.ConfigError` unless ``value`` is a whole number of at least 0."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < 0:
        raise ConfigError(f"{name} is {value!r}; expected a whole number of at least 0")


def check_flag(name: str, value: object) -> None:
    """Raise :class:`~distnet.ConfigError` unless ``value`` is a bool."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} is {value!r}; expected True or False")
