"""What a running job looks like from its launcher: fed by workers' records and the server's counters."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

__all__ = ["JobProgress", "WorkerProgress", "percentile", "percentiles"]

_WINDOW_S = 5.0  # over which a displayed rate is taken


@dataclasses.dataclass
class WorkerProgress:
    """One worker, as its records tell it.

    Attributes:
        rank: the worker's.
        state: a word for the display.
        history: (time, examples) of every record, time on the machine's monotonic clock.
        staleness: how many steps saw which staleness.
    """

    rank: int
    state: str = "starting"
    step: int = 0
    examples: int = 0
    loss: float | None = None
    last_staleness: int | None = None
    computing_s: float = 0.0
    exchanging_s: float = 0.0
    history: list[tuple[float, int]] = dataclasses.field(default_factory=list)
    staleness: Counter[int] = dataclasses.field(default_factory=Counter)

    def record(self, values: Mapping[str, Any]) -> None:
        """Take in a record of the steps since the last one."""
        self.state = "training"
        self.step, self.examples = int(values["step"]), int(values["examples"])
        self.loss, self.last_staleness = float(values["loss"]), int(values["staleness"])
        self.computing_s += float(values["computing_s"])
        self.exchanging_s += float(values["exchanging_s"])
        self.staleness.update({int(value): int(count) for value, count in values["staleness_counts"].items()})
        self.history.append((float(values["time_s"]), self.examples))

    @property
    def rate(self) -> float:
        """Examples per second, of late."""
        if len(self.history) < 2:
            return 0.0
        end_s, examples = self.history[-1]
        start_s, before = next(point for point in self.history if point[0] >= end_s - _WINDOW_S)
        return (examples - before) / (end_s - start_s) if end_s > start_s else 0.0


@dataclasses.dataclass
class JobProgress:
    """The whole job.

    Attributes:
        title: for the display.
        total_examples: of all workers together, by the end.
        workers: by rank.
        server: the last ``stats()``; empty without a server.
        accuracies: (examples seen, accuracy) of the evaluations so far.
        seconds_before: seconds of training before the run was resumed.
    """

    title: str
    total_examples: int
    workers: list[WorkerProgress]
    server: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    updates_per_s: float = 0.0
    accuracies: list[tuple[int, float]] = dataclasses.field(default_factory=list)
    started_s: float = dataclasses.field(default_factory=time.monotonic)
    phase: str = "starting"
    seconds_before: float = 0.0
    _server_at_s: float = 0.0

    def take_stats(self, stats: Mapping[str, Any], now_s: float) -> None:
        """Take in the server's counters."""
        if self.server and now_s > self._server_at_s:
            self.updates_per_s = (stats["updates"] - self.server["updates"]) / (now_s - self._server_at_s)
        self.server, self._server_at_s = stats, now_s

    @property
    def examples(self) -> int:
        """How many examples all workers have trained on."""
        return sum(worker.examples for worker in self.workers)

    @property
    def rate(self) -> float:
        """Examples per second of all workers, of late."""
        return sum(worker.rate for worker in self.workers if worker.state == "training")

    @property
    def left_s(self) -> float | None:
        """Seconds left, at the present rate; None where that is not known yet."""
        return (self.total_examples - self.examples) / self.rate if self.rate > 0 else None

    def rate_together(self) -> tuple[float, float]:
        """Return examples per second, and of how many seconds, while every worker was training.

        Workers start and end a little apart; only the time that they share tells how fast they are beside each other.
        """
        histories = [worker.history for worker in self.workers if len(worker.history) >= 2]
        if len(histories) < len(self.workers):
            return 0.0, 0.0
        start_s = max(history[0][0] for history in histories)
        end_s = min(history[-1][0] for history in histories)
        if end_s <= start_s:
            return 0.0, 0.0
        done = sum(_examples_at(history, end_s) - _examples_at(history, start_s) for history in histories)
        return done / (end_s - start_s), end_s - start_s

    def seconds(self) -> float:
        """Return the seconds from the first worker's first record to the last worker's last, and those before."""
        times = [point[0] for worker in self.workers for point in worker.history]
        return self.seconds_before + (max(times) - min(times) if times else 0.0)

    def staleness(self) -> Counter[int]:
        """Return how many steps saw which staleness, over all workers."""
        total: Counter[int] = Counter()
        for worker in self.workers:
            total.update(worker.staleness)
        return total


def percentile(counts: Mapping[int, int], share: float) -> int:
    """Return the smallest value that at least ``share`` of the counted ones do not exceed; 0 of nothing."""
    total, seen = sum(counts.values()), 0
    for value in sorted(counts):
        seen += counts[value]
        if seen >= share * total:
            return value
    return 0


def percentiles(counts: Mapping[int, int]) -> dict[str, float]:
    """Return the mean, p50, p90, p99 and maximum of counted values."""
    total = sum(counts.values())
    mean = sum(value * count for value, count in counts.items()) / total if total else 0.0
    shares = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
    return {"mean": round(mean, 4), **{name: percentile(counts, share) for name, share in shares.items()}}


def _examples_at(history: list[tuple[float, int]], moment_s: float) -> float:
    for (start_s, before), (end_s, after) in itertools.pairwise(history):
        if start_s <= moment_s <= end_s:
            share = (moment_s - start_s) / (end_s - start_s) if end_s > start_s else 1.0
            return before + share * (after - before)
    return float(history[-1][1] if moment_s > history[-1][0] else history[0][1])
