"""Time to accuracy: after how many epochs and seconds each way of training first reached given accuracies."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Final

__all__ = ["HEADINGS", "LEGEND", "cells", "headings", "markdown_lines", "time_to_accuracy"]

Row = Mapping[str, Any]

NEAR: Final = 0.005  # of the baselines' best: half a point
STEP: Final = 0.05  # between round marks
ROUND_MARKS: Final = 3
HEADINGS: Final = ("training", "best", "final")
LEGEND: Final = (
    "To an accuracy: the first evaluation that reached it, in epochs of all workers together and in seconds of "
    "training, and the speed-ups in these seconds vs one process with as many cores as one worker has / with all "
    "cores. Medians over the seeds, the epochs' lowest and highest in brackets; ? is uncertain; – where a seed never "
    "got there."
)


def time_to_accuracy(
    rows: Sequence[Row],
    *,
    one_worker: str,
    all_cores: str = "",
    rates: Mapping[str, float] | None = None,
    marks: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Return when the rows of a comparison first reached its marks.

    Args:
        rows: of :func:`distnet.alexnet.report.comparison.compare_runs`, with their evaluations.
        one_worker: the name of the baseline that ``speedup`` is relative to; without it, that is the first baseline.
        all_cores: the name of the baseline that ``speedup_all_cores`` is relative to. Where it did not train but has a
            rate, it is taken to need the other baseline's epochs: they differ in threads alone.
        rates: examples a second by the rows' names, measured elsewhere; seconds are then examples divided by them,
            instead of those recorded, and None for a row without one.
        marks: accuracies in rising order; None: the last three multiples of five per cent that the baselines reached
            (without baselines: that anything reached), and half a point below their best.

    Returns:
        ``marks`` and ``rows``: ``name``, ``best`` and ``final`` accuracy (means over the seeds), and for every mark in
        ``reached``, or None where a seed never got there: the seeds' median ``epochs``, ``fewest_epochs`` and
        ``most_epochs``, median ``seconds``, ``speedup`` and ``speedup_all_cores``, and whether each of these is
        ``doubtful``: of one seed, or where the speed-up in examples per second is not to be claimed.
    """
    evaluated = [row for row in rows if any(row["evaluations"])]
    ours = [row for row in evaluated if row["baseline"]] or evaluated
    bests = [_best(row) for row in ours]
    if marks is None:
        marks = _marks(statistics.fmean(bests)) if bests else []
    elif not evaluated:
        marks = []
    found = [
        {
            "name": row["name"],
            "baseline": row["baseline"],
            "best": _best(row),
            "final": row["accuracy"]["mean"],
            "doubtful": {
                "speedup": _doubtful(row, "speedup_one_worker"),
                "speedup_all_cores": _doubtful(row, "speedup_all_cores"),
            },
            "reached": [_reached(row, mark, rates) for mark in marks],
        }
        for row in evaluated
    ]
    baselines = [row for row in found if row["baseline"]]
    reference = next((row for row in baselines if row["name"] == one_worker), baselines[0] if baselines else None)
    ones = _reference_seconds(ours, reference["name"] if reference else "", marks, rates)
    alls = _reference_seconds(ours, all_cores, marks, rates)
    for row in found:
        for reached, one_s, all_s in zip(row["reached"], ones, alls, strict=True):
            if reached is not None:
                reached["speedup"] = _ratio(one_s, reached["seconds"])
                reached["speedup_all_cores"] = _ratio(all_s, reached["seconds"])
    return {"marks": list(marks), "reference": reference["name"] if reference else None, "rows": found}


def headings(reaching: Mapping[str, Any]) -> list[str]:
    """Return the table's headings."""
    return [*HEADINGS, *(f"to {100 * mark:g} %" for mark in reaching["marks"])]


def cells(reaching: Mapping[str, Any]) -> list[list[str]]:
    """Return the table's rows as text, in the order of :func:`headings`."""
    return [
        [
            row["name"],
            _percent(row["best"]),
            _percent(row["final"]),
            *(_cell(reached, row["doubtful"]) for reached in row["reached"]),
        ]
        for row in reaching["rows"]
    ]


def markdown_lines(reaching: Mapping[str, Any]) -> list[str]:
    """Return the table in Markdown."""
    names = headings(reaching)
    table = [names, *cells(reaching)]
    lines = ["| " + " | ".join(row) + " |" for row in table]
    lines.insert(1, "|---|" + "--:|" * (len(names) - 1))
    return lines


def _marks(best: float) -> list[float]:
    near = round(best - NEAR, 4)
    highest = int(near / STEP + 1e-9)
    steps = range(max(1, highest - ROUND_MARKS + 1), highest + 1)
    return sorted({round(step * STEP, 4) for step in steps} | {near})


def _best(row: Row) -> float:
    """Return the mean over the seeds of the best accuracy that an evaluation found."""
    return statistics.fmean(max(result["accuracy"] for result in run) for run in row["evaluations"] if run)


def _reached(row: Row, mark: float, rates: Mapping[str, float] | None) -> dict[str, Any] | None:
    firsts = [next((result for result in run if result["accuracy"] >= mark), None) for run in row["evaluations"]]
    known = [first for first in firsts if first is not None]
    if len(known) < len(firsts):
        return None
    epochs = [float(first["epochs"]) for first in known]
    seconds = [_seconds(first, row["name"], rates) for first in known]
    return {
        "epochs": round(statistics.median(epochs), 4),
        "fewest_epochs": min(epochs),
        "most_epochs": max(epochs),
        "seconds": None if None in seconds else round(statistics.median(s for s in seconds if s is not None), 3),
        "speedup": None,
        "speedup_all_cores": None,
    }


def _reference_seconds(
    baselines: Sequence[Row], name: str, marks: Sequence[float], rates: Mapping[str, float] | None
) -> list[float | None]:
    """Return when a baseline reached the marks: in the other's epochs at its own rate, if it did not train."""
    row = next((row for row in baselines if row["baseline"] and row["name"] == name), None)
    if row is None and rates is not None and name in rates:
        other = next((row for row in baselines if row["baseline"]), None)
        row = {**other, "name": name} if other is not None else None
    reached = [None if row is None else _reached(row, mark, rates) for mark in marks]
    return [None if one is None else one["seconds"] for one in reached]


def _seconds(result: Mapping[str, Any], name: str, rates: Mapping[str, float] | None) -> float | None:
    if rates is None:
        return float(result["seconds"])
    return float(result["examples"]) / rates[name] if name in rates else None


def _ratio(reference_s: float | None, seconds: float | None) -> float | None:
    return round(reference_s / seconds, 4) if reference_s and seconds else None


def _doubtful(row: Row, speedup: str) -> bool:
    return not row["baseline"] and (len(row["seeds"]) < 2 or bool(row.get(f"{speedup}_doubts")))


def _cell(reached: Mapping[str, Any] | None, doubtful: Mapping[str, bool]) -> str:
    if reached is None:
        return "–"
    words = [f"{reached['epochs']:.1f} epochs"]
    if reached["fewest_epochs"] < reached["most_epochs"]:
        words[0] += f" ({reached['fewest_epochs']:.1f} to {reached['most_epochs']:.1f})"
    if reached["seconds"] is not None:
        words.append(f"{reached['seconds']:,.0f} s")
    speedups = [
        f"{reached[key]:.2f}{'?' if doubtful[key] else ''}"
        for key in ("speedup", "speedup_all_cores")
        if reached[key] is not None
    ]
    if speedups:
        words.append(" / ".join(speedups) + " ×")
    return ", ".join(words)


def _percent(accuracy: float | None) -> str:
    return "–" if accuracy is None else f"{100 * accuracy:.2f} %"
