"""How far measurements that were taken in turns can be trusted: intervals of ratios and differences, and doubts.

Every way of training runs once in each turn (a seed), so what a turn has in common, such as a slower machine, is taken
out: a value is its way's mean, plus its turn's part, plus a residual, and the residuals of all ways together say how
far a mean may be off. For ratios the same is done with logarithms. Intervals are those of 95 % (Student's t), as far as
all ways scatter alike.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["ONE_MEASUREMENT", "Scatter", "doubts_of", "logarithms", "measured_together", "scatter_of"]

WIDE: Final = 1.25
"""An interval whose ends are further apart than this factor is too wide for a claim."""

BREAK_S: Final = 600.0
"""Two runs of a turn with a longer pause between them were not measured at one time."""

ONE_MEASUREMENT: Final = "it is one measurement of each, whose spread is not known"

_STUDENT: Final = (
    12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23,
    2.20, 2.18, 2.16, 2.14, 2.13, 2.12, 2.11, 2.10, 2.09, 2.09,
)  # fmt: skip
_STUDENT_OF_MANY: Final = 2.05

Values = Mapping[str, Mapping[int, float]]  # by way and seed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scatter:
    """How far a mean over the turns may be off.

    Attributes:
        turns: how many turns all ways have in common.
        half: half the width of the interval of a difference of two ways' means; None where one turn says nothing.
    """

    turns: int
    half: float | None


def scatter_of(values: Values) -> Scatter:
    """Return the scatter of values, by the turns that all ways have."""
    turns = sorted(set.intersection(*(set(own) for own in values.values()))) if values else []
    if len(turns) < 2 or len(values) < 2:
        return Scatter(turns=len(turns), half=None)
    table = [[own[turn] for turn in turns] for own in values.values()]
    ways = [statistics.fmean(row) for row in table]
    columns = [statistics.fmean(column) for column in zip(*table, strict=True)]
    grand = statistics.fmean(ways)
    squares = sum(
        (value - way - column + grand) ** 2
        for row, way in zip(table, ways, strict=True)
        for value, column in zip(row, columns, strict=True)
    )
    freedom = (len(table) - 1) * (len(turns) - 1)
    student = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else _STUDENT_OF_MANY
    return Scatter(turns=len(turns), half=student * math.sqrt(squares / freedom) * math.sqrt(2 / len(turns)))


def logarithms(values: Values) -> dict[str, dict[int, float]]:
    """Return the logarithms of values, without those that have none."""
    return {way: {turn: math.log(v) for turn, v in own.items() if v > 0} for way, own in values.items()}


def doubts_of(
    ratio: float, interval: tuple[float, float] | None, *, most: float, workers: int, together: bool
) -> list[str]:
    """Return why a ratio to a baseline is not to be claimed: a phrase for each reason.

    Args:
        ratio: of the means.
        interval: what the noise makes of it; None: of one measurement, it is not known.
        most: what as many cores as the workers have can give at most.
        workers: how many there are.
        together: whether both were measured at one time.
    """
    doubts = []
    if round(ratio, 2) > most:
        doubts.append(
            f"{ratio:.2f} times is more than {workers} worker{'s' if workers > 1 else ''} can give: it is noise, or "
            "the baseline was measured in a slower moment"
        )
    if not together:
        doubts.append("the baseline was measured at another time")
    if interval is None:
        doubts.append(ONE_MEASUREMENT)
    elif interval[1] > WIDE * interval[0]:
        doubts.append(f"the interval is wide, {interval[0]:.2f} to {interval[1]:.2f}")
    return doubts


def measured_together(runs: Sequence[Mapping[str, Any]], one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether two runs of a turn, by their summaries, have no long break between them.

    Args:
        runs: all runs of the turn.
        one, other: two of them.
    """
    if any("started" not in run for run in runs):
        return True  # summaries of an older version do not say
    inside = sorted(runs, key=lambda run: float(run["started"]))
    first, last = sorted((inside.index(one), inside.index(other)))
    return all(
        later["started"] - earlier["ended"] <= BREAK_S
        for earlier, later in itertools.pairwise(inside[first : last + 1])
    )
