"""Tables and plots of a run, written into ``docs/results/benchmarks.md`` between two markers.

python bench/report.py    # again, from the figures of the last run
"""

from __future__ import annotations

import json
import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import collectives
import doors
import plots
import targets
from many_workers import COUNTS, MORE_COUNTS, SETTINGS
from targets import SIZE_NAMES, Results, timings

from distnet.benchmark.turns import Timing, difference, ratio

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "results" / "benchmarks.md"
RESULTS = ROOT / "docs" / "results" / "bench" / "results.json"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
LIMITS = ("memcpy", "SGD in place", "SGD in place, two cores", "bare TCP exchange", "bare Unix exchange")
EDGE_NAMES = {"medium": "64 KiB", "bert": "BERT-base"}


def read(path: Path = RESULTS) -> dict[str, Any]:
    """Return the figures of a run."""
    results: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return results


def write(results: Results, path: Path = RESULTS, page: Path = PAGE) -> None:
    """Keep the figures, draw the plots beside them, and rewrite this run's part of the page."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_compact(results), encoding="utf-8")
    drawn = plots.draw(results, path.parent)
    links = {name: Path(os.path.relpath(file, page.parent)).as_posix() for name, file in drawn}
    before = page.read_text(encoding="utf-8") if page.exists() else "# Benchmarks\n"
    page.write_text(replaced(before, markdown(results, links)), encoding="utf-8")


def replaced(page: str, part: str) -> str:
    """Return the page with what stands between the markers replaced, or added at its end."""
    marked = f"{BEGIN}\n{part.strip()}\n{END}"
    if BEGIN not in page:
        return f"{page.rstrip()}\n\n{marked}\n"
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{BEGIN} without {END}: which part of the page may be rewritten is not known")
    return f"{before}{marked}{after}"


def targets_in_words(results: Results) -> str:
    """Return the targets as plain text in columns, for the terminal."""
    rows = targets.rows(results)
    lines = [(row.what, row.reach_text, row.measured_text, row.verdict) for row in rows if row.measured is not None]
    widths = [max((len(line[column]) for line in lines), default=0) for column in range(4)]
    text = ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    reached = sum(row.verdict == "reached" for row in rows)
    return "\n".join([*text, f"{reached} of {len(rows)} targets reached, {len(rows) - len(lines)} not measured."])


def markdown(results: Results, links: Mapping[str, str]) -> str:
    """Return this run's part of the page."""
    sections = (
        ("Targets", _targets, "targets"),
        ("Rivals in the same run", _rivals, "rivals"),
        ("Limits of the machine", _limits, ""),
        ("Semantics, transports and sizes", _semantics, "semantics"),
        ("Other sizes", _edges, ""),
        ("Push and pull alone", _halves, ""),
        ("One server and two", _servers, ""),
        ("Many workers", _workers, "workers"),
        ("Collectives beside gloo", _collectives, ""),
        ("Doors into frameworks", _doors, ""),
        ("Optimizers", _optimizers, ""),
        ("Wire formats", _formats, ""),
        ("Fast paths, each switched off", _paths, ""),
        ("After a pause, and Python's share", _small, ""),
        ("Failed", _failed, ""),
    )
    text = ["## An exchange against the machine's limits and its rivals", "", *_about(results)]
    for title, make, plot in sections:
        lines = "\n".join(make(results)).rstrip().splitlines()
        if lines:
            text += ["", f"### {title}", "", *lines]
            if plot in links:
                text += ["", f"![{title}]({links[plot]})"]
    return "\n".join(text)


def _about(results: Results) -> Iterator[str]:
    about = results["about"]
    machine, versions = about["machine"], about["versions"]
    minutes = f"{about['seconds'] / 60:.0f} minutes"
    yield "    make bench"
    yield ""
    yield (
        f"Measured on {about['date']}: {machine['processor']}, {machine['cores']} cores, "
        f"{machine['memory_bytes'] / 2**30:.0f} GiB, {machine['system']}; "
        + ", ".join(f"{name} {version}" for name, version in versions.items())
        + f". The run took {minutes}."
    )
    if about.get("only"):
        yield f"Only these parts were measured then, the others before: {about['only']}."
    if about.get("share", 1.0) < 1.0:
        yield f"**A trial with {about['share']:.0%} of the usual time: these figures show that all works, no more.**"
    yield ""
    yield (
        "One worker process and one server process; a gradient goes in, SGD steps on the server, fresh parameters come "
        "back, float32. Contenders run in turns, in a shuffled order, several calls each; times are medians of a "
        "call's share of several in a row; ratios are medians of the ratios within each turn, with the middle half in "
        "brackets. "
        "Every answer was checked. Rivals run with the best settings that were found, each described in its file of "
        "`bench/rivals/`; TCP without pacing (`reno`)."
    )


def _targets(results: Results) -> Iterator[str]:
    rows = [(row.what, row.reach_text, row.measured_text, row.verdict) for row in targets.rows(results)]
    yield from _table(("", "reach", "measured", ""), rows, text_columns=1)


def _rivals(results: Results) -> Iterator[str]:
    found = {size: timings(results, f"rivals-{size}") for size in SIZE_NAMES}
    names = list(dict.fromkeys(name for size in found.values() for name in size))
    if not names:
        return
    rows = [
        [name, *(cell for size in SIZE_NAMES for cell in _time_and_ratio(found[size], name, "async-apply shm"))]
        for name in names
    ]
    headings = ["", *(cell for name in SIZE_NAMES.values() for cell in (name, "/ ours"))]
    yield from _table(headings, rows, text_columns=1)
    yield ""
    yield "Ours is `async-apply shm`: apply, then reply, over shared memory. Limits and our other rows stand beside it."
    missing = {
        f"{name} ({why})"
        for size in SIZE_NAMES
        for name, why in results["parts"].get(f"rivals-{size}", {}).get("missing", {}).items()
    }
    if missing:
        yield f"Left out: {', '.join(sorted(missing))}."


def _limits(results: Results) -> Iterator[str]:
    rows = []
    for name in LIMITS:
        found = [{**timings(results, f"tcp-{size}"), **timings(results, f"shm-{size}")} for size in SIZE_NAMES]
        rows.append([name, *(show(timings_[name].sustained_s) if name in timings_ else "–" for timings_ in found)])
    if any(cell != "–" for row in rows for cell in row[1:]):
        yield from _table(["", *SIZE_NAMES.values()], rows, text_columns=1)


def _semantics(results: Results) -> Iterator[str]:
    for transport, words, limit in (
        ("shm", "Shared memory", "SGD in place"),
        ("tcp", "TCP", "bare TCP exchange"),
    ):
        found = {size: timings(results, f"{transport}-{size}") for size in SIZE_NAMES}
        names = list(dict.fromkeys(name for size in found.values() for name in size if name not in LIMITS))
        if not names:
            continue
        rows = [
            [name, *(cell for size in SIZE_NAMES for cell in _time_and_ratio(found[size], name, limit))]
            for name in names
        ]
        yield from _table(
            [words, *(cell for name in SIZE_NAMES.values() for cell in (name, f"/ {limit}"))], rows, text_columns=1
        )
        yield ""


def _edges(results: Results) -> Iterator[str]:
    yield from _group_tables(results, {f"edge-{size}": name for size, name in EDGE_NAMES.items()}, "bare TCP exchange")


def _halves(results: Results) -> Iterator[str]:
    yield from _group_tables(results, {"halves-alexnet": "AlexNet"}, "memcpy")


def _servers(results: Results) -> Iterator[str]:
    yield from _group_tables(results, {"servers-alexnet": "AlexNet"}, "SGD in place")


def _formats(results: Results) -> Iterator[str]:
    yield from _group_tables(results, {"formats-alexnet": "AlexNet"}, "bare TCP exchange")


def _paths(results: Results) -> Iterator[str]:
    rows = []
    for size, words in SIZE_NAMES.items():
        found = timings(results, f"paths-{size}")
        for name in found:
            whole, _, without = name.partition(", without ")
            if without:
                time_text, ratio_text = _time_and_ratio(found, name, whole)
                rows.append([f"{without}, {words}, {whole}", show(found[whole].sustained_s), time_text, ratio_text])
    if rows:
        yield from _table(("", "with it", "without", "without / with"), rows, text_columns=1)


def _small(results: Results) -> Iterator[str]:
    parts = {"pauses-small": "4 KiB, each call after a pause of a millisecond", "python-small": "4 KiB"}
    yield from _group_tables(results, parts, "")
    if timings(results, "python-small"):
        yield (
            "Python layer: `push_pull` with its native half replaced by one that does nothing. What the bindings take "
            "for ten arrays is in the difference between ten tensors and one."
        )


def _group_tables(results: Results, parts: Mapping[str, str], other: str) -> Iterator[str]:
    for part, words in parts.items():
        found = timings(results, part)
        if not found:
            continue
        if other:
            rows = [[name, *_time_and_ratio(found, name, other)] for name in found]
            yield from _table((words, "time", f"/ {other}"), rows, text_columns=1)
        else:
            rows = [[name, show(timing.latency_s)] for name, timing in found.items()]
            yield from _table((words, "latency"), rows, text_columns=1)
        yield ""


def _workers(results: Results) -> Iterator[str]:
    found = results["parts"].get("workers", {})
    counts = (*COUNTS, *MORE_COUNTS)
    rows = []
    for semantics, transport in dict.fromkeys((setting.semantics, setting.transport) for setting in SETTINGS):
        cells = []
        for count in counts:
            row = found.get(f"{semantics} {transport} {count}")
            share = f" ({statistics.median(row['slowest_share']):.2f})" if row and count > 1 else ""
            cells.append(f"{statistics.median(row['per_s']):,.0f}{share}" if row else "–")
        rows.append([f"{semantics} {transport}", *cells])
    if any(cell != "–" for row in rows for cell in row[1:]):
        yield from _table(["exchanges a second, by workers", *map(str, counts)], rows, text_columns=1)
        yield ""
        yield "AlexNet's size, all workers together; in brackets the slowest worker's share of the mean."


def _collectives(results: Results) -> Iterator[str]:
    for ranks in collectives.RANKS:
        rows = []
        for size, floats in collectives.FLOATS.items():
            found = timings(results, f"collectives-{collectives.part_name(ranks, size)}")
            for operation in collectives.OPERATIONS if found else ():
                names = {way: f"{operation} {way}" for way in collectives.WAYS}
                ours = (*collectives.OURS, "torch")
                cells = [cell for way in ours for cell in _time_and_ratio(found, names[way], names["gloo"])]
                gloo = found.get(names["gloo"])
                rows.append([f"{operation}, {floats:,} floats", *cells, show(gloo.sustained_s) if gloo else "–"])
        if rows:
            ways = [heading for way in ("shared memory", "TCP", "through PyTorch") for heading in (way, "/ gloo")]
            headings = (f"{ranks} ranks", *ways, "gloo")
            yield from _table(headings, rows, text_columns=1)
            yield ""


def _doors(results: Results) -> Iterator[str]:
    columns = (doors.WITH, doors.WITHOUT, doors.OWN, doors.BARE, doors.BY_HAND)
    rows = []
    for door in doors.DOORS:
        found = timings(results, f"doors-{door.name}")
        spread = doors.cost(found)
        if spread is not None:
            times = [show(found[name].sustained_s) if name in found else "–" for name in columns]
            over = doors.cost_over_hand(found)
            costs = [
                f"{show(each.median)} ({show(each.low)}–{show(each.high)})" if each else "–" for each in (spread, over)
            ]
            rows.append([door.words, *times, *costs])
    if rows:
        yield from _table(("a step", *columns, "cost", "over by hand"), rows, text_columns=1)
        yield ""
        yield (
            "One worker, whose model only hands out ten ready gradients of AlexNet's size. Without: an optimizer that "
            "does nothing. By hand: the same, and a bare exchange after each step, which leaves the framework's own "
            "code and data out of the processor's caches. The cost is a step with DistNet less one without and less a "
            "bare exchange."
        )


def _optimizers(results: Results) -> Iterator[str]:
    rows = []
    for size in ("alexnet", "resnet50"):
        found = timings(results, f"optimizers-{size}")
        for name in ("SGD", "momentum", "Adam") if found else ():
            served = f"async-apply shm, {name}"
            in_place = f"{name} in place"
            more, kernels = (
                difference(found, served, "async-apply shm, SGD"),
                difference(found, in_place, "SGD in place"),
            )
            rows.append(
                [
                    f"{name}, {SIZE_NAMES[size]}",
                    show(found[in_place].sustained_s),
                    show(found[served].sustained_s),
                    *(
                        ["–", "–", "–"]
                        if name == "SGD"
                        else [show(kernels.median), show(more.median), f"{more.median / kernels.median:.2f}"]
                    ),
                ]
            )
    if rows:
        headings = ("", "in place", "push_pull", "in place − SGD", "push_pull − SGD", "ratio of these")
        yield from _table(headings, rows, text_columns=1)


def _failed(results: Results) -> Iterator[str]:
    for name, part in results["parts"].items():
        if "failed" in part:
            yield f"- {name}: {part['failed']}"


def _time_and_ratio(found: Mapping[str, Timing], name: str, other: str) -> tuple[str, str]:
    if name not in found:
        return "–", "–"
    if other not in found:
        return show(found[name].sustained_s), "–"
    spread = ratio(found, name, other)
    digits = 2 if spread.median < 10 else 1 if spread.median < 100 else 0
    middle = "" if name == other else f" ({spread.low:.{digits}f}–{spread.high:.{digits}f})"
    return show(found[name].sustained_s), f"{spread.median:.{digits}f}{middle}"


def show(seconds: float) -> str:
    """Write a time in the unit that suits it, with three digits."""
    if abs(seconds) < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    return f"{seconds * 1e3:.3g} ms" if abs(seconds) < 1 else f"{seconds:.3g} s"


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int) -> Iterator[str]:
    yield "| " + " | ".join(headings) + " |"
    yield "|" + "---|" * text_columns + "--:|" * (len(headings) - text_columns)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def _compact(results: Results) -> str:
    """Write JSON with a line for every innermost list or object, so that versions of the file can be compared."""
    lines = ["{", f'"about": {json.dumps(results["about"])},', '"parts": {']
    parts = []
    for name, part in results["parts"].items():
        inner = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in part.items())
        parts.append(f"{json.dumps(name)}: {{\n{inner}\n}}")
    return "\n".join([*lines, ",\n".join(parts), "}}"]) + "\n"


if __name__ == "__main__":
    write(read())
    sys.exit(0)
