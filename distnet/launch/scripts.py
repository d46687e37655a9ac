"""A user's own script as workers: what ``distnet run`` does.

Invariants: a rank has one process at a time; whichever process of a job fails first is named, and what the others do
then follows from the policy alone; no worker outlives the job.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Protocol

from distnet._private import launcher_env
from distnet.errors import ConfigError, DistNetError, PeerClosed
from distnet.launch.chatter import is_chatter
from distnet.launch.children import Child, ChildDied, Children, Ended, Line
from distnet.launch.failures import Failure, FailurePolicy
from distnet.launch.feed import Feed
from distnet.launch.last_words import LastWords
from distnet.launch.lines import Piece
from distnet.launch.output import ProcessOutput
from distnet.launch.signals import told_by
from distnet.launch.watch import Watch
from distnet.stats import ServerStatistics

__all__ = ["NeverConnected", "ScriptJob", "Servers", "failed_together", "program_of", "run_script"]

_TICK_S, _IDLE_TICK_S = 0.2, 0.02
_PARTIAL_AFTER_S = 0.5
_SETTLE_S = 2.0  # in which the cause of a failure that may follow another one shows
_NEWS_WITHIN_S = 0.5  # for which a failure's line waits for the lines of what happened before it
_ANSWER_WITHIN_S = 5.0  # in which a server says whether a worker that has ended had ever connected
_MODEL_WITHIN_S = 2.0  # for which workers go on that wait for a model which nobody will bring: they may end, too
_BACK_WITHIN_S = 2.0  # in which a worker may connect again after its server has given it up


class NeverConnected(DistNetError):
    """No worker, or not the one that was to bring the model, called ``distnet.connect()``."""


class Servers(Protocol):
    """What a job needs of its servers: a ``ParameterServer``, or those of another machine."""

    @property
    def local_address(self) -> str:
        """What workers that are started here connect to."""

    def stats(self) -> ServerStatistics | None:
        """Return the counters, None where there are none yet; called from a thread of its own."""

    def failures(self) -> list[str]:
        """Return a line for each server process that died."""

    def excuse(self, rank: int, why: str = "") -> None:
        """Hear that a rank will not come, or not again."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScriptJob:
    """What to run.

    Attributes:
        script: a Python file and its arguments, ``-m`` with a module and its arguments, or any program; each copy is
            told its rank by the environment, where ``distnet.connect()`` finds it.
        workers: how many the server expects.
        ranks: those to start here; None: all.
        threads: of each copy's numeric libraries; None leaves it to them.
        policy: what happens when one fails.
        framework_logs: whether what TensorFlow says at every start is shown, too.
    """

    script: Sequence[str]
    workers: int
    ranks: Sequence[int] | None = None
    threads: int | None = None
    policy: FailurePolicy = dataclasses.field(default_factory=FailurePolicy)
    framework_logs: bool = False


def run_script(
    servers: Servers, job: ScriptJob, output: ProcessOutput, *, before_stopping: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Start the copies of a script, and see them through.

    Args:
        servers: started. Where they have no model, the script's rank 0 brings it.
        job: what to run.
        output: where the copies' output and the launcher's own lines appear.
        before_stopping: called before workers are stopped, for an error or a signal.

    Returns:
        ``workers``; ``seconds``; ``server``: its last counters; ``restarts``: how many there were; ``failures``: a line
        for each worker that failed and was not started again, the first one first; ``unconnected``: ranks that ended
        without ever connecting.

    Raises:
        ConfigError: there is no such script.
        ChildDied: a worker failed and the policy is to stop, or a server did; it is the one that was first. The
            workers have been stopped by then.
        NeverConnected: the script is none that connects.
    """
    program = program_of(job.script)
    started_s = time.monotonic()
    with Children(partial_after_s=_PARTIAL_AFTER_S) as children, Feed(servers.stats) as feed:
        running = _Running(servers, job, program, output, children, feed)
        try:
            running.see_through()
        except BaseException as end:
            try:
                before_stopping()
            finally:
                running.stop(end)
            raise
        seconds = round(time.monotonic() - started_s, 3)
        return {"workers": job.workers, "seconds": seconds, **running.result()}


class _Worker:
    """A rank of the job."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.starts = 0
        self.start_at_s: float | None = 0.0  # when its next process starts; None: no process is to start
        self.ended_s: float | None = None  # when its last process ended; None: it has one, or will have
        self.status = 0

    @property
    def name(self) -> str:
        return f"worker {self.rank}"


class _Running:
    """A job in progress."""

    def __init__(
        self,
        servers: Servers,
        job: ScriptJob,
        program: Sequence[str],
        output: ProcessOutput,
        children: Children,
        feed: Feed,
    ) -> None:
        self._servers, self._job, self._program, self._output = servers, job, program, output
        self._children, self._feed = children, feed
        self._workers = {rank: _Worker(rank) for rank in (range(job.workers) if job.ranks is None else job.ranks)}
        self._rank_of: dict[Child, int] = {}
        self._watch = Watch(workers=job.workers, launched=self._workers)
        self._looked_s = 0.0
        self._stats: ServerStatistics | None = None
        self._told_error = ""
        self._fresh: list[Failure] = []  # not decided about yet
        self._given_up: dict[Child, float] = {}  # live processes that the server gave up as silent, and since when
        self._hung: set[Child] = set()  # those of them that were killed for it
        self._unjudged: dict[int, float] = {}  # ranks that have left: did they ever connect? And when they left
        self._failures: list[str] = []
        self._unconnected: list[int] = []
        self._no_model_s: float | None = None  # since when it is known that nobody will bring the model
        self._restarts = 0
        self._filters_chatter = not job.framework_logs and not launcher_env.framework_logs_are_set()

    def see_through(self) -> None:
        """Serve the workers until the last one has ended."""
        while True:
            now_s = time.monotonic()
            self._start_those_due(now_s)
            for event in self._children.wait(_TICK_S):
                self._take(event)
            if not self._children.running:
                time.sleep(_IDLE_TICK_S)  # until a restart is due, or the server has answered
            now_s = time.monotonic()
            self._look(now_s)
            self._check_servers()
            self._end_the_silent(now_s)
            self._decide(now_s)
            self._judge(now_s)
            self._check_model(now_s)
            self._output.tick()
            waiting = any(worker.start_at_s is not None for worker in self._workers.values())
            if not (self._children.running or self._fresh or self._unjudged or waiting):
                break
        if self._stats is not None:
            for line in self._watch.look(self._stats, time.monotonic()):  # of those who were the last
                self._output.note(line)
        if self._unconnected and not self._failures and not self._watch.seen:
            ended = "the script ended" if len(self._workers) == 1 else "every copy of the script ended"
            raise NeverConnected(f"no worker connected: {ended} without distnet.connect(); {_remedy(self._job.script)}")

    def result(self) -> dict[str, Any]:
        """Return how it went: the last counters, and what there is to say about the workers."""
        self._check_servers()
        stats = self._feed.fresh()
        return {
            "server": None if stats is None else stats.as_dict(),
            "restarts": self._restarts,
            "failures": self._failures,
            "unconnected": sorted(self._unconnected),
        }

    def stop(self, end: BaseException) -> None:
        """Stop the workers, because of this; what they still say is shown."""
        if self._children.running and isinstance(end, KeyboardInterrupt):
            self._output.note("stopping the workers; Ctrl-C once more kills them")
        words = LastWords(self._show)
        self._children.stop(told_by=told_by(end), heard=words.take)
        words.close()

    # ---- processes ---------------------------------------------------------------------------------------------------
    def _start_those_due(self, now_s: float) -> None:
        for worker in self._workers.values():
            if worker.start_at_s is not None and now_s >= worker.start_at_s:
                self._start(worker)

    def _start(self, worker: _Worker) -> None:
        launched = launcher_env.Launched(
            address=self._servers.local_address, rank=worker.rank, workers=self._job.workers, start=worker.starts
        )
        environment = launcher_env.script_environment(
            launched, threads=self._job.threads, framework_logs=self._job.framework_logs
        )
        child = self._children.start(worker.name, self._program, environment=environment)
        self._rank_of[child] = worker.rank
        worker.starts += 1
        worker.start_at_s = worker.ended_s = None

    def _take(self, event: Line | Ended) -> None:
        if isinstance(event, Line):
            self._show(event)
            return
        worker = self._workers[self._rank_of[event.child]]
        worker.ended_s, worker.status = event.at_s, event.status
        if event.status == 0:
            self._leave(worker)
        else:
            self._fresh.append(Failure.of(worker.rank, event, silent=event.child in self._hung))
            self._feed.hurry()  # whether its server is still there

    def _show(self, line: Line) -> None:
        if self._filters_chatter and line.stream == "stderr" and is_chatter(line.text):
            return
        self._output.show(line.child.name, line.stream, Piece(line.text, line.whole))

    # ---- failures ----------------------------------------------------------------------------------------------------
    def _check_servers(self) -> None:
        if failures := self._servers.failures():
            raise ChildDied(f"{'; '.join(failures)}{self._stopping()}")

    def _end_the_silent(self, now_s: float) -> None:
        """Kill processes that hang: the server has heard nothing from them for their timeout, and goes on hearing it.

        A process that was only cut off for a while ends by itself, or connects again.
        """
        for child in self._children.running:
            if self._rank_of[child] not in self._watch.silent:
                self._given_up.pop(child, None)
            elif child not in self._hung and now_s - self._given_up.setdefault(child, now_s) >= _BACK_WITHIN_S:
                self._hung.add(child)
                child.signal_group(signal.SIGKILL)

    def _decide(self, now_s: float) -> None:
        """Decide about workers that failed, once it is clear which of them, or what else, was first."""
        if not self._fresh:
            return
        first_s = min(failure.at_s for failure in self._fresh)
        told = self._looked_s > first_s or now_s - first_s >= _NEWS_WITHIN_S  # of what was before: who had connected
        clear = any(not failure.may_follow_another for failure in self._fresh) or now_s - first_s >= _SETTLE_S
        if not (told and clear):
            return
        failures, self._fresh = sorted(self._fresh, key=lambda failure: failure.order), []
        for failure in failures:
            self._failed(failure, now_s)

    def _failed(self, failure: Failure, now_s: float) -> None:
        worker, policy = self._workers[failure.rank], self._job.policy
        if worker.starts <= policy.max_restarts:
            pause_s = 2.0 ** (worker.starts - 1)
            worker.start_at_s = now_s + pause_s
            self._restarts += 1
            self._output.note(
                f"{failure.in_words}; it starts again in {pause_s:.0f} s (restart {worker.starts} of "
                f"{policy.max_restarts})"
            )
            return
        gone = self._feed.error
        if failure.may_follow_another and isinstance(gone, PeerClosed):
            raise type(gone)(f"{gone}{self._stopping()}")
        if policy.then == "stop":
            raise ChildDied(f"{failure.in_words}{self._stopping()}")
        self._failures.append(failure.in_words)
        brings = failure.rank == 0 and self._stats is not None and self._stats.floats == 0
        go_on = "; this ends the rounds of all" if policy.ends_rounds else "; the others go on"
        others = go_on if self._others_go_on() and not brings else ""
        self._output.note(f"{failure.in_words}{others}")
        self._leave(worker)

    def _others_go_on(self) -> bool:
        return any(worker.ended_s is None or worker.start_at_s is not None for worker in self._workers.values())

    def _stopping(self) -> str:
        others = [worker.rank for worker in self._workers.values() if worker.ended_s is None]
        if not others:
            return ""
        return "; the workers were stopped" if len(others) == len(self._workers) else "; the other workers were stopped"

    # ---- who connected -----------------------------------------------------------------------------------------------
    def _look(self, now_s: float) -> None:
        """Take in the newest counters, and say what there is to say."""
        error = self._feed.error
        if isinstance(error, ConfigError):
            raise error
        if error is not None and str(error) != self._told_error and self._others_go_on():
            self._output.note(str(error))
        self._told_error = "" if error is None else str(error)
        newest = self._feed.newest
        if newest is not None and newest[0] > self._looked_s:
            self._looked_s, self._stats = newest
            for line in self._watch.look(self._stats, now_s):
                self._output.note(line)

    def _leave(self, worker: _Worker) -> None:
        """A rank has ended for good."""
        self._watch.leave(worker.rank)
        self._unjudged[worker.rank] = time.monotonic()
        self._feed.hurry()

    def _judge(self, now_s: float) -> None:
        """Find out whether ranks that have left had ever connected: by counters that were taken after their end."""
        for rank, left_s in list(self._unjudged.items()):
            answered = self._looked_s > left_s
            if not answered and now_s - left_s < _ANSWER_WITHIN_S:
                continue
            if self._watch.is_live(rank) and now_s - left_s < _ANSWER_WITHIN_S:
                continue  # its end has not reached the server yet
            del self._unjudged[rank]
            self._excuse(rank)
            if self._workers[rank].status == 0:
                self._succeeded(rank)
            if answered and rank not in self._watch.seen and self._watch.knows_all:
                self._never_connected(self._workers[rank])

    def _succeeded(self, rank: int) -> None:
        self._watch.finish(rank)
        if self._watch.is_lost(rank):
            others = "; the others go on" if self._others_go_on() else ""
            how = "ended with exit code 0, but without client.close()"
            self._output.note(f"worker {rank} {how}: the server counts it as lost{others}")

    def _never_connected(self, worker: _Worker) -> None:
        self._unconnected.append(worker.rank)
        has_model = self._stats is not None and self._stats.floats > 0
        if worker.rank == 0 and not has_model and self._others_go_on():
            self._no_model_s = time.monotonic() - (_MODEL_WITHIN_S if worker.status else 0.0)
            if worker.status == 0:
                self._output.note(
                    f"{worker.name} ended without distnet.connect(), and it was to bring the model: the job ends"
                )
        elif worker.status == 0 and (self._others_go_on() or self._watch.seen):
            self._output.note(f"{worker.name} ended without distnet.connect(); nobody waits for it")

    def _check_model(self, now_s: float) -> None:
        """End a job whose workers wait for a model that rank 0 did not bring."""
        if self._no_model_s is None or now_s - self._no_model_s < _MODEL_WITHIN_S or not self._others_go_on():
            return
        if self._failures:
            raise ChildDied(f"{self._failures[0]}; it was to bring the model{self._stopping()}")
        raise NeverConnected(
            f"worker 0 ended without distnet.connect(), and it was to bring the model{self._stopping()}; "
            + _remedy(self._job.script)
        )

    def _excuse(self, rank: int) -> None:
        """Tell the server that this rank will not come, or not again."""
        with contextlib.suppress(DistNetError):  # a server that is dead or stuck is told of elsewhere
            self._servers.excuse(rank, "its process has ended")


def program_of(script: Sequence[str]) -> list[str]:
    """Return the program and the arguments that a script, a module or a program is started with.

    Raises:
        ConfigError: there is none such.
    """
    if script[0] == "-m":
        if len(script) == 1:
            raise ConfigError("-m names no module; write -m MODULE and its arguments")
        if not _may_be_module(script[1]):
            raise ConfigError(f"there is no module {script[1]} in {Path.cwd()} or among those installed")
        return [sys.executable, *script]
    path = Path(script[0])
    if path.suffix == ".py":
        if not path.is_file():
            raise ConfigError(f"there is no script {path}{_near(path)}")
        return [sys.executable, *script]
    if path.is_dir():
        raise ConfigError(f"{path} is a folder; name a script in it")
    if shutil.which(script[0]) is None:
        if path.is_file():
            raise ConfigError(
                f"{path} is neither a Python script, whose name ends in .py, nor a program that can be run{_near(path)}"
            )
        raise ConfigError(f"there is no script and no program {path}{_near(path)}")
    return list(script)


def _may_be_module(name: str) -> bool:
    """Return whether Python would find the first part of a module's name, from this folder; nothing is imported."""
    first = name.partition(".")[0]
    try:
        found = importlib.util.find_spec(first)
    except (ImportError, ValueError):
        return True  # for Python to say
    return found is not None or PathFinder.find_spec(first, [str(Path.cwd())]) is not None


def _near(path: Path) -> str:
    """Return what script in its folder a path may have been meant to name."""
    try:
        names = sorted(entry.name for entry in path.parent.iterdir() if entry.suffix == ".py")
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.with_name(near[0])}?" if near else ""


def _remedy(script: Sequence[str]) -> str:
    name = " ".join(script[:2]) if script[0] == "-m" else script[0]
    return (
        f"let {name} call client = distnet.connect(parameters=...) on every rank (address and rank come from "
        "`distnet run`) and push its gradients with client.push_pull(); for a Keras model, "
        "distnet.tensorflow.TensorFlowWorker does that"
    )


def failed_together(failures: Sequence[str], workers: int) -> str:
    """Return what a job of so many workers says at its end where some failed and the others went on."""
    first, *others = failures
    if not others:
        return f"{first}; the other workers went on without it" if workers > 1 else first
    return f"{first}; {len(others)} more worker{'s' if len(others) > 1 else ''} failed after it"
