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
    "training, and the speed-up in these seconds vs one process with as many cores as one worker has. Means over the "
    "seeds; – where a seed never got there. The last mark is half a point below the baselines' best."
)


def time_to_accuracy(
    rows: Sequence[Row], *, one_worker: str, rates: Mapping[str, float] | None = None
) -> dict[str, Any]:
    """Return when the rows of a comparison first reached its marks.

    The marks are the last three multiples of five per cent that the baselines reached (without baselines: that anything
    reached), and half a point below their best.

    Args:
        rows: of :func:`distnet.reporting.comparison.compare_runs`, with their evaluations.
        one_worker: the name of the baseline that speed-ups are relative to; without it, they are relative to the first
            baseline.
        rates: examples a second by the rows' names, measured elsewhere; seconds are then examples divided by them,
            instead of those recorded, and None for a row without one.

    Returns:
        ``marks``, accuracies in rising order, and ``rows``: ``name``, ``best`` and ``final`` accuracy, and for every
        mark in ``reached`` its ``epochs``, ``seconds`` and ``speedup``, or None where a seed never got there.
    """
    evaluated = [row for row in rows if any(row["evaluations"])]
    ours = [row for row in evaluated if row["baseline"]] or evaluated
    bests = [_best(row) for row in ours]
    marks = _marks(statistics.fmean(bests)) if bests else []
    found = [
        {
            "name": row["name"],
            "baseline": row["baseline"],
            "best": _best(row),
            "final": row["accuracy"]["mean"],
            "reached": [_reached(row, mark, rates) for mark in marks],
        }
        for row in evaluated
    ]
    baselines = [row for row in found if row["baseline"]]
    reference = next((row for row in baselines if row["name"] == one_worker), baselines[0] if baselines else None)
    for row in found:
        for index, reached in enumerate(row["reached"]):
            if reached is not None:
                reached["speedup"] = _speedup(reached, reference["reached"][index] if reference else None)
    return {"marks": marks, "reference": reference["name"] if reference else None, "rows": found}


def headings(reaching: Mapping[str, Any]) -> list[str]:
    """Return the table's headings."""
    return [*HEADINGS, *(f"to {100 * mark:g} %" for mark in reaching["marks"])]


def cells(reaching: Mapping[str, Any]) -> list[list[str]]:
    """Return the table's rows as text, in the order of :func:`headings`."""
    return [
        [row["name"], _percent(row["best"]), _percent(row["final"]), *(_cell(reached) for reached in row["reached"])]
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
    seconds = [_seconds(first, row["name"], rates) for first in known]
    return {
        "epochs": round(statistics.fmean(first["epochs"] for first in known), 4),
        "seconds": None if None in seconds else round(statistics.fmean(s for s in seconds if s is not None), 3),
        "speedup": None,
    }


def _seconds(result: Mapping[str, Any], name: str, rates: Mapping[str, float] | None) -> float | None:
    if rates is None:
        return float(result["seconds"])
    return float(result["examples"]) / rates[name] if name in rates else None


def _speedup(reached: Mapping[str, Any], reference: Mapping[str, Any] | None) -> float | None:
    if reference is None or not reached["seconds"] or reference["seconds"] is None:
        return None
    return float(round(reference["seconds"] / reached["seconds"], 4))


def _cell(reached: Mapping[str, Any] | None) -> str:
    if reached is None:
        return "–"
    words = [f"{reached['epochs']:.1f} epochs"]
    if reached["seconds"] is not None:
        words.append(f"{reached['seconds']:,.0f} s")
    if reached["speedup"] is not None:
        words.append(f"{reached['speedup']:.2f} ×")
    return ", ".join(words)


def _percent(accuracy: float | None) -> str:
    return "–" if accuracy is None else f"{100 * accuracy:.2f} %"
