"""What a training's processes say and its servers count: taken into the progress, the run's folder and the display."""

from __future__ import annotations

from typing import Any

from distnet.alexnet.job.folder import RunFolder
from distnet.alexnet.job.run import Run
from distnet.errors import DistNetError
from distnet.launch.children import Line
from distnet.launch.children.records import Record, error_of, record_of
from distnet.stats import ServerStatistics

__all__ = ["Reports", "record_or_log"]


def record_or_log(line: Line, folder: RunFolder) -> Record | None:
    """Return the record that a line holds; a line that holds none goes to its writer's log."""
    record = record_of(line.text)
    if record is None:
        with folder.log(line.child.name).open("a", encoding="utf-8") as log:
            log.write(line.text + "\n")
    return record


class Reports:
    """Takes in records of a training's processes and counters of its servers.

    Attributes:
        transports: what the workers said they exchange over.
        stats: the newest counters; empty before the first, and without a server.

    Thread safety: one thread.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.transports: set[str] = set()
        self.stats: dict[str, Any] = {}

    def hear(self, line: Line) -> DistNetError | None:
        """Take in a line; returns the error that a process says it ends with."""
        record = record_or_log(line, self._run.folder)
        if record is None:
            return None
        kind = record.pop("kind")
        if kind == "error":
            return error_of(line.child.name, record)
        if kind == "evaluation":
            self._evaluated(record)
        elif kind == "snapshot":
            self._kept(record)
        elif kind in ("connected", "worker", "finished"):
            self._worker_said(kind, record)
        return None

    def count(self, stats: ServerStatistics, now_s: float) -> None:
        """Take in the servers' counters as they are at ``now_s``, on the monotonic clock."""
        progress, self.stats = self._run.progress, stats.as_dict()
        progress.take_stats(self.stats, now_s)
        counted = {name: self.stats[name] for name in ("queue_depth", "bytes_received", "bytes_sent")}
        numbers = {
            "time_s": now_s,
            "updates": self.stats["updates"],
            "updates_per_s": round(progress.updates_per_s, 3),
            **counted,
        }
        self._run.folder.record("server", numbers, step=self.stats["updates"])

    def _worker_said(self, kind: str, record: Record) -> None:
        worker = self._run.progress.workers[record["rank"]]
        if kind == "worker":
            worker.record(record)
            self._run.progress.phase = "training"
            self._run.folder.record("worker", record, step=worker.step)
        elif kind == "connected":
            worker.state = "compiling"
            self.transports.add(record["transport"])
        else:
            worker.state = "finished"

    def _kept(self, record: Record) -> None:
        """Have the parameters scored that the baseline has kept on its way."""
        examples = record["examples"]
        if examples < self._run.plan.examples:
            self._run.evaluation.request(record["path"], examples=examples, seconds=self._run.progress.seconds())

    def _evaluated(self, record: Record) -> None:
        run = self._run
        result = run.evaluation.answered(record)
        run.progress.accuracies.append((result["examples"], result["accuracy"]))
        run.folder.record("evaluation", result, step=result["examples"])
        epochs = result["examples"] / run.plan.epoch_examples
        run.display.note(f"after {epochs:.2f} epochs: accuracy {result['accuracy']:.2%}, loss {result['loss']:.3f}")
