"""A run's summary as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distnet.launch.display import show_seconds

__all__ = ["memory_line", "run_summary", "show_bytes"]


def memory_line(bound: dict[str, int]) -> str:
    """Say in a line what bounds a server's memory, as its ``memory()`` returns it."""
    mib = {name.replace("_", " "): f"{size / 2**20:,.0f}" for name, size in bound.items()}
    total = mib.pop("total")
    return f"server memory: at most {total} MiB ({', '.join(f'{name} {size}' for name, size in mib.items())})"


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


def show_bytes(count: float) -> str:
    """Write a number of bytes as people read it: 4.3 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
