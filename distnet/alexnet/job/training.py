"""One training on this machine, all roles: servers, workers, evaluator, folder and display, from one configuration."""

from __future__ import annotations

import dataclasses
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distnet.alexnet.job.config import LOCAL, TrainConfig
from distnet.alexnet.job.display import Display
from distnet.alexnet.job.evaluation import Evaluation, ScoringTimes, scored_parameters
from distnet.alexnet.job.folder import RunFolder, load_scored
from distnet.alexnet.job.interrupted import resume_point
from distnet.alexnet.job.plan import recipe_of, semantics_of, server_arguments
from distnet.alexnet.job.progress import JobProgress
from distnet.alexnet.job.reports import Reports, record_or_log
from distnet.alexnet.job.run import Run, begin, go_on_from
from distnet.alexnet.job.summary import summarise
from distnet.alexnet.job.workers import TrainingWorkers, start_worker
from distnet.errors import DistNetError
from distnet.launch.children import Children, Line, death_of
from distnet.launch.children.records import error_of
from distnet.launch.ending import save_before_the_workers_end, serving
from distnet.launch.failures import FailurePolicy
from distnet.launch.job import Job
from distnet.launch.start_line import memory_line
from distnet.launch.watching.feed import Feed

if TYPE_CHECKING:
    from distnet.semantics import Semantics

__all__ = ["train"]

_STATS_EVERY_S = 1.0
_READY_WITHIN_S = 1800.0  # the data may have to be downloaded first


def train(config: TrainConfig, path: Path, display: Display, *, resume: bool = False) -> dict[str, Any]:
    """Train once, leave everything in the folder ``path``, and return what ``summary.json`` holds.

    A training that ends early leaves a checkpoint, and the display says how to go on.

    Args:
        config: what to do.
        path: the run's folder.
        display: shows how it goes.
        resume: go on with the interrupted run in the folder, whose configuration this is.

    Raises:
        DistNetError: whatever ended the training early; its children are gone by then.
        KeyboardInterrupt: the same after Ctrl-C.
    """
    from distnet.checkpoint import parse_every

    started_s, started = time.monotonic(), time.time()
    recipe = recipe_of(config)
    parse_every(config.checkpoint_every)  # an error comes before the data are loaded
    point = resume_point(path, config.batch_size or recipe.batch_size) if resume else None
    resumed = None if point is None else point.records
    with RunFolder(path, config, resumed=resumed) as folder, Children() as children:
        progress = JobProgress(title="AlexNet", total_examples=1, workers=[], phase="loading the data")
        try:
            evaluation = Evaluation(config, folder, children)
            _wait_for_data(evaluation, folder, children, lambda: display.update(progress))
            run = begin(config, folder, children, evaluation, progress, display)
            resumed_at = [] if point is None else go_on_from(point, run)
            training = _Training(run, None if point is None else point.checkpoint)
            training.train()
            return training.finish(started_s, started, resumed_at)
        except BaseException:
            _say_how_to_go_on(config, folder, display)
            raise


class _Training:
    """A run whose data are loaded.

    Args:
        run: the run.
        checkpoint: to go on from; None: it begins anew.
    """

    def __init__(self, run: Run, checkpoint: Path | None) -> None:
        self._run, self._checkpoint = run, checkpoint
        self._times = ScoringTimes(run.plan, done=run.progress.examples)
        self._reports = Reports(run)

    def train(self) -> None:
        """Train to the end of the plan."""
        self._run.progress.phase = "starting the workers"
        if self._run.config.semantics == LOCAL:
            self._train_locally()
        else:
            self._train_with_servers()

    def _train_with_servers(self) -> None:
        """Start the servers and the workers, and see them through."""
        import distnet
        from distnet.alexnet.network import initial_parameters

        run = self._run
        config, say = run.config, run.display.note
        arguments = {
            **server_arguments(config, run.plan),
            "semantics": _patient(semantics_of(config)),
            "restore": self._checkpoint,
            "checkpoint": run.folder.checkpoints,
        }
        server = distnet.ParameterServer(initial_parameters(config.seed), **arguments)
        with (
            serving(server, say, checkpoint=run.folder.checkpoints) as kept,
            Feed(server.stats, every_s=_STATS_EVERY_S) as feed,
        ):
            say(memory_line(server.memory()))
            job = Job(
                server,
                TrainingWorkers(run, self._reports, server, self._times),
                run.children,
                feed,
                expected=config.workers,
                ranks=range(config.workers),
                policy=FailurePolicy(max_restarts=0, then="stop"),
                say=say,
            )
            job.see_through(before_stopping=lambda: save_before_the_workers_end(server, say))
            self._reports.count(server.stats(), time.monotonic())
            run.evaluation.score(
                scored_parameters(server, config), examples=run.progress.examples, seconds=run.progress.seconds()
            )
        kept.check()

    def _train_locally(self) -> None:
        """Start the one process of the baseline, and see it through."""
        run, scratch = self._run, self._run.folder.scratch
        baseline = start_worker(
            run, "baseline", 0, "--local", str(scratch), "--snapshot-steps", str(self._times.steps_apart)
        )
        self._hear_until(lambda: baseline.reported)
        run.evaluation.score(
            load_scored(scratch / "last.npz"), examples=run.progress.examples, seconds=run.progress.seconds()
        )

    def finish(self, started_s: float, started: float, resumed_at: Sequence[int]) -> dict[str, Any]:
        """Evaluate what is left to evaluate, and write the summary.

        Args:
            started_s: when the run started, on the monotonic clock.
            started: the same, in seconds since the epoch.
            resumed_at: after how many examples the run was resumed, each time.
        """
        run = self._run
        run.progress.phase = "evaluating"
        run.evaluation.training_ended()
        self._hear_until(lambda: run.evaluation.done)
        summary = summarise(
            config=run.config,
            plan=run.plan,
            data=run.evaluation.data,
            progress=run.progress,
            stats=self._reports.stats,
            transports=sorted(self._reports.transports),
            evaluations=sorted(run.evaluation.results, key=lambda result: (result["examples"], result["seconds"])),
            seconds_in_all=time.monotonic() - started_s,
            started=started,
            resumed_at_examples=resumed_at,
        )
        run.folder.summary(summary)
        return summary

    def _hear_until(self, done: Callable[[], bool]) -> None:
        """Hear processes that need no server until ``done``; raises when one of them fails."""

        def hear(line: Line) -> None:
            error = self._reports.hear(line)
            if error is not None:
                raise error

        run = self._run
        while not done():
            _hear(run.children, run.evaluation, hear)
            run.display.update(run.progress)


def _wait_for_data(evaluation: Evaluation, folder: RunFolder, children: Children, tick: Callable[[], None]) -> None:
    """Return when the evaluator has said what the data are; they may have to be downloaded first."""

    def hear(line: Line) -> None:
        record = record_or_log(line, folder) or {}
        kind = record.pop("kind", None)
        if kind == "error":
            raise error_of(line.child.name, record)
        if kind == "data":
            evaluation.data = record

    give_up_s = time.monotonic() + _READY_WITHIN_S
    while not evaluation.data:
        _hear(children, evaluation, hear)
        tick()
        if time.monotonic() > give_up_s:
            raise DistNetError(f"no data after {_READY_WITHIN_S:.0f} s; see {folder.log('evaluator')}")


def _hear(children: Children, evaluation: Evaluation, hear: Callable[[Line], None]) -> None:
    """Hear children for a moment; raises for one that failed, and for the evaluator, which must not end."""
    for event in children.wait(0.2):
        if isinstance(event, Line):
            hear(event)
        elif event.status != 0 or event.child is evaluation.child:
            raise death_of(event)


def _say_how_to_go_on(config: TrainConfig, folder: RunFolder, display: Display) -> None:
    """Say what to do after an early end, where anything was trained."""
    from distnet.checkpoint import CheckpointFolder

    if config.semantics == LOCAL and folder.has_records:
        display.note("the baseline ('local') cannot be resumed; start it anew")
    elif config.semantics != LOCAL and CheckpointFolder(folder.checkpoints).latest() is not None:
        display.note(f"go on with: distnet train --resume {shlex.quote(str(folder.path))}")


def _patient(semantics: Semantics) -> Semantics:
    """Return semantics whose rounds wait for a worker that died.

    Its death ends the training. A round that went on without it would be one that an uninterrupted training does not
    have, and the checkpoint of the end would hold it.
    """
    return dataclasses.replace(semantics, on_loss="wait") if semantics.joins == "all" else semantics
