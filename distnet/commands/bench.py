"""``distnet bench``: push_pull against the limits of this machine."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import click

from distnet.commands.options import json_option
from distnet.errors import ConfigError
from distnet.launch.config import suggest
from distnet.launch.measure import (
    SIZES,
    Contender,
    Size,
    loopback,
    memory_copy,
    push_pull,
    sgd_in_place,
    time_in_turns,
)
from distnet.launch.summary import machine, versions
from distnet.semantics import SEMANTICS

__all__ = ["bench"]

_TRANSPORTS = ("shm", "tcp")
_USUAL_SIZES = ("small", "alexnet", "resnet50")


@click.command(short_help="Throughput against the limits of this machine.")
@click.option("--semantics", "names", metavar="NAME,NAME", help="Only these.  [default: all five]")
@click.option("--transport", metavar="shm|tcp", help="Only this one.  [default: both]")
@click.option("--sizes", metavar="NAME,NAME", help=f"Of {', '.join(SIZES)}.  [default: {','.join(_USUAL_SIZES)}]")
@click.option("--seconds", type=float, default=60.0, show_default=True, help="About how long to measure in all.")
@json_option
def bench(names: str | None, transport: str | None, sizes: str | None, seconds: float, as_json: bool) -> None:
    """Measure a push_pull against what this machine can do at all.

    One worker process and one server process; a gradient in, SGD on the server, fresh parameters out. Beside it, in
    turns: copying the same bytes in memory, the same SGD step without any server, and sending the same bytes to
    another process over a bare TCP socket and back. Times are medians; latency is one call's, sustained is that of
    calls in a row, and what the ratios are of. Every answer is checked.
    """
    chosen = _chosen("semantics", names, tuple(SEMANTICS))
    transports = _chosen("transport", transport, _TRANSPORTS)
    chosen_sizes = [SIZES[name] for name in _chosen("size", sizes or ",".join(_USUAL_SIZES), tuple(SIZES))]
    if not 0 < seconds < 86_400:
        raise ConfigError(f"--seconds is {seconds}; expected a number above 0")
    budget_s = 0.7 * seconds / (len(chosen_sizes) * len(transports) * len(chosen))
    rows = []
    for size in chosen_sizes:
        for name in transports:
            for semantics in chosen:
                click.echo(f"measuring {size.name}, {name}, {semantics} …", err=True)
                rows.append(_measure(size, name, semantics, budget_s))
    if as_json:
        click.echo(json.dumps({"rows": rows, "machine": machine(), "versions": versions()}))
    else:
        click.echo(_table(rows))
        click.echo(_in_words(rows))


def _measure(size: Size, transport: str, semantics: str, budget_s: float) -> dict[str, Any]:
    with _limits(size, transport) as limits, push_pull(size, semantics, transport) as contender:
        medians = time_in_turns([*limits, contender], budget_s=budget_s)
    own = medians.pop(contender.name)
    return {
        "size": size.name,
        "bytes": size.bytes,
        "transport": transport,
        "semantics": semantics,
        "latency_s": own.latency_s,
        "sustained_s": own.sustained_s,
        "per_s": 1 / own.sustained_s,
        "bytes_per_s": 2 * size.bytes / own.sustained_s,
        "limits_s": {name: limit.sustained_s for name, limit in medians.items()},
        "ratios": {name: own.sustained_s / limit.sustained_s for name, limit in medians.items()},
    }


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
    headings = (
        "size",
        "transport",
        "semantics",
        "latency",
        "sustained",
        "a second",
        "GB/s",
        "× memcpy",
        "× SGD in place",
        "× loopback",
    )
    lines = [headings, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    text = [
        "  ".join(cell.ljust(width) if column < 3 else cell.rjust(width) for column, (cell, width) in places).rstrip()
        for places in (list(enumerate(zip(line, widths, strict=True))) for line in lines)
    ]
    return "\n".join([text[0], "─" * max(map(len, text)), *text[1:]])


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    ratios = row["ratios"]
    limits = ("memcpy", "SGD in place", "bare TCP exchange")
    return (
        row["size"],
        row["transport"],
        row["semantics"],
        _milliseconds(row["latency_s"]),
        _milliseconds(row["sustained_s"]),
        f"{row['per_s']:,.0f}",
        f"{row['bytes_per_s'] / 1e9:.2f}",
        *(f"{ratios[name]:.2f}" if name in ratios else "–" for name in limits),
    )


def _in_words(rows: Sequence[dict[str, Any]]) -> str:
    sentences = []
    for transport, limit in (("shm", "SGD in place"), ("tcp", "bare TCP exchange")):
        for size in dict.fromkeys(row["size"] for row in rows):
            ratios = [
                (row["ratios"][limit], row["semantics"])
                for row in rows
                if row["size"] == size and row["transport"] == transport
            ]
            if ratios:
                (low, best), (high, worst) = min(ratios), max(ratios)
                span = f"{low:.2f} ({best}) to {high:.2f} ({worst})"
                sentences.append(f"{size} over {transport}: {span} times {limit}.")
    return "\n" + "\n".join(sentences)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} µs" if seconds < 1e-3 else f"{seconds * 1e3:,.2f} ms"
