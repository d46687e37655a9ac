"""The comparison as a table: for the terminal, in Markdown, and as cells for the HTML report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from distnet.reporting import reaching

__all__ = ["HEADINGS", "LEGEND", "cells", "markdown_table", "terminal_table"]

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
    "test images, its mean over the seeds ± half the distance from worst to best; vs base: its distance from the "
    "baselines' mean, in points. Speed-ups: vs one process with all cores, and vs one with as many cores as one worker "
    "has. Staleness: mean / p99 / largest."
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
        "–"
        if row["baseline"] or row["accuracy_less_baseline"] is None
        else f"{100 * row['accuracy_less_baseline']:+.2f}",
        "–" if row["examples_per_s"]["mean"] is None else f"{row['examples_per_s']['mean']:,.0f}",
        _times(row["speedup_all_cores"]),
        _times(row["speedup_one_worker"]),
        "–" if row["baseline"] else f"{staleness['mean']:.2f} / {staleness['p99']} / {staleness['max']}",
    ]


def _accuracy(spread: Mapping[str, Any]) -> str:
    if spread["mean"] is None:
        return "–"
    mean = f"{100 * spread['mean']:.2f} %"
    half = 50 * (spread["max"] - spread["min"])
    return f"{mean} ± {half:.2f}" if len(spread["values"]) > 1 else mean


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f} ×"


def _markdown_line(row: Sequence[str]) -> str:
    return "| " + " | ".join(row) + " |"
