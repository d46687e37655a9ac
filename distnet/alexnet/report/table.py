"""The comparison as a table: for the terminal, in Markdown, and as cells for the HTML report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distnet.alexnet.report import reaching
from distnet.alexnet.report.spread import ONE_MEASUREMENT

__all__ = ["HEADINGS", "LEGEND", "ONE_SEED", "cells", "markdown_table", "speedup", "terminal_table", "uncertain"]

HEADINGS = (
    "training",
    "workers",
    "updates",
    "batch",
    "accuracy",
    "vs base",
    "examples/s",
    "vs all cores",
    "vs one",
    "staleness",
)
LEGEND = (
    "Workers × threads of each. Batch: the examples that one update joins. Accuracy: that of the moving average on the "
    "test images; vs base: its distance from the baselines' mean, in points. Accuracy and examples/s: means over the "
    "seeds ± half the distance from worst to best. Speed-ups: vs one process with all cores, and vs one with as many "
    "cores as one worker has. Speed-ups and vs base: ± half of a 95 % interval, from how all ways scatter over the "
    "seeds; ? is uncertain. Staleness: mean / p99 / largest."
)
ONE_SEED = (
    "Each way was trained with one seed: every rate and every number of seconds is one measurement, and how far "
    "another one would be from it is not known. No difference is claimed; train with --seeds 1,2,3 for a spread."
)
_TEXT_COLUMNS = 1


def cells(comparison: Mapping[str, Any]) -> list[list[str]]:
    """Return the table's rows as text, in the order of ``HEADINGS``."""
    return [_row(row) for row in comparison["rows"]]


def markdown_table(comparison: Mapping[str, Any]) -> str:
    """Return the comparison in Markdown: its tables, the rate rules, and what it was measured on."""
    lines = [_markdown_line(HEADINGS), "|" + "---|" * _TEXT_COLUMNS + "--:|" * (len(HEADINGS) - _TEXT_COLUMNS)]
    lines += [_markdown_line(row) for row in cells(comparison)]
    lines += ["", LEGEND, ""]
    if doubts := uncertain(comparison):
        lines += ["## Uncertain", "", *(f"- {doubt}" for doubt in doubts), ""]
    if comparison["time_to_accuracy"]["marks"]:
        lines += ["## Time to accuracy", "", *reaching.markdown_lines(comparison["time_to_accuracy"])]
        lines += ["", reaching.LEGEND, ""]
    lines += ["Learning rates:", ""]
    lines += [f"- {row['name']}: {row['rate_rule']}" for row in comparison["rows"]]
    note = [comparison["unfair_seconds"], ""] if comparison["unfair_seconds"] else []
    return "\n".join([f"# {title(comparison)}", "", *note, *lines, "", f"Measured on: {measured_on(comparison)}.", ""])


def terminal_table(comparison: Mapping[str, Any]) -> str:
    """Return the comparison as plain text in columns."""
    table = [list(HEADINGS), *cells(comparison)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADINGS))]
    lines = []
    for row in table:
        columns = [
            text.ljust(width) if column < _TEXT_COLUMNS else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(columns).rstrip())
    lines.insert(1, "─" * max(len(line) for line in lines))
    return "\n".join(lines)


def uncertain(comparison: Mapping[str, Any]) -> list[str]:
    """Return what is not to be claimed and why: a sentence each."""
    baselines = comparison["baselines"]
    against = {f"speedup_{base}": name for base, name in baselines.items()}
    if baselines["all_cores"] == baselines["one_worker"]:
        del against["speedup_one_worker"]
    doubts = {
        (row["name"], name): list(row[f"{key}_doubts"]) for row in comparison["rows"] for key, name in against.items()
    }
    of_one = any(ONE_MEASUREMENT in reasons for reasons in doubts.values())
    lines = [_of_one_measurement(comparison)] if of_one or comparison["seeds"] < 2 else []
    for (name, base), reasons in doubts.items():
        if others := [reason for reason in reasons if reason != ONE_MEASUREMENT]:
            lines.append(f"{name} against {base}: {'; '.join(others)}.")
    return lines


def _of_one_measurement(comparison: Mapping[str, Any]) -> str:
    if comparison["seeds"] < 2:
        return ONE_SEED
    if comparison["rates"]:
        return (
            "Rates are those of another comparison, each one number; how far another would be from it is not said here."
        )
    return "The ways of training have fewer than two seeds in common, so no difference between them is claimed."


def speedup(row: Mapping[str, Any], key: str) -> str:
    """Return a row's ratio to a baseline as text: with its interval, or with a question mark where it is uncertain."""
    ratio, interval = row[key], row[f"{key}_interval"]
    if ratio is None:
        return "–"
    if row[f"{key}_doubts"]:
        return f"{ratio:.2f}? ×"
    return f"{ratio:.2f} ×" if interval is None else f"{ratio:.2f} ± {(interval[1] - interval[0]) / 2:.2f} ×"


def title(comparison: Mapping[str, Any]) -> str:
    """Return the comparison in one line."""
    seeds = max(len(row["seeds"]) for row in comparison["rows"])
    work = f"{comparison['examples']:,} examples ({comparison['epochs']:.4g} epochs)"
    ways = f"{len(comparison['rows'])} ways to train on the same {work}"
    return f"AlexNet on {comparison['data']['name']}: {ways}, {seeds} seed{'s' if seeds > 1 else ''}"


def measured_on(comparison: Mapping[str, Any]) -> str:
    """Return the machine and the versions in one line."""
    machine, versions = comparison["machine"], comparison["versions"]
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{machine['processor']}, {machine['cores']} cores, {machine['system']}; {packages}"


def _row(row: Mapping[str, Any]) -> list[str]:
    staleness = row["staleness"]
    return [
        row["name"],
        f"{row['workers']} × {row['threads_per_worker']}",
        f"{row['updates']:,}",
        f"{row['effective_batch']:,}",
        _accuracy(row["accuracy"]),
        _less_baseline(row),
        _rate(row["examples_per_s"]),
        speedup(row, "speedup_all_cores"),
        speedup(row, "speedup_one_worker"),
        "–" if row["baseline"] else f"{staleness['mean']:.2f} / {staleness['p99']} / {staleness['max']}",
    ]


def _accuracy(spread: Mapping[str, Any]) -> str:
    if spread["mean"] is None:
        return "–"
    mean = f"{100 * spread['mean']:.2f} %"
    half = 50 * (spread["max"] - spread["min"])
    return f"{mean} ± {half:.2f}" if len(spread["values"]) > 1 else mean


def _less_baseline(row: Mapping[str, Any]) -> str:
    difference, half = row["accuracy_less_baseline"], row["accuracy_less_baseline_interval"]
    if row["baseline"] or difference is None:
        return "–"
    return f"{100 * difference:+.2f}?" if half is None else f"{100 * difference:+.2f} ± {100 * half:.2f}"


def _rate(spread: Mapping[str, Any]) -> str:
    if spread["mean"] is None:
        return "–"
    mean = f"{spread['mean']:,.0f}"
    return f"{mean} ± {(spread['max'] - spread['min']) / 2:,.0f}" if len(spread["values"]) > 1 else mean


def _markdown_line(row: Sequence[str]) -> str:
    return "| " + " | ".join(row) + " |"
