"""The workers of a training: how one is started, who hears it, and when the parameters they train are scored."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from distnet._private import launcher_env
from distnet._private.launcher_env import Launched
from distnet._private.spawn import python_command
from distnet.alexnet.job.evaluation import ScoringTimes, scored_parameters
from distnet.alexnet.job.reports import Reports
from distnet.alexnet.job.run import Run
from distnet.errors import DistNetError
from distnet.launch.children import Child, Children, Line
from distnet.stats import ServerStatistics

if TYPE_CHECKING:
    from distnet.server import ParameterServer

__all__ = ["TrainingWorkers", "start_worker"]


def start_worker(run: Run, name: str, rank: int, *arguments: str) -> Child:
    """Start a process of ``distnet worker`` that says records."""
    config, threads = str(run.folder.path / "config.toml"), str(run.plan.threads)
    options = ["--config", config, "--rank", str(rank), "--threads-per-worker", threads, "--json", *arguments]
    return run.children.start(
        name,
        python_command("distnet", "worker", *options),
        environment=launcher_env.worker_environment(threads=run.plan.threads, scratch=run.folder.scratch),
        log=run.folder.log(name),
    )


class TrainingWorkers:
    """``Workers`` of a job, see :class:`distnet.launch.job.Workers`.

    Args:
        run: what they train.
        reports: takes in what they say.
        server: what they push to.
        times: when its parameters are scored.
    """

    def __init__(self, run: Run, reports: Reports, server: ParameterServer, times: ScoringTimes) -> None:
        self._run, self._reports, self._server, self._times = run, reports, server, times

    @property
    def remedy(self) -> str:
        """Where to look when no worker connects."""
        return f"what they wrote is in {self._run.folder.path / 'logs'}"

    @property
    def forgotten(self) -> str:
        """Nothing: these workers connect."""
        return ""

    def start(self, children: Children, launched: Launched) -> Child:
        """Start the worker of a rank."""
        return start_worker(self._run, f"worker {launched.rank}", launched.rank, "--address", launched.address)

    def hear(self, line: Line) -> DistNetError | None:
        """Take in a line; returns the error that a process says it ends with."""
        return self._reports.hear(line)

    def hear_last(self, line: Line) -> None:
        """Leave out what a worker says while it is stopped: those steps may be in no checkpoint."""

    def take(self, stats: ServerStatistics) -> Iterable[str]:
        """Record counters, and have the parameters scored when it is time; there is nothing to say about it."""
        run = self._run
        self._reports.count(stats, time.monotonic())
        examples = run.progress.examples
        if run.evaluation.wanted and self._times.has_come(examples):
            seconds = run.progress.seconds()
            run.evaluation.score(scored_parameters(self._server, run.config), examples=examples, seconds=seconds)
        return ()

    def tick(self) -> None:
        """Show how far the training is."""
        self._run.display.update(self._run.progress)
