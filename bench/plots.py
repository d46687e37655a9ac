"""Plots of a run, as small PNG files."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from many_workers import COUNTS, MORE_COUNTS, SCALING
from targets import SIZE_NAMES, Results, timings

from distnet.benchmark.turns import Spread, ratio

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["draw"]

# Distinguishable for colour-blind readers (Okabe and Ito); limits are grey.
GREY, INK = "#8c8c8c", "#303030"
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9")
OURS, THEIRS = COLOURS[0], COLOURS[1]
LIMIT_WORDS = ("in place", "bare")


def draw(results: Results, folder: Path) -> list[tuple[str, Path]]:
    """Draw every plot that the figures allow; returns names and files."""
    makers: dict[str, Callable[[Results], Figure | None]] = {
        "rivals": _rivals,
        "semantics": _semantics,
        "workers": _workers,
    }
    drawn = []
    for name, make in makers.items():
        figure = make(results)
        if figure is not None:
            file = folder / f"{name}.png"
            figure.savefig(file, metadata={"Software": None})
            drawn.append((name, file))
    return drawn


def _rivals(results: Results) -> Figure | None:
    found = {size: timings(results, f"rivals-{size}") for size in SIZE_NAMES}
    found = {size: times for size, times in found.items() if times}
    if not found:
        return None
    figure, axes = _figure(len(found), width=3.9 * len(found) + 1.5, height=4.2)
    names = list(dict.fromkeys(name for times in found.values() for name in times))[::-1]
    for panel, (size, times) in zip(axes, found.items(), strict=True):
        shown = [name for name in names if name in times]
        places = [names.index(name) for name in shown]
        milliseconds = [1e3 * times[name].sustained_s for name in shown]
        panel.barh(places, milliseconds, color=[_colour(name) for name in shown], height=0.7)
        for place, value in zip(places, milliseconds, strict=True):
            panel.annotate(f" {value:.3g}", (value, place), va="center", fontsize=8)
        panel.set_xscale("log")
        panel.set_xlim(min(milliseconds) / 2, max(milliseconds) * 6)
        panel.set_yticks(range(len(names)), names if panel is axes[0] else [""] * len(names))
        _finish(panel, SIZE_NAMES[size], "milliseconds (log)", "")
        panel.grid(visible=False, axis="y")
    return figure


def _semantics(results: Results) -> Figure | None:
    limits = {"shm": "SGD in place", "tcp": "bare TCP exchange"}
    panels: list[tuple[str, str, dict[str, Spread]]] = []
    for transport, limit in limits.items():
        for size in ("alexnet", "resnet50"):
            found = timings(results, f"{transport}-{size}")
            ratios = {
                name: ratio(found, name, limit)
                for name in found
                if limit in found and not any(word in name for word in (*LIMIT_WORDS, "memcpy"))
            }
            if ratios:
                panels.append((f"{SIZE_NAMES[size]}, {transport}", limit, ratios))
    if not panels:
        return None
    figure, axes = _figure(len(panels), width=3.6 * len(panels), height=3.2)
    for panel, (title, limit, ratios) in zip(axes, panels, strict=True):
        places = list(range(len(ratios)))[::-1]
        for place, spread in zip(places, ratios.values(), strict=True):
            panel.barh(place, spread.median, color=OURS, height=0.66)
            panel.plot([spread.low, spread.high], [place, place], color=INK, linewidth=1.2)
            panel.annotate(f"  {spread.median:.2f}", (spread.high, place), va="center", fontsize=8)
        panel.axvline(1.0, color=GREY, linewidth=1.0, linestyle="--")
        panel.set_yticks(places, list(ratios))
        panel.tick_params(axis="y", labelsize=8)
        panel.set_xlim(0, 1.25 * max(spread.high for spread in ratios.values()))
        _finish(panel, title, f"times {limit}", "")
        panel.grid(visible=False, axis="y")
    return figure


def _workers(results: Results) -> Figure | None:
    found = results.get("parts", {}).get("workers", {})
    counts = (*COUNTS, *MORE_COUNTS)
    if not any(f"{semantics} {transport} {count}" in found for semantics, transport in SCALING for count in counts):
        return None
    figure, (rates, shares) = _figure(2, width=9.0, height=3.4)
    for (semantics, transport), colour in zip(SCALING, COLOURS, strict=False):
        rows = {count: found.get(f"{semantics} {transport} {count}") for count in counts}
        xs = [count for count, row in rows.items() if row]
        for panel, key in ((rates, "per_s"), (shares, "slowest_share")):
            ys = [statistics.median(row[key]) for row in rows.values() if row]
            panel.plot(xs, ys, color=colour, marker="o", markersize=4, label=f"{semantics} {transport}")
    for panel, title, y in (
        (rates, "Exchanges of all workers", "a second"),
        (shares, "The slowest worker", "share of the mean"),
    ):
        panel.set_xscale("log", base=2)
        panel.set_xticks(list(counts), list(map(str, counts)))
        panel.set_ylim(bottom=0)
        _finish(panel, title, "workers", y)
    rates.legend(frameon=False, fontsize=8)
    return figure


def _colour(name: str) -> str:
    if any(word in name for word in LIMIT_WORDS):
        return GREY
    return OURS if name.startswith("async-") else THEIRS


def _figure(columns: int, *, width: float, height: float) -> tuple[Figure, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(figsize=(width, height), layout="constrained", dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, columns, squeeze=False)
    return figure, list(axes[0])


def _finish(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(x, color=INK, fontsize=9)
    axes.set_ylabel(y, color=INK, fontsize=9)
    axes.grid(visible=True, color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=INK)
