"""A run's summary as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distnet._private.quantities import show_bytes, show_seconds

__all__ = ["run_summary"]


def run_summary(summary: Mapping[str, Any], out: Path, plot: Path | None = None) -> str:
    """Return a finished run in a few lines: what it reached, how fast, with what traffic, and where everything lies."""
    config, staleness = summary["config"], summary["staleness"]
    who = f"{config['workers']} workers, {config['semantics']}" if summary["server"] else "one process, no server"
    threads = f"{summary['threads_per_worker']} thread{'s' if summary['threads_per_worker'] > 1 else ''} each"
    accuracy = "not evaluated" if summary["accuracy"] is None else f"{summary['accuracy']:.2%} of the test images"
    rows = [
        ("run", f"{who}, {threads}, {summary['data']['name']}"),
        ("accuracy", accuracy),
        ("speed", f"{summary['examples_per_s']:,.0f} examples/s; {show_seconds(summary['seconds'])} of training"),
        ("work", f"{summary['examples']:,} examples ({summary['epochs']:.2f} epochs), {summary['updates']:,} updates"),
    ]
    if summary["server"]:
        rows.append(("staleness", f"mean {staleness['mean']:.2f}, p99 {staleness['p99']}, at most {staleness['max']}"))
        received, sent = show_bytes(summary["bytes_received"]), show_bytes(summary["bytes_sent"])
        rows.append(("traffic", f"{received} of gradients in, {sent} of parameters out, over {summary['transport']}"))
    rows.append(("folder", str(out)))
    if plot is not None:
        rows.append(("plot", str(plot)))
    return "\n".join(f"{name:>10}  {value}" for name, value in rows)
