"""The comparison as data: one row for each way of training, over all its seeds. It is what ``compare.json`` holds."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from distnet.alexnet.job.config import LOCAL
from distnet.alexnet.job.progress import percentiles
from distnet.alexnet.report.reaching import time_to_accuracy
from distnet.alexnet.report.spread import Scatter, doubts_of, logarithms, measured_together, scatter_of

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
        baseline is missing. With ``_interval`` added, the names hold the lowest and highest ratio that the noise allows
        (None of one seed), and with ``_doubts`` the reasons why the ratio is not to be claimed.
        ``accuracy_less_baseline_interval`` is half the width of that difference's interval. ``fastest`` names the rows
        that the noise cannot tell from the fastest one; none of one seed.
    """
    rows = [one_row(name, summaries) for name, summaries in runs.items() if summaries]
    if rates is None and unfair_seconds:
        rates = {}
    if rates is not None:
        _take_rates(rows, rates)
    known = {row["name"]: row["examples_per_s"]["mean"] for row in rows} if rates is None else rates
    noise = scatter_of(logarithms(_by_seed(rows, "examples_per_s")) if rates is None else {})
    bases = {"speedup_all_cores": all_cores, "speedup_one_worker": one_worker}
    baselines = {row["name"]: row for row in rows}
    for row in rows:
        for key, base in bases.items():
            row[key] = _ratio(row["examples_per_s"]["mean"], known.get(base))
            row[f"{key}_interval"] = _around(row[key], noise.half) if row["name"] != base else None
            row[f"{key}_doubts"] = _doubts(row, key, baselines.get(base), runs if rates is None else {})
    _compare_accuracies(rows, all_cores, one_worker)
    first = next(summary for summaries in runs.values() for summary in summaries)
    return {
        "rows": rows,
        "seeds": max(len(row["seeds"]) for row in rows),
        "fastest": _fastest(rows, noise),
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


def _by_seed(rows: Sequence[Mapping[str, Any]], value: str) -> dict[str, dict[int, float]]:
    """Return a value of every row by name and seed, where it is known."""
    return {
        row["name"]: {
            seed: known for seed, known in zip(row["seeds"], row[value]["values"], strict=True) if known is not None
        }
        for row in rows
    }


def _around(ratio: float | None, half: float | None) -> list[float] | None:
    """Return the interval of a ratio, from that of its logarithm."""
    if ratio is None or half is None:
        return None
    return [round(ratio / math.exp(half), 4), round(ratio * math.exp(half), 4)]


def _doubts(
    row: Mapping[str, Any], key: str, base: Mapping[str, Any] | None, runs: Mapping[str, Sequence[Run]]
) -> list[str]:
    """Return why a row's speed-up over a baseline is not to be claimed."""
    if row[key] is None or base is None or row["name"] == base["name"]:
        return []
    cores = row["workers"] * row["threads_per_worker"] / base["threads_per_worker"]
    interval = row[f"{key}_interval"]
    return doubts_of(
        row[key],
        None if interval is None else (interval[0], interval[1]),
        most=max(cores, row["workers"]),
        workers=row["workers"],
        together=_together(row["name"], base["name"], runs),
    )


def _together(name: str, base: str, runs: Mapping[str, Sequence[Run]]) -> bool:
    """Return whether the runs of two ways were measured at one time in every turn that both have."""

    def seed_of(run: Run) -> int:
        return int(run["config"]["seed"])

    theirs = {seed_of(run): run for run in runs.get(base, ())}
    for run in runs.get(name, ()):
        other = theirs.get(seed_of(run))
        turn = [one for summaries in runs.values() for one in summaries if seed_of(one) == seed_of(run)]
        if other is not None and not measured_together(turn, run, other):
            return False
    return True


def _compare_accuracies(rows: Sequence[dict[str, Any]], *baselines: str) -> None:
    """Add each row's distance from the baselines' mean accuracy, and half the width of its interval."""
    accuracies = {row["name"]: row["accuracy"]["mean"] for row in rows}
    half = scatter_of({name: own for name, own in _by_seed(rows, "accuracy").items() if own}).half
    for row in rows:
        row["accuracy_less_baseline"] = _difference(row["accuracy"]["mean"], _baseline(accuracies, *baselines))
        known = row["accuracy_less_baseline"] is not None and half is not None
        row["accuracy_less_baseline_interval"] = round(half, 5) if known and half is not None else None


def _fastest(rows: Sequence[Mapping[str, Any]], noise: Scatter) -> list[str]:
    """Return the names of the rows with a server that the noise cannot tell from the fastest; none of one seed."""
    served = [row for row in rows if not row["baseline"] and row["examples_per_s"]["mean"]]
    if noise.half is None or not served:
        return []
    served.sort(key=lambda row: -float(row["examples_per_s"]["mean"]))
    best = served[0]["examples_per_s"]["mean"]
    return [row["name"] for row in served if best / row["examples_per_s"]["mean"] <= math.exp(noise.half)]


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
