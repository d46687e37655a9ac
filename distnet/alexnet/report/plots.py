"""Plots of one run and of a comparison, as PNG files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from distnet.alexnet.job.folder import writing
from distnet.alexnet.report.table import speedup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_comparison", "plot_run"]

# Distinguishable for colour-blind readers (Okabe and Ito); the baselines are greys.
_GREYS = ("#303030", "#8c8c8c")
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
_INK = "#303030"


def plot_run(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Plot a run's loss, accuracy and rate over time into ``plot.png`` of its folder; returns that path."""
    records = _records(folder / "metrics.jsonl")
    steps = [record for record in records if record["kind"] == "worker"]
    start_s = min((record["time_s"] for record in steps), default=0.0)
    figure, (loss, accuracy) = _figure(1, 2, width=10.0, height=4.0)
    for rank in sorted({record["rank"] for record in steps}):
        points = [(record["time_s"] - start_s, record["loss"]) for record in steps if record["rank"] == rank]
        loss.plot(
            *zip(*points, strict=True), color=_COLOURS[rank % len(_COLOURS)], linewidth=1.0, label=f"worker {rank}"
        )
    _finish(loss, "Loss of each worker", "seconds of training", "cross-entropy")
    loss.legend(frameon=False)
    points = [(result["seconds"], 100 * result["accuracy"]) for result in summary["evaluations"]]
    if points:
        accuracy.plot(*zip(*points, strict=True), color=_COLOURS[0], marker="o")
    accuracy.axhline(10.0, color=_GREYS[1], linewidth=0.8, linestyle=":")
    accuracy.annotate("guessing", (0.02, 10.0), xycoords=("axes fraction", "data"), va="bottom", color=_GREYS[1])
    accuracy.set_ylim(bottom=0)
    accuracy.set_xlim(left=0)
    _finish(accuracy, "Accuracy on the test images", "seconds of training", "%")
    return _save(figure, folder / "plot.png")


def plot_comparison(folder: Path, comparison: Mapping[str, Any]) -> dict[str, Path]:
    """Plot a comparison into ``folder``; returns the plots' paths by their titles, in the order of the report."""
    rows = comparison["rows"]
    plots: dict[str, tuple[str, Callable[[Path, Sequence[Mapping[str, Any]]], Path]]] = {
        "Accuracy over time": ("accuracy-over-time.png", _accuracy_over("seconds", "seconds of training")),
        "Accuracy over epochs": (
            "accuracy-over-epochs.png",
            _accuracy_over("epochs", "epochs of all workers together"),
        ),
        "Throughput and speed-up": ("throughput.png", _throughput),
        "Staleness": ("staleness.png", _staleness),
    }
    if comparison["unfair_seconds"] and not comparison["rates"]:
        del plots["Accuracy over time"], plots["Throughput and speed-up"]
    return {name: draw(folder / file, rows) for name, (file, draw) in plots.items()}


def _accuracy_over(x: str, label: str) -> Callable[[Path, Sequence[Mapping[str, Any]]], Path]:
    def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
        figure, axes = _figure(1, 1, width=8.0, height=4.8)
        for row, colour in zip(rows, _colours(rows), strict=True):
            runs = [run for run in row["evaluations"] if run and run[0][x] is not None]
            if not runs:
                continue
            points = list(zip(*runs, strict=False))  # the seeds' evaluations after as many epochs, give or take a step
            xs = [fmean(result[x] for result in point) for point in points]
            scores = [[100 * result["accuracy"] for result in point] for point in points]
            style = "--" if row["baseline"] else "-"
            means = [fmean(score) for score in scores]
            axes.plot(
                xs, means, color=colour, linestyle=style, linewidth=1.5, marker="o", markersize=3, label=row["name"]
            )
            axes.fill_between(xs, list(map(min, scores)), list(map(max, scores)), color=colour, alpha=0.12, linewidth=0)
        axes.set_xlim(left=0)
        _finish(axes, f"Accuracy over {x if x == 'epochs' else 'time'}", label, "% of the test images")
        if axes.lines:
            axes.legend(frameon=False, fontsize=9)
        return _save(figure, path)

    return draw


def _throughput(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    known = [index for index, row in enumerate(rows) if row["examples_per_s"]["mean"] is not None]
    colours = [_colours(rows)[index] for index in known]
    rows = [rows[index] for index in known]
    figure, axes = _figure(1, 1, width=9.0, height=0.55 * len(rows) + 1.4)
    places = list(range(len(rows)))[::-1]
    rates = [row["examples_per_s"] for row in rows]
    axes.barh(places, [rate["mean"] for rate in rates], color=colours, height=0.66)
    for place, row, rate in zip(places, rows, rates, strict=True):
        axes.plot([rate["min"], rate["max"]], [place, place], color=_INK, linewidth=1.2)
        speedups = [
            f"{speedup(row, key)} {name}"
            for key, name in (("speedup_all_cores", "all cores"), ("speedup_one_worker", "one worker"))
            if row[key] is not None
        ]
        axes.annotate(
            f"{rate['mean']:,.0f}   {', '.join(speedups)}",
            (rate["max"], place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
        )
    axes.set_yticks(places, [row["name"] for row in rows])
    axes.set_xlim(0, 2.3 * max((rate["max"] for rate in rates), default=1.0))
    _finish(axes, "Throughput, and speed-up against both baselines (?: uncertain)", "examples per second", "")
    axes.grid(visible=False, axis="y")
    return _save(figure, path)


def _staleness(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    served = [(row, colour) for row, colour in zip(rows, _colours(rows), strict=True) if not row["baseline"]]
    figure, axes = _figure(1, max(1, len(served)), width=2.4 * max(2, len(served)), height=3.0)
    figure.suptitle("Staleness", x=0.01, ha="left", fontsize=11, color=_INK)
    largest = max((row["staleness"]["p99"] for row, _ in served), default=0)
    for panel, (row, colour) in zip(axes if len(served) > 1 else [axes], served, strict=False):
        counts = {int(value): count for value, count in row["staleness"]["counts"].items()}
        total = sum(counts.values()) or 1
        shown = range(int(largest) + 2)
        panel.bar(list(shown), [100 * counts.get(value, 0) / total for value in shown], color=colour, width=0.8)
        panel.set_ylim(0, 105)
        panel.xaxis.get_major_locator().set_params(integer=True)
        _finish(panel, row["name"], "staleness (updates)", "% of gradients" if row is served[0][0] else "")
    return _save(figure, path)


def _colours(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    greys, colours = iter(_GREYS * len(rows)), iter(_COLOURS * len(rows))
    return [next(greys) if row["baseline"] else next(colours) for row in rows]


def _figure(rows: int, columns: int, *, width: float, height: float) -> tuple[Figure, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(width, height), layout="constrained", dpi=130)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns)


def _finish(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=_INK)
    axes.set_xlabel(x, color=_INK)
    axes.set_ylabel(y, color=_INK)
    axes.grid(visible=True, color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_INK)


def _save(figure: Figure, path: Path) -> Path:
    with writing(path):
        figure.savefig(path)
    return path


def _records(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
