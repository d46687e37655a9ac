"""The live display of a job: a table in a terminal, a plain line now and then elsewhere. Written to standard error."""

from __future__ import annotations

import sys
import time
from typing import IO, TYPE_CHECKING, Protocol

from distnet._private.quantities import show_seconds
from distnet.alexnet.job.progress import JobProgress

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Display", "PlainDisplay", "QuietDisplay", "TerminalDisplay", "make_display"]


class Display(Protocol):
    """Where a job shows how it goes."""

    def update(self, job: JobProgress) -> None:
        """Show the job as it is now; called several times a second."""

    def note(self, text: str) -> None:
        """Show a line that stays."""

    def close(self) -> None:
        """Leave the terminal as it was."""


class QuietDisplay:
    """Shows nothing."""

    def update(self, job: JobProgress) -> None:
        """Show nothing."""

    def note(self, text: str) -> None:
        """Show nothing."""

    def close(self) -> None:
        """Do nothing."""


class PlainDisplay:
    """A line every ``every_s`` seconds, for logs and pipes."""

    def __init__(self, stream: IO[str], every_s: float = 10.0) -> None:
        self._stream = stream
        self._every_s = every_s
        self._next_s = 0.0

    def update(self, job: JobProgress) -> None:
        """Write a line, if it is time for one."""
        now_s = time.monotonic()
        trains = any(worker.history for worker in job.workers)  # examples alone may be those before a resume
        if now_s >= self._next_s and trains and job.examples < job.total_examples:
            self._next_s = now_s + self._every_s
            self.note(_one_line(job))

    def note(self, text: str) -> None:
        """Write the line."""
        self._stream.write(text + "\n")
        self._stream.flush()

    def close(self) -> None:
        """Do nothing."""


class TerminalDisplay:
    """A table that is drawn again and again in its place."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console(stderr=True, highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._drawn_s = 0.0
        self._live.start()

    def update(self, job: JobProgress) -> None:
        """Draw the table, at most five times a second."""
        now_s = time.monotonic()
        if now_s - self._drawn_s >= 0.2:
            self._drawn_s = now_s
            self._live.update(_table(job), refresh=True)

    def note(self, text: str) -> None:
        """Write a line above the table."""
        from rich.text import Text

        self._console.print(Text(text))  # no markup: text may hold brackets

    def close(self) -> None:
        """Remove the table."""
        self._live.stop()


def make_display(*, quiet: bool = False) -> Display:
    """Return the display that suits standard error."""
    if quiet:
        return QuietDisplay()
    if not sys.stderr.isatty():
        return PlainDisplay(sys.stderr)
    try:
        return TerminalDisplay()
    except ImportError:
        return PlainDisplay(sys.stderr, every_s=2.0)


def _number(value: int | None) -> str:
    return "–" if value is None else str(value)


def _one_line(job: JobProgress) -> str:
    done = job.examples / job.total_examples
    losses = [worker.loss for worker in job.workers if worker.loss is not None]
    parts = [f"{done:6.1%}", f"{job.rate:,.0f} examples/s"]
    if losses:
        parts.append(f"loss {sum(losses) / len(losses):.3f}")
    if job.server:
        parts.append(f"{job.updates_per_s:.1f} updates/s, queue {job.server['queue_depth']}")
        parts.append(f"staleness {'/'.join(_number(worker.last_staleness) for worker in job.workers)}")
    if job.accuracies:
        parts.append(f"accuracy {job.accuracies[-1][1]:.1%}")
    parts.append(f"{show_seconds(job.left_s)} left")
    return " · ".join(parts)


def _table(job: JobProgress) -> Table:
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    outer = Table.grid(padding=(0, 1))
    outer.add_row(Text.assemble((job.title, "bold"), f" · {job.phase}"))
    workers = Table(box=None, pad_edge=False, header_style="dim")
    for heading in ("worker", "state", "step", "examples/s", "loss", "staleness", "exchange"):
        workers.add_column(heading, justify="left" if heading in ("worker", "state") else "right")
    for worker in job.workers:
        busy_s = worker.computing_s + worker.exchanging_s
        workers.add_row(
            str(worker.rank),
            worker.state,
            f"{worker.step:,}",
            f"{worker.rate:,.0f}" if worker.state == "training" else "–",
            "–" if worker.loss is None else f"{worker.loss:.3f}",
            _number(worker.last_staleness),
            f"{worker.exchanging_s / busy_s:.1%}" if busy_s else "–",
        )
    outer.add_row(workers)
    if job.server:
        outer.add_row(
            f"server: {job.server['updates']:,} updates, {job.updates_per_s:.1f}/s, queue {job.server['queue_depth']}"
        )
    if job.accuracies:
        outer.add_row(f"accuracy: {job.accuracies[-1][1]:.2%}")
    outer.add_row(ProgressBar(total=job.total_examples, completed=job.examples, width=60))
    spent = show_seconds(time.monotonic() - job.started_s)
    done, left = job.examples / job.total_examples, show_seconds(job.left_s)
    outer.add_row(f"{done:.1%} · {job.rate:,.0f} examples/s · {spent} · {left} left")
    return outer
