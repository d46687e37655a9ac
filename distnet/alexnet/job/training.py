"""One training on this machine, all roles: servers, workers, evaluator, folder and display, from one configuration."""

from __future__ import annotations

import dataclasses
import json
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distnet import errors
from distnet._private import launcher_env
from distnet._private.arrays import Array
from distnet._private.spawn import python_command
from distnet.alexnet.job.config import LOCAL, TrainConfig
from distnet.alexnet.job.display import Display
from distnet.alexnet.job.evaluation import Evaluation
from distnet.alexnet.job.folder import RunFolder, load_scored
from distnet.alexnet.job.interrupted import ResumePoint, resume_point
from distnet.alexnet.job.plan import Plan, make_plan, recipe_of, semantics_of, server_arguments, with_recipe
from distnet.alexnet.job.processor import SLOW_BFLOAT16, multiplies_bfloat16
from distnet.alexnet.job.progress import JobProgress, WorkerProgress
from distnet.alexnet.job.summary import summarise
from distnet.errors import DistNetError
from distnet.launch.children import Child, ChildDied, Children, Ended, Line, describe_status
from distnet.launch.start_line import memory_line, start_line
from distnet.launch.watching.watch import Watch

if TYPE_CHECKING:
    from distnet.semantics import Semantics
    from distnet.server import ParameterServer

__all__ = ["train"]

_STATS_EVERY_S = 1.0
_READY_WITHIN_S = 1800.0  # the data may have to be downloaded first
_FEWEST_SNAPSHOTS, _MOST_SNAPSHOTS = 6, 100


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

    recipe = recipe_of(config)
    parse_every(config.checkpoint_every)  # an error comes before the data are loaded
    point = resume_point(path, config.batch_size or recipe.batch_size) if resume else None
    resumed = None if point is None else point.records
    with RunFolder(path, config, resumed=resumed) as folder, Children() as children:
        job = _Job(config, folder, children, display, point)
        try:
            job.prepare()
            if config.semantics == LOCAL:
                job.train_locally()
            else:
                job.train_with_servers()
            return job.finish()
        except BaseException:
            job.say_how_to_go_on()
            raise


class _Job:
    """A training in progress. The children's records, the server's counters and the snapshots all pass through here."""

    _plan: Plan

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        children: Children,
        display: Display,
        point: ResumePoint | None,
    ) -> None:
        self._config, self._folder, self._children, self._display = config, folder, children, display
        self._point = point
        self._resumed_at: list[int] = []
        self._evaluation = Evaluation(config, folder, children)
        self._progress = JobProgress(title="AlexNet", total_examples=1, workers=[], phase="loading the data")
        self._workers: dict[Child, WorkerProgress] = {}
        self._transports: set[str] = set()
        self._watch = Watch(workers=config.workers, launched=range(config.workers))
        self._server: ParameterServer | None = None
        self._stats: dict[str, Any] = {}
        self._snapshot_examples = self._next_snapshot = 0
        self._started_s, self._started = time.monotonic(), time.time()

    def prepare(self) -> None:
        """Wait until the evaluator has loaded the data; then plan the work."""
        self._run_until(lambda: bool(self._evaluation.data), within_s=_READY_WITHIN_S)
        data = self._evaluation.data
        self._plan = plan = make_plan(self._config, data["train_examples"])
        epochs_apart = max(1, -(-plan.examples // (plan.epoch_examples * _MOST_SNAPSHOTS)))
        apart = min(epochs_apart * plan.epoch_examples, plan.examples // _FEWEST_SNAPSHOTS)
        self._snapshot_examples = self._next_snapshot = max(apart, plan.batch_size)
        self._progress.title = f"AlexNet on {data['name']}: {_people(self._config)}"
        self._progress.total_examples = plan.examples
        self._progress.workers = [WorkerProgress(rank) for rank in range(self._config.workers)]
        self._display.note(_title(self._config, plan, data))
        if self._config.semantics != LOCAL:
            self._display.note(start_line(with_recipe(self._config, plan), "train"))
        if self._config.precision == "bfloat16" and multiplies_bfloat16() is False:
            self._display.note(SLOW_BFLOAT16)
        if self._point is not None:
            self._go_on_from(self._point)

    def _go_on_from(self, point: ResumePoint) -> None:
        """Take in what an interrupted start of this run did."""
        batch = self._plan.batch_size
        progress = self._progress
        progress.workers = [point.worker(rank, batch) for rank in range(self._config.workers)]
        progress.seconds_before = point.seconds()
        progress.accuracies = [(result["examples"], result["accuracy"]) for result in point.evaluations]
        done = progress.examples
        self._next_snapshot = self._snapshot_after(done)
        self._evaluation.remember(point.evaluations)
        for path, examples, seconds in self._folder.waiting_to_be_scored(at_most_examples=done):
            self._evaluation.request(str(path), examples=examples, seconds=seconds)
        steps = {str(worker.rank): worker.step for worker in progress.workers}
        name = None if point.checkpoint is None else point.checkpoint.name
        earlier = [record["examples"] for record in point.records if record["kind"] == "resumed"]
        self._resumed_at = [*earlier, done]
        told = {"checkpoint": name, "updates": point.updates, "examples": done, "steps": steps, "cut": point.cut}
        self._folder.record("resumed", told, step=point.updates)
        self._display.note(_resumed(point, done, self._plan))

    def train_with_servers(self) -> None:
        """Start the servers and the workers, and see them through."""
        import distnet
        from distnet.alexnet.network import initial_parameters

        config = self._config
        arguments = {
            **server_arguments(config, self._plan),
            "semantics": _patient(semantics_of(config)),
            "restore": None if self._point is None else self._point.checkpoint,
            "checkpoint": self._folder.checkpoints,
        }
        with distnet.ParameterServer(initial_parameters(config.seed), **arguments) as server:
            self._server = server
            self._display.note(memory_line(server.memory()))
            try:
                for rank in range(config.workers):
                    self._start_worker(f"worker {rank}", rank, "--address", server.address)
                self._see_workers_through()
                self._take_stats(server, time.monotonic())
                server.checkpoint()
                self._score_the_end(self._averaged(server))
            except BaseException as error:
                self._children.stop()  # the workers first: they should not see the servers go
                self._save_on_the_way_out(server, error)
                raise
            finally:
                self._server = None

    def train_locally(self) -> None:
        """Start the one process of the baseline, and see it through."""
        scratch = self._folder.scratch
        steps = max(1, self._snapshot_examples // self._plan.batch_size)
        self._start_worker("baseline", 0, "--local", str(scratch), "--snapshot-steps", str(steps))
        self._see_workers_through()
        self._score_the_end(load_scored(scratch / "last.npz"))

    def _save_on_the_way_out(self, server: ParameterServer, error: BaseException) -> None:
        """Write a checkpoint of a training that ends early, and say how to go on, or loudly that there is none.

        A scheduler that signals every process of the job may let this one see a worker's death before its own signal,
        which then breaks the writing off: it is done once more. After Ctrl-C another one ends it.

        Raises:
            KeyboardInterrupt: this process was told to stop meanwhile.
        """
        try:
            self._save(server)
        except KeyboardInterrupt as told:
            if isinstance(error, KeyboardInterrupt):
                raise
            self._save(server)
            raise told from error

    def _save(self, server: ParameterServer) -> None:
        try:
            if server.stats().updates == 0:
                return
            path = server.checkpoint()
        except (DistNetError, OSError) as failure:
            self._display.note(f"NO CHECKPOINT could be written: {type(failure).__name__}: {failure}")
        else:
            self._display.note(f"wrote {path}")

    def say_how_to_go_on(self) -> None:
        """Say what to do after an early end, where anything was trained."""
        from distnet.checkpoint import CheckpointFolder

        if self._config.semantics == LOCAL and self._progress.examples:
            self._display.note("the baseline ('local') cannot be resumed; start it anew")
        elif self._config.semantics != LOCAL and CheckpointFolder(self._folder.checkpoints).latest() is not None:
            self._display.note(f"go on with: distnet train --resume {shlex.quote(str(self._folder.path))}")

    def finish(self) -> dict[str, Any]:
        """Evaluate what is left to evaluate, and write the summary."""
        self._progress.phase = "evaluating"
        self._evaluation.training_ended()
        self._run_until(lambda: self._evaluation.done)
        summary = summarise(
            config=self._config,
            plan=self._plan,
            data=self._evaluation.data,
            progress=self._progress,
            stats=self._stats,
            transports=sorted(self._transports),
            evaluations=sorted(self._evaluation.results, key=lambda result: (result["examples"], result["seconds"])),
            seconds_in_all=time.monotonic() - self._started_s,
            started=self._started,
            resumed_at_examples=self._resumed_at,
        )
        self._folder.summary(summary)
        return summary

    def _start_worker(self, name: str, rank: int, *arguments: str) -> None:
        config, threads = str(self._folder.path / "config.toml"), str(self._plan.threads)
        options = ["--config", config, "--rank", str(rank), "--threads-per-worker", threads, "--json", *arguments]
        child = self._children.start(
            name,
            python_command("distnet", "worker", *options),
            environment=launcher_env.worker_environment(threads=self._plan.threads, scratch=self._folder.scratch),
            log=self._folder.log(name),
        )
        self._workers[child] = self._progress.workers[rank]

    def _see_workers_through(self) -> None:
        self._progress.phase = "starting the workers"
        self._run_until(lambda: all(child.reported for child in self._workers))

    def _score_the_end(self, parameters: Mapping[str, Array]) -> None:
        """Have the last parameters scored."""
        examples, seconds = self._progress.examples, self._progress.seconds()
        path = self._folder.keep_to_score(parameters, examples=examples, seconds=seconds)
        self._evaluation.request(str(path), examples=examples, seconds=seconds)

    def _averaged(self, server: ParameterServer) -> Mapping[str, Array]:
        """Return what is evaluated: the moving average, or the parameters where the recipe keeps none."""
        return _named(server.parameters(ema=bool(recipe_of(self._config).ema_decay)))

    def _run_until(self, done: Callable[[], bool], *, within_s: float = float("inf")) -> None:
        """Serve the children until ``done``; raises when one of them fails."""
        give_up_s = time.monotonic() + within_s
        next_stats_s = time.monotonic() + _STATS_EVERY_S
        while not done():
            self._check_servers()
            for event in self._children.wait(0.2):
                if isinstance(event, Ended):
                    self._ended(event)
                else:
                    self._heard(event)
            now_s = time.monotonic()
            if self._server is not None and now_s >= next_stats_s:
                self._take_stats(self._server, now_s)
                self._take_snapshot(self._server)
                next_stats_s = now_s + _STATS_EVERY_S
            self._display.update(self._progress)
            if now_s > give_up_s:
                raise DistNetError(f"no data after {within_s:.0f} s; see {self._folder.log('evaluator')}")

    def _check_servers(self) -> None:
        """Raise where a server process has died: what its workers then say is not the cause."""
        if self._server is not None and (failures := self._server.failures()):
            raise ChildDied("; ".join(failures))

    def _heard(self, line: Line) -> None:
        """Take in one record of a child; lines that are none go to its log."""
        try:
            record = json.loads(line.text)
            kind = record.pop("kind")
        except (ValueError, KeyError, AttributeError, TypeError):
            with self._folder.log(line.child.name).open("a", encoding="utf-8") as log:
                log.write(line.text + "\n")
            return
        if kind == "error":
            self._check_servers()
            raise _error_of(line.child, record)
        if kind == "data":
            self._evaluation.data = record
        elif kind == "evaluation":
            self._evaluated(record)
        elif kind == "snapshot" and record["examples"] < self._plan.examples:
            self._evaluation.request(record["path"], examples=record["examples"], seconds=self._progress.seconds())
        elif kind in ("connected", "worker", "finished"):
            self._worker_said(self._workers[line.child], kind, record)

    def _worker_said(self, worker: WorkerProgress, kind: str, record: dict[str, Any]) -> None:
        if kind == "worker":
            worker.record(record)
            self._progress.phase = "training"
            self._folder.record("worker", record, step=worker.step)
        elif kind == "connected":
            worker.state = "compiling"
            self._transports.add(record["transport"])
        else:
            worker.state = "finished"

    def _evaluated(self, record: dict[str, Any]) -> None:
        result = self._evaluation.answered(record)
        self._progress.accuracies.append((result["examples"], result["accuracy"]))
        self._folder.record("evaluation", result, step=result["examples"])
        epochs = result["examples"] / self._plan.epoch_examples
        self._display.note(f"after {epochs:.2f} epochs: accuracy {result['accuracy']:.2%}, loss {result['loss']:.3f}")

    def _ended(self, event: Ended) -> None:
        if event.status != 0 or event.child is self._evaluation.child:
            self._check_servers()
            raise _death_of(event)
        self._workers[event.child].state = "finished"

    def _take_stats(self, server: ParameterServer, now_s: float) -> None:
        self._stats = server.stats().as_dict()
        for line in self._watch.look(self._stats, now_s):
            self._display.note(line)
        self._progress.take_stats(self._stats, now_s)
        numbers = {
            "time_s": now_s,
            "updates": self._stats["updates"],
            "updates_per_s": round(self._progress.updates_per_s, 3),
            "queue_depth": self._stats["queue_depth"],
            "bytes_received": self._stats["bytes_received"],
            "bytes_sent": self._stats["bytes_sent"],
        }
        self._folder.record("server", numbers, step=self._stats["updates"])

    def _take_snapshot(self, server: ParameterServer) -> None:
        examples = self._progress.examples
        if not self._evaluation.wanted or not self._next_snapshot <= examples < self._plan.examples:
            return
        self._next_snapshot = self._snapshot_after(examples)
        seconds = self._progress.seconds()
        path = self._folder.keep_to_score(self._averaged(server), examples=examples, seconds=seconds)
        self._evaluation.request(str(path), examples=examples, seconds=seconds)

    def _snapshot_after(self, examples: int) -> int:
        """Return after how many examples the next parameters are scored."""
        return (examples // self._snapshot_examples + 1) * self._snapshot_examples


def _patient(semantics: Semantics) -> Semantics:
    """Return semantics whose rounds wait for a worker that died.

    Its death ends the training. A round that went on without it would be one that an uninterrupted training does not
    have, and the checkpoint of the end would hold it.
    """
    return dataclasses.replace(semantics, on_loss="wait") if semantics.joins == "all" else semantics


def _named(arrays: Any) -> Mapping[str, Array]:
    """Return parameters by name; the server was given them so."""
    if not isinstance(arrays, dict):
        raise DistNetError(
            f"expected the server's parameters by name, as it was given them; got {type(arrays).__name__}"
        )
    return arrays


def _error_of(child: Child, record: dict[str, Any]) -> DistNetError:
    """Return a child's error as this process's own: one about the settings or the data keeps its kind."""
    kind = getattr(errors, record["error"], DistNetError)
    prefix = "" if kind is errors.ConfigError else f"{child.name}: {record['error']}: "
    error: DistNetError = kind(prefix + record["message"])
    return error


def _death_of(event: Ended) -> ChildDied:
    words = event.child.last_words()
    message = f"{event.child.name} {describe_status(event.status)}"
    return ChildDied(f"{message}; its last words:\n{words}" if words else f"{message} without a word")


def _title(config: TrainConfig, plan: Plan, data: dict[str, Any]) -> str:
    epochs = plan.examples / plan.epoch_examples
    return (
        f"AlexNet on {data['name']} ({data['train_examples']:,} images): {_people(config)}, {plan.threads} "
        f"thread{'s' if plan.threads > 1 else ''} each, batch {plan.batch_size}, {plan.steps:,} steps = {epochs:.2f} "
        f"epochs, {plan.updates:,} updates of {plan.effective_batch} examples, learning rate: {plan.rate_rule}"
    )


def _resumed(point: ResumePoint, examples: int, plan: Plan) -> str:
    if point.checkpoint is None:
        return "there is no checkpoint yet: this run begins anew"
    cut = f"; {point.cut} later records of metrics.jsonl were cut" if point.cut else ""
    return (
        f"going on from {point.checkpoint}: {point.updates:,} updates and {examples:,} of {plan.examples:,} examples "
        f"are in it{cut}"
    )


def _people(config: TrainConfig) -> str:
    if config.semantics == LOCAL:
        return "one process without a server"
    return f"{config.semantics}, {config.workers} worker{'s' if config.workers > 1 else ''}"
