"""Timing by turns: what is compared runs again and again side by side, so that a machine that drifts drifts for all.

A ``Contender`` is anything to be timed. ``time_in_turns`` gives every contender so many calls in each turn, in an order
that is shuffled each turn; ratios are taken between neighbours of the same turn, and their median is what counts.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from distnet.errors import DistNetError

__all__ = ["Contender", "Spread", "Timing", "WrongAnswer", "difference", "ratio", "time_in_turns", "timed"]

FEWEST_TURNS = 5
_TURNS = 20  # aimed at: enough for quartiles
_FEWEST_CALLS, _MOST_CALLS = 4, 256  # of a contender in a turn
_SLOW_CALL_S = 0.1  # fewer calls a turn do from here on
_FEWEST_SLOW_CALLS = 2
_SEED = 1


class WrongAnswer(DistNetError):
    """Something was measured that did not do its work."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contender:
    """Something to time.

    Attributes:
        name: for tables.
        run: does it so many times and returns the seconds of each.
        check: raises ``WrongAnswer`` unless the answer after so many calls is right; nothing runs afterwards.
        pids: the other processes that take part, for their processor time.
    """

    name: str
    run: Callable[[int], Sequence[float]]
    check: Callable[[int], None]
    pids: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """What a contender's calls took.

    Attributes:
        latency_s: from a call to its answer: the median of all calls.
        sustained_s: a call's share of the time of several in a row, which bounds throughput: the median of all turns.
        turns_s: that share, turn by turn.
    """

    latency_s: float
    sustained_s: float
    turns_s: tuple[float, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spread:
    """A median with the interval that holds the middle half."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return that of some values, at least one."""
        if len(values) == 1:
            return cls(median=values[0], low=values[0], high=values[0])
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median=median, low=low, high=high)


def timed(call: Callable[[], object]) -> Callable[[int], list[float]]:
    """Return what a contender of this process runs: the call so many times, timed one by one."""

    def run(calls: int) -> list[float]:
        moments = [time.perf_counter()]
        for _ in range(calls):
            call()
            moments.append(time.perf_counter())
        return [end - start for start, end in itertools.pairwise(moments)]

    return run


def ratio(timings: Mapping[str, Timing], name: str, other: str) -> Spread:
    """Return how many times as long ``name`` takes as ``other``, turn by turn."""
    return Spread.of([mine / its for mine, its in _pairs(timings, name, other)])


def difference(timings: Mapping[str, Timing], name: str, other: str) -> Spread:
    """Return how many seconds longer ``name`` takes than ``other``, turn by turn."""
    return Spread.of([mine - its for mine, its in _pairs(timings, name, other)])


def _pairs(timings: Mapping[str, Timing], name: str, other: str) -> zip[tuple[float, float]]:
    return zip(timings[name].turns_s, timings[other].turns_s, strict=True)


def time_in_turns(
    contenders: Sequence[Contender], *, budget_s: float, turns_at_least: int = FEWEST_TURNS
) -> dict[str, Timing]:
    """Time contenders in turns for about so long, check their answers, and return timings by name.

    Of several calls each, because a server that answers before it applies would otherwise do its work in the others'
    time. The first call of each in a turn does not count: it finds the caches as another left them.
    """
    names = [contender.name for contender in contenders]
    if len(set(names)) != len(names):
        raise ValueError(f"contenders of one name: {names}")
    give_up_s = time.perf_counter() + budget_s
    slice_s = budget_s / (_TURNS * max(1, len(contenders)))
    made = dict.fromkeys(names, 0)

    def run(contender: Contender, calls: int) -> Sequence[float]:
        made[contender.name] += calls
        return contender.run(calls)

    # The first calls are for the page tables; the second ones say how many calls a turn can hold.
    calls = {c.name: (run(c, _FEWEST_SLOW_CALLS), _calls_in(slice_s, min(run(c, 2))))[1] for c in contenders}
    latencies: dict[str, list[float]] = {name: [] for name in names}
    turns_s: dict[str, list[float]] = {name: [] for name in names}
    order = random.Random(_SEED)
    turns = 0
    while turns < turns_at_least or time.perf_counter() < give_up_s:
        for contender in order.sample(list(contenders), len(contenders)):
            run(contender, 1)
            seconds = run(contender, calls[contender.name])
            latencies[contender.name] += seconds
            turns_s[contender.name].append(sum(seconds) / len(seconds))
        turns += 1
    for contender in contenders:
        contender.check(made[contender.name])
    median = statistics.median
    return {
        name: Timing(latency_s=median(latencies[name]), sustained_s=median(turns_s[name]), turns_s=tuple(turns_s[name]))
        for name in names
    }


def _calls_in(slice_s: float, call_s: float) -> int:
    fewest = _FEWEST_CALLS if call_s < _SLOW_CALL_S else _FEWEST_SLOW_CALLS
    return max(fewest, min(_MOST_CALLS, int(slice_s / max(call_s, 1e-9))))
