"""``distnet bench``: push_pull against the limits of this machine."""

from __future__ import annotations

import contextlib
import json
import shutil
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import click

from distnet._private.suggestions import suggest
from distnet.alexnet.job.summary import machine, versions
from distnet.benchmark.bounds import explain
from distnet.benchmark.measure import (
    SIZES,
    Contender,
    Size,
    loopback,
    memory_copy,
    push_pull,
    python_layer,
    sgd_in_place,
    time_in_turns,
)
from distnet.benchmark.turns import Spread, ratio
from distnet.cli.options import json_option
from distnet.errors import ConfigError
from distnet.semantics import SEMANTICS

__all__ = ["bench"]

_TRANSPORTS = ("shm", "tcp")
_USUAL_SIZES = ("small", "alexnet", "resnet50")
_BUSY_SPREAD = 0.2
_HEADINGS = ("semantics", "latency", "sustained", "a second", "GB/s")
_LIMITS = {"memcpy": "memcpy", "SGD in place": "SGD", "bare TCP exchange": "TCP"}
_READING = (
    "× memcpy, × SGD, × TCP: the sustained time over that of copying the same bytes in memory, of the same SGD step "
    "without a server, and of a bare exchange over TCP."
)


@click.command(short_help="Throughput against the limits of this machine.")
@click.option("--semantics", "names", metavar="NAME,NAME", help="Only these.  [default: all five]")
@click.option("--transport", metavar="shm|tcp", help="Only this one.  [default: both]")
@click.option("--sizes", metavar="NAME,NAME", help=f"Of {', '.join(SIZES)}.  [default: {','.join(_USUAL_SIZES)}]")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="About how long to measure in all.")
@json_option
def bench(names: str | None, transport: str | None, sizes: str | None, seconds: float, as_json: bool) -> None:
    """Measure a push_pull against what this machine can do at all, and say what bounds it.

    One worker process and one server process; a gradient in, SGD on the server, fresh parameters out. Beside it, in
    turns: copying the same bytes in memory, the same SGD step without any server, and sending the same bytes to
    another process over a bare TCP socket and back. Times are medians; latency is one call's, sustained is that of
    calls in a row; ratios are of sustained times, the median of those within each turn. Every answer is checked.
    """
    chosen = _chosen("semantics", names, tuple(SEMANTICS))
    transports = _chosen("transport", transport, _TRANSPORTS)
    chosen_sizes = [SIZES[name] for name in _chosen("size", sizes or ",".join(_USUAL_SIZES), tuple(SIZES))]
    if not 0 < seconds < 86_400:
        raise ConfigError(f"--seconds is {seconds}; expected a number above 0")
    budget_s = 0.6 * seconds / (len(chosen_sizes) * len(transports) * len(chosen))
    rows = []
    for name in transports:
        click.echo(f"measuring what a call takes at all, {name} …", err=True)
        floor = _floor(name, 0.1 * seconds / len(transports))
        for size in chosen_sizes:
            for semantics in chosen:
                click.echo(f"measuring {size.name}, {name}, {semantics} …", err=True)
                rows.append(_measure(size, name, semantics, floor, budget_s))
    rows.sort(key=lambda row: row["bytes"])
    if as_json:
        click.echo(json.dumps({"rows": rows, "machine": machine(), "versions": versions()}))
    else:
        click.echo(_table(rows))
        click.echo(_in_words(rows))


def _floor(transport: str, budget_s: float) -> dict[str, float]:
    """Return what an exchange of next to nothing takes, and Python's part of one of ten tensors."""
    with push_pull(SIZES["small"], "async-apply", transport) as small, python_layer(SIZES["alexnet"]) as layer:
        timings = time_in_turns([small, layer], budget_s=budget_s)
    return {"small_s": timings[small.name].latency_s, "python_s": timings[layer.name].latency_s}


def _measure(size: Size, transport: str, semantics: str, floor: dict[str, float], budget_s: float) -> dict[str, Any]:
    with _limits(size, transport) as limits, push_pull(size, semantics, transport) as contender:
        timings = time_in_turns([*limits, contender], budget_s=budget_s)
    own = timings[contender.name]
    limits_s = {limit.name: timings[limit.name].sustained_s for limit in limits}
    explanation = explain(
        transport,
        own.sustained_s,
        copy_s=limits_s["memcpy"],
        update_s=limits_s["SGD in place"],
        sockets_s=limits_s.get("bare TCP exchange", 0.0),
        **floor,
    )
    return {
        "size": size.name,
        "bytes": size.bytes,
        "transport": transport,
        "semantics": semantics,
        "latency_s": own.latency_s,
        "sustained_s": own.sustained_s,
        "per_s": 1 / own.sustained_s,
        "bytes_per_s": 2 * size.bytes / own.sustained_s,
        "limits_s": limits_s,
        "ratios": {name: ratio(timings, contender.name, name).median for name in limits_s},
        "shares": dict(explanation.shares),
        "bound": explanation.bound,
        "in_words": explanation.in_words,
        "copy_spread": _spread(timings["memcpy"].turns_s),
    }


def _spread(values: Sequence[float]) -> float:
    """Return how far the middle half of some values lies apart, as a share of their median."""
    spread = Spread.of(values)
    return (spread.high - spread.low) / spread.median


@contextlib.contextmanager
def _limits(size: Size, transport: str) -> Iterator[list[Contender]]:
    """The limits that matter for a transport; memory is one for both."""
    with contextlib.ExitStack() as stack:
        limits = [stack.enter_context(memory_copy(size)), stack.enter_context(sgd_in_place(size))]
        if transport == "tcp":
            limits.append(stack.enter_context(loopback(size)))
        yield limits


def _chosen(what: str, text: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(text.split(",")) if text else known
    for name in names:
        if name not in known:
            raise ConfigError(f"no {what} is named {name!r}{suggest(name, known)}")
    return names


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Return a table for each size and transport, one after another, in 80 columns."""
    tables = []
    for size, transport in dict.fromkeys((row["size"], row["transport"]) for row in rows):
        these = [row for row in rows if (row["size"], row["transport"]) == (size, transport)]
        limits = [name for name in _LIMITS if name in these[0]["ratios"]]
        lines = [(*_HEADINGS, *(f"× {_LIMITS[name]}" for name in limits)), *(_cells(row, limits) for row in these)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
        text = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
        title = f"{size} ({these[0]['bytes']:,} bytes) over {transport}"
        tables.append("\n".join([title, "─" * max(map(len, text)), *text]))
    return "\n\n".join([*tables, _wrapped(_READING)])


def _cells(row: dict[str, Any], limits: Sequence[str]) -> tuple[str, ...]:
    return (
        row["semantics"],
        _duration(row["latency_s"]),
        _duration(row["sustained_s"]),
        f"{row['per_s']:,.0f}",
        f"{row['bytes_per_s'] / 1e9:.2f}",
        *(f"{row['ratios'][name]:.2f}" for name in limits),
    )


def _in_words(rows: Sequence[dict[str, Any]]) -> str:
    """Say of every size and transport how far it is from its limit, and what bounds its fastest semantics."""
    paragraphs = []
    for size, transport in dict.fromkeys((row["size"], row["transport"]) for row in rows):
        limit = "SGD in place" if transport == "shm" else "bare TCP exchange"
        these = [row for row in rows if (row["size"], row["transport"]) == (size, transport)]
        best = min(these, key=lambda row: row["sustained_s"])
        worst = max(these, key=lambda row: row["sustained_s"])
        others = f" ({worst['semantics']}: {_duration(worst['sustained_s'])})" if worst is not best else ""
        paragraphs.append(
            f"{size} over {transport}: {_duration(best['sustained_s'])} with {best['semantics']}{others}, "
            f"{best['ratios'][limit]:.2f} times {limit}. {best['in_words']}"
        )
    if statistics.median(row["copy_spread"] for row in rows) > _BUSY_SPREAD:
        paragraphs.append(
            "This machine was busy meanwhile: the same copy in memory took very different times. Trust the ratios more "
            "than the times, and measure again when it is quiet."
        )
    return "\n" + "\n".join(map(_wrapped, paragraphs))


def _wrapped(paragraph: str) -> str:
    """Return a paragraph broken at words, in the terminal's width but at most 80 columns."""
    columns = max(40, min(80, shutil.get_terminal_size().columns))
    return textwrap.fill(paragraph, columns, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)


def _duration(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:,.0f} µs"
    return f"{seconds * 1e3:,.2f} ms" if seconds < 1 else f"{seconds:,.2f} s"
