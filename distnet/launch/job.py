"""A job: workers beside servers, from their first start to the last one's end."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from distnet._private.launcher_env import Launched
from distnet.errors import ConfigError, DistNetError, PeerClosed, TransportError
from distnet.launch.attendance import Attendance
from distnet.launch.children import Child, ChildDied, Children, Ended, Line, death_of
from distnet.launch.children.last_words import LastWords
from distnet.launch.failures import Failure, FailurePolicy, UndecidedFailures
from distnet.launch.ranks import Rank, Ranks
from distnet.launch.signals import told_by
from distnet.launch.watching.feed import Feed
from distnet.launch.watching.monitor import Monitor
from distnet.launch.watching.watch import Watch
from distnet.stats import ServerStatistics

__all__ = ["Job", "NeverConnected", "Servers", "Workers"]

_TICK_S, _IDLE_TICK_S = 0.2, 0.02
_MODEL_WITHIN_S = 2.0  # for which workers go on that wait for a model which nobody will bring: they may end, too


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


class Workers(Protocol):
    """What a job needs of its workers: a user's script, or a training loop of DistNet's own."""

    @property
    def remedy(self) -> str:
        """What to do where no worker connects, for the end of a message."""

    @property
    def forgotten(self) -> str:
        """What a worker that failed before it connected never does, for the end of a message; empty: not known."""

    def start(self, children: Children, launched: Launched) -> Child:
        """Start the process of a rank."""

    def hear(self, line: Line) -> DistNetError | None:
        """Take in a line of any child; returns the error that the child says it ends with."""

    def hear_last(self, line: Line) -> None:
        """Take in a line of a child that is being stopped."""

    def take(self, stats: ServerStatistics) -> Iterable[str]:
        """Take in new counters of the servers; returns lines to show."""

    def tick(self) -> None:
        """Do what has to be done several times a second."""


class Job:
    """Starts workers beside servers and sees them through.

    Invariants: a rank has one process at a time; whichever process of the job fails first is named, and what the others
    do then follows from the policy alone; no worker outlives :meth:`see_through`.

    Args:
        servers: started.
        workers: what runs here.
        children: where the workers are started. Another child in it must not end while the job lasts, and is stopped
            with the workers where the job ends early.
        feed: of the servers' counters.
        expected: how many workers the servers expect.
        ranks: those that are started here.
        policy: what happens when one fails.
        say: shows a line.

    Thread safety: one thread.
    """

    def __init__(
        self,
        servers: Servers,
        workers: Workers,
        children: Children,
        feed: Feed,
        *,
        expected: int,
        ranks: Iterable[int],
        policy: FailurePolicy,
        say: Callable[[str], None],
    ) -> None:
        self._servers, self._workers, self._children, self._feed = servers, workers, children, feed
        self._expected, self._policy, self._say = expected, policy, say
        self._ranks = Ranks(ranks)
        self._watch = Watch(workers=expected, launched=[rank.number for rank in self._ranks])
        self._monitor = Monitor(feed, self._watch, say, also=workers.take)
        self._attendance = Attendance(self._watch)
        self._undecided = UndecidedFailures()
        self._failures: list[str] = []
        self._no_model_s: float | None = None  # since when it is known that nobody will bring the model
        self._restarts = 0

    def see_through(self, *, before_stopping: Callable[[], None] = lambda: None) -> None:
        """Start the workers, and return when the last one has ended.

        Args:
            before_stopping: called before workers are stopped, for an error or a signal.

        Raises:
            ChildDied: a worker failed and the policy is to stop, or a server did; it is the one that was first. An
                error that a worker has said itself is raised instead. The workers have been stopped by then.
            NeverConnected: the workers are of a kind that does not connect.
        """
        try:
            while self._ranks.some_go_on or self._undecided or not self._attendance.is_settled:
                self._step()
            self._monitor.look_once_more(time.monotonic())
            self._check_that_any_connected()
        except BaseException as end:
            try:
                before_stopping()
            finally:
                self._stop(end)
            raise

    def result(self) -> dict[str, Any]:
        """Return how it went.

        Returns:
            ``server``: its last counters; ``restarts``: how many there were; ``failures``: a line for each worker that
            failed and was not started again, the first one first; ``unconnected``: ranks that ended without ever
            connecting.
        """
        self._check_servers()
        stats = self._feed.fresh()
        return {
            "server": None if stats is None else stats.as_dict(),
            "restarts": self._restarts,
            "failures": self._failures,
            "unconnected": sorted(self._attendance.unconnected),
        }

    def _step(self) -> None:
        self._start_those_due(time.monotonic())
        for event in self._children.wait(_TICK_S):
            self._take(event)
        if not self._children.running:
            time.sleep(_IDLE_TICK_S)  # until a restart is due, or the server has answered
        now_s = time.monotonic()
        self._look(now_s)
        self._check_servers()
        self._end_the_overdue(now_s)
        for failure in self._undecided.take_decided(now_s, self._monitor.asked_s):
            self._failed(failure, now_s)
        self._judge(now_s)
        self._check_model(now_s)
        self._workers.tick()

    # ---- processes ---------------------------------------------------------------------------------------------------
    def _start_those_due(self, now_s: float) -> None:
        for rank in self._ranks:
            if rank.start_at_s is not None and now_s >= rank.start_at_s:
                self._start(rank)

    def _start(self, rank: Rank) -> None:
        launched = Launched(
            address=self._servers.local_address, rank=rank.number, workers=self._expected, start=rank.starts
        )
        self._watch.start(rank.number)
        self._ranks.has_started(rank, self._workers.start(self._children, launched))

    def _take(self, event: Line | Ended) -> None:
        rank = self._ranks.of(event.child)
        if isinstance(event, Line):
            error = self._workers.hear(event)
            if error is not None and rank is None:
                raise error
            if error is not None and rank is not None:
                rank.has_said(error, time.monotonic())
        elif rank is None:
            raise death_of(event)
        else:
            self._ended(rank, event)

    def _ended(self, rank: Rank, event: Ended) -> None:
        rank.has_ended(event)
        if event.status == 0:
            self._leave(rank)
        else:
            self._undecided.add(Failure.of(rank.number, event, silent=rank.hung, said=rank.said))
            self._feed.hurry()  # whether its server is still there

    def _end_the_overdue(self, now_s: float) -> None:
        """Kill processes that hang."""
        for child in self._children.running:
            rank = self._ranks.of(child)
            if rank is not None and rank.is_overdue(now_s, silent=rank.number in self._watch.silent):
                child.signal_group(signal.SIGKILL)

    def _stop(self, end: BaseException) -> None:
        """Stop the workers, because of this; what they still say is heard."""
        if self._children.running and isinstance(end, KeyboardInterrupt):
            self._say("stopping the workers; Ctrl-C once more kills them")
        words = LastWords(self._workers.hear_last)
        self._children.stop(told_by=told_by(end), heard=words.take)
        words.close()

    # ---- failures ----------------------------------------------------------------------------------------------------
    def _check_servers(self) -> None:
        if failures := self._servers.failures():
            raise ChildDied(f"{'; '.join(failures)}{self._ranks.stopped_in_words()}")

    def _failed(self, failure: Failure, now_s: float) -> None:
        """Decide about a worker that failed."""
        rank, policy = self._ranks[failure.rank], self._policy
        if rank.starts <= policy.max_restarts:
            pause_s = 2.0 ** (rank.starts - 1)
            rank.start_at_s = now_s + pause_s
            self._restarts += 1
            self._say(
                f"{failure.in_words}; it starts again in {pause_s:.0f} s (restart {rank.starts} of "
                f"{policy.max_restarts})"
            )
            return
        gone = self._feed.error
        if failure.may_follow_another and isinstance(gone, PeerClosed):
            raise type(gone)(f"{gone}{self._ranks.stopped_in_words()}")
        if policy.then == "stop":
            raise failure.as_error(self._ranks.stopped_in_words() + self._forgotten())
        self._failures.append(failure.in_words + ("" if self._failures else self._forgotten()))
        brings = failure.rank == 0 and self._monitor.stats is not None and self._monitor.stats.floats == 0
        go_on = "; this ends the rounds of all" if policy.ends_rounds else "; the others go on"
        others = go_on if self._ranks.some_go_on and not brings else ""
        self._say(f"{failure.in_words}{others}")
        self._leave(rank)

    def _forgotten(self) -> str:
        """Return what may be why a worker failed, where none has connected, for the end of a message."""
        forgotten = "" if self._watch.seen or self._work_in_groups() else self._workers.forgotten
        return f"; {forgotten}" if forgotten else ""

    # ---- who connected -----------------------------------------------------------------------------------------------
    def _look(self, now_s: float) -> None:
        """Take in the newest counters, and say what there is to say."""
        error = self._monitor.new_error()
        if isinstance(error, ConfigError):
            raise error
        if error is not None and self._ranks.some_go_on:
            self._say(str(error))
        try:
            self._monitor.look(now_s)
        except TransportError:  # of what the workers ask the servers themselves
            self._check_servers()
            raise

    def _leave(self, rank: Rank) -> None:
        """A rank has ended for good."""
        self._attendance.leave(rank.number, time.monotonic())
        self._feed.hurry()

    def _judge(self, now_s: float) -> None:
        for leaver in self._attendance.judge(now_s, self._monitor.asked_s):
            rank = self._ranks[leaver.rank]
            with contextlib.suppress(DistNetError):  # a server that is dead or stuck is told of elsewhere
                self._servers.excuse(rank.number, "its process has ended")
            if rank.status == 0:
                self._succeeded(rank)
            if leaver.never_connected:
                self._never_connected(rank)

    def _succeeded(self, rank: Rank) -> None:
        self._watch.finish(rank.number)
        if self._watch.is_lost(rank.number):
            others = "; the others go on" if self._ranks.some_go_on else ""
            how = "ended with exit code 0, but without client.close()"
            self._say(f"{rank.name} {how}: the server counts it as lost{others}")

    def _never_connected(self, rank: Rank) -> None:
        if self._work_in_groups():
            return
        has_model = self._monitor.stats is not None and self._monitor.stats.floats > 0
        if rank.number == 0 and not has_model and self._ranks.some_go_on:
            self._no_model_s = time.monotonic() - (_MODEL_WITHIN_S if rank.status else 0.0)
            if rank.status == 0:
                self._say(f"{rank.name} ended without distnet.connect(), and it was to bring the model: the job ends")
        elif rank.status == 0 and (self._ranks.some_go_on or self._watch.seen):
            self._say(f"{rank.name} ended without distnet.connect(); nobody waits for it")

    def _work_in_groups(self) -> bool:
        """Return whether workers came together as a process group, for which none needs to connect."""
        return self._monitor.stats is not None and self._monitor.stats.groups > 0

    def _check_model(self, now_s: float) -> None:
        """End a job whose workers wait for a model that rank 0 did not bring."""
        if self._no_model_s is None or now_s - self._no_model_s < _MODEL_WITHIN_S or not self._ranks.some_go_on:
            return
        if self._failures:
            raise ChildDied(f"{self._failures[0]}; it was to bring the model{self._ranks.stopped_in_words()}")
        raise NeverConnected(
            f"worker 0 ended without distnet.connect(), and it was to bring the model{self._ranks.stopped_in_words()}; "
            + self._workers.remedy
        )

    def _check_that_any_connected(self) -> None:
        if self._attendance.unconnected and not (self._failures or self._watch.seen or self._work_in_groups()):
            ended = "the script ended" if len(self._ranks) == 1 else "every copy of the script ended"
            raise NeverConnected(f"no worker connected: {ended} without distnet.connect(); {self._workers.remedy}")
