"""The comparison as data: one row for each way of training, over all its seeds. It is what ``compare.json`` holds."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from distnet.launch.config import LOCAL
from distnet.launch.progress import percentiles
from distnet.reporting.reaching import time_to_accuracy

__all__ = ["compare_runs", "one_row"]

Run = Mapping[str, Any]


def compare_runs(
    runs: Mapping[str, Sequence[Run]],
    *,
    all_cores: str,
    one_worker: str,
    unfair_seconds: str = "",
    rates: Mapping[str, float] | None = None,
    marks: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Return the comparison of finished runs.

    Args:
        runs: summaries by the name of their way of training, a summary for each seed.
        all_cores: the name of the baseline that has every core.
        one_worker: the name of the baseline that has as many cores as one worker.
        unfair_seconds: why the runs' seconds cannot be compared, where that is so: reports say it first, and there are
            no rates, no speed-ups and no seconds to an accuracy, unless there are ``rates``.
        rates: examples a second by the names of the runs, measured elsewhere; they then stand for the runs' own
            everywhere, and a name without one has no seconds.
        marks: accuracies for ``time_to_accuracy``; None: chosen by what was reached.

    Returns:
        ``rows``, in the order of ``runs``, their ``time_to_accuracy``, and what all runs have in common. A row's
        ``speedup_all_cores`` and ``speedup_one_worker`` are ratios of mean examples per second; None while that
        baseline is missing.
    """
    rows = [one_row(name, summaries) for name, summaries in runs.items() if summaries]
    if rates is None and unfair_seconds:
        rates = {}
    if rates is not None:
        _take_rates(rows, rates)
    known = {row["name"]: row["examples_per_s"]["mean"] for row in rows} if rates is None else rates
    bases = (known.get(all_cores), known.get(one_worker))
    accuracies = {row["name"]: row["accuracy"]["mean"] for row in rows}
    for row in rows:
        row["speedup_all_cores"], row["speedup_one_worker"] = (
            _ratio(row["examples_per_s"]["mean"], base) for base in bases
        )
        row["accuracy_less_baseline"] = _difference(
            row["accuracy"]["mean"], _baseline(accuracies, all_cores, one_worker)
        )
    first = next(summary for summaries in runs.values() for summary in summaries)
    return {
        "rows": rows,
        "unfair_seconds": unfair_seconds,
        "rates": dict(rates) if rates else None,
        "time_to_accuracy": time_to_accuracy(
            rows, one_worker=one_worker, all_cores=all_cores, rates=rates, marks=marks
        ),
        "baselines": {"all_cores": all_cores, "one_worker": one_worker},
        "data": first["data"],
        "epochs": first["epochs"],
        "examples": first["examples"],
        "machine": first["machine"],
        "versions": first["versions"],
    }


def one_row(name: str, summaries: Sequence[Run]) -> dict[str, Any]:
    """Return what the runs of one way of training have in common, and means and spreads of what they do not."""
    first = summaries[0]
    counts: Counter[int] = Counter()
    for summary in summaries:
        counts.update({int(value): count for value, count in summary["staleness"]["counts"].items()})
    return {
        "name": name,
        "semantics": first["config"]["semantics"],
        "baseline": first["config"]["semantics"] == LOCAL,
        "workers": first["config"]["workers"],
        "threads_per_worker": first["threads_per_worker"],
        "transport": first["transport"],
        "seeds": [summary["config"]["seed"] for summary in summaries],
        "examples": first["examples"],
        "updates": first["updates"],
        "effective_batch": first["effective_batch"],
        "rate_rule": first["rate_rule"],
        "accuracy": _spread([summary["accuracy"] for summary in summaries]),
        "examples_per_s": _spread([summary["examples_per_s"] for summary in summaries]),
        "seconds": _spread([summary["seconds"] for summary in summaries]),
        "staleness": {**percentiles(counts), "counts": {str(value): counts[value] for value in sorted(counts)}},
        "bytes_received": first["bytes_received"],
        "bytes_sent": first["bytes_sent"],
        "evaluations": [list(summary["evaluations"]) for summary in summaries],
    }


def _take_rates(rows: Sequence[dict[str, Any]], rates: Mapping[str, float]) -> None:
    """Put rates that were measured elsewhere, and the seconds that follow from them, in the place of the rows' own."""
    for row in rows:
        rate = rates.get(row["name"])
        row["examples_per_s"] = _spread([rate])
        row["seconds"] = _spread([row["examples"] / rate if rate else None])
        row["evaluations"] = [
            [{**result, "seconds": round(result["examples"] / rate, 3) if rate else None} for result in run]
            for run in row["evaluations"]
        ]


def _baseline(accuracies: Mapping[str, float | None], *names: str) -> float | None:
    """Return the baselines' mean accuracy: they differ in threads alone."""
    values = [value for value in (accuracies.get(name) for name in names) if value is not None]
    return statistics.fmean(values) if values else None


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "min": None, "max": None, "values": list(values)}
    return {"mean": statistics.fmean(known), "min": min(known), "max": max(known), "values": list(values)}


def _ratio(value: float | None, base: float | None) -> float | None:
    return round(value / base, 4) if value and base else None


def _difference(value: float | None, base: float | None) -> float | None:
    return None if value is None or base is None else round(value - base, 5)
