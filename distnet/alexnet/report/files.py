"""A comparison's files: its data, its table, its plots, and one page with everything in it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distnet.alexnet.job.folder import writing
from distnet.alexnet.report.html import html_report
from distnet.alexnet.report.plots import plot_comparison
from distnet.alexnet.report.table import markdown_table

__all__ = ["write_comparison"]


def write_comparison(folder: Path, comparison: Mapping[str, Any]) -> None:
    """Write ``compare.json``, ``compare.md``, the plots and ``report.html`` into a folder.

    Raises:
        FolderError: it cannot be written.
    """
    with writing(folder):
        (folder / "compare.json").write_text(json.dumps(comparison, indent=2) + "\n", encoding="utf-8")
        (folder / "compare.md").write_text(markdown_table(comparison), encoding="utf-8")
        report = html_report(comparison, plot_comparison(folder, comparison))
        (folder / "report.html").write_text(report, encoding="utf-8")
