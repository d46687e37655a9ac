"""The comparison as one HTML page that refers to nothing outside itself."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distnet.alexnet.report import reaching
from distnet.alexnet.report.table import HEADINGS, LEGEND, ONE_SEED, cells, measured_on, title, uncertain

__all__ = ["html_report"]

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.55 system-ui, sans-serif; color: #222; background: #fff; }
body { max-width: 68rem; margin: 2.5rem auto; padding: 0 1.25rem; box-sizing: border-box; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin-bottom: .4rem; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .6rem; }
p.lead { color: #555; margin-top: 0; }
.scroll { max-width: 100%; overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .38rem .7rem; text-align: right; border-bottom: 1px solid #e4e4e4; }
th { color: #555; font-weight: 600; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; }
tr.baseline td { background: #f6f6f6; }
table.words td { text-align: left; white-space: normal; vertical-align: top; }
figure { margin: 2.4rem 0 0; }
img { max-width: 100%; height: auto; display: block; }
@media (max-width: 60rem) { table { font-size: .74rem; } th, td { padding: .36rem .26rem; } }
@media (max-width: 40rem) { body { margin: 1rem auto; padding: 0 .75rem; } h1 { font-size: 1.3rem; } }
footer { margin-top: 3rem; color: #666; font-size: .85rem; }
"""

# What an answer means, for readers of the report.
_MEANINGS = {
    "sync": "One update joins a gradient of every worker; the answer follows it. All workers see the same bytes.",
    "async-apply": "Every gradient is an update of its own; the answer holds it.",
    "async-locked": "The answer leaves before the gradient is applied, and is one whole version.",
    "async-lockfree": "The same without locks: an answer may mix versions, but no update is lost.",
    "async-sharded": "The same over several servers, each with a part of the parameters.",
    "local": "One process that trains by itself, with its own optimizer and no server.",
}


def html_report(comparison: Mapping[str, Any], plots: Mapping[str, Path]) -> str:
    """Return the report; the plots' files are inlined."""
    heading = html.escape(title(comparison))
    rows = comparison["rows"]
    body = [
        f"<h1>{heading}</h1>",
        f'<p class="lead">{html.escape(_lead(comparison))}</p>',
        "<h2>Results</h2>",
        _table(HEADINGS, cells(comparison), ["baseline" if row["baseline"] else "" for row in rows]),
        f"<p>{html.escape(_how_to_read(comparison))}</p>",
        *_uncertain(comparison),
        *_time_to_accuracy(comparison["time_to_accuracy"]),
        *(_plot(name, path) for name, path in plots.items()),
        "<h2>What each one does</h2>",
        _words(rows),
        f"<footer>Measured on: {html.escape(measured_on(comparison))}.</footer>",
    ]
    content = "\n".join(body)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{heading}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n{content}\n</body>\n</html>\n"
    )


def _lead(comparison: Mapping[str, Any]) -> str:
    if comparison["unfair_seconds"]:
        return str(comparison["unfair_seconds"])
    served = [row for row in comparison["rows"] if not row["baseline"] and row["examples_per_s"]["mean"] is not None]
    if not served:
        return "The baselines alone; no semantics has finished yet."
    fastest = [row for row in served if row["name"] in comparison["fastest"]]
    if not fastest:
        return ONE_SEED if comparison["seeds"] < 2 else "No way was the fastest beyond doubt; see what is uncertain."
    rates = [row["examples_per_s"]["mean"] for row in fastest]
    if len(fastest) > 1:
        names = ", ".join(row["name"] for row in fastest[:-1]) + f" and {fastest[-1]['name']}"
        return (
            f"{names} were the fastest, at {min(rates):,.0f} to {max(rates):,.0f} examples per second; "
            f"{comparison['seeds']} seeds cannot tell them apart."
        )
    return f"{fastest[0]['name']} was the fastest: {rates[0]:,.0f} examples per second{_claims(fastest[0])}."


def _claims(row: Mapping[str, Any]) -> str:
    """Return the speed-ups of a row that can be claimed."""
    claims = [
        f"{row[key]:.2f} ({row[f'{key}_interval'][0]:.2f} to {row[f'{key}_interval'][1]:.2f}) times {base}"
        for key, base in (
            ("speedup_one_worker", "one worker with the same cores each"),
            ("speedup_all_cores", "one process with all cores"),
        )
        if row[key] is not None and row[f"{key}_interval"] is not None and not row[f"{key}_doubts"]
    ]
    return f" with {row['workers']} workers, {' and '.join(claims)}" if claims else ""


def _how_to_read(comparison: Mapping[str, Any]) -> str:
    return (
        f"{LEGEND} Every run trained on the same {comparison['examples']:,} examples; examples per second are counted "
        "while all workers train. A gradient's staleness is how many updates came between the parameters it was "
        "computed from and its own update."
    )


def _uncertain(comparison: Mapping[str, Any]) -> list[str]:
    doubts = [doubt for doubt in uncertain(comparison) if doubt != ONE_SEED]  # which the lead says
    if not doubts:
        return []
    lines = "".join(f"<li>{html.escape(doubt)}</li>" for doubt in doubts)
    return ["<h2>Uncertain</h2>", f"<ul>{lines}</ul>"]


def _time_to_accuracy(found: Mapping[str, Any]) -> list[str]:
    if not found["marks"]:
        return []
    kinds = ["baseline" if row["baseline"] else "" for row in found["rows"]]
    return [
        "<h2>Time to accuracy</h2>",
        _table(reaching.headings(found), reaching.cells(found), kinds),
        f"<p>{html.escape(reaching.LEGEND)}</p>",
    ]


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str]) -> str:
    head = "".join(f"<th>{html.escape(text)}</th>" for text in headings)
    lines = [
        f'<tr class="{kind}">' + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>"
        for row, kind in zip(rows, classes, strict=True)
    ]
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>\n'
        + "\n".join(lines)
        + "\n</tbody></table></div>"
    )


def _plot(name: str, path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    label = html.escape(name)
    return f'<figure><img alt="{label}" src="data:image/png;base64,{data}"></figure>'  # it has its title in it


def _words(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        meaning = _MEANINGS.get(row["semantics"], "")
        lines.append(
            f"<tr><td><strong>{html.escape(row['name'])}</strong></td><td>{html.escape(meaning)} "
            f"Learning rate: {html.escape(row['rate_rule'])}.</td></tr>"
        )
    return '<div class="scroll"><table class="words"><tbody>\n' + "\n".join(lines) + "\n</tbody></table></div>"
