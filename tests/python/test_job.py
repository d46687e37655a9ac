"""A job of workers beside servers: its parts as values, and a whole one with servers that a test plays."""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import pytest

from distnet._private.launcher_env import Launched
from distnet.errors import ConfigError, DistNetError, NonFiniteGradient, PeerClosed
from distnet.launch.attendance import Attendance, Leaver
from distnet.launch.children import Child, ChildDied, Children, Ended, Line
from distnet.launch.children.records import error_of, error_record, record_of
from distnet.launch.failures import Failure, FailurePolicy, UndecidedFailures, failed_together
from distnet.launch.job import Job
from distnet.launch.ranks import Rank, Ranks
from distnet.launch.watching.feed import Feed
from distnet.launch.watching.monitor import Monitor
from distnet.launch.watching.watch import Watch
from distnet.stats import ServerStatistics


def counters(**values: Any) -> dict[str, Any]:
    """Return what of a server's counters a watch looks at."""
    usual: dict[str, Any] = {"sessions": [], "ended": [], "awaited": [], "round": 0, "queue_depth": 0, "updates": 0}
    return usual | {"floats": 10} | values


def a_session(rank: int) -> dict[str, Any]:
    return {"role": "worker", "rank": rank, "incarnation": rank + 1, "presence": "live"}


def an_end(rank: int) -> dict[str, Any]:
    return {"rank": rank, "incarnation": rank + 1, "how": "done"}


class PlayedStatistics(dict[str, Any]):
    """Counters whose fields are attributes, too, as those of a server."""

    def __init__(self, **values: Any) -> None:
        super().__init__(counters(**values))

    def __getattr__(self, name: str) -> Any:
        return self[name]

    def as_dict(self) -> dict[str, Any]:
        return dict(self)


# ---- who connected ---------------------------------------------------------------------------------------------------
def test_a_rank_is_judged_by_counters_that_are_newer_than_its_end() -> None:
    watch = Watch(workers=2)
    attendance = Attendance(watch)
    attendance.leave(0, 10.0)
    attendance.leave(1, 10.0)
    watch.look(counters(sessions=[a_session(0)]), 10.1)
    assert attendance.judge(10.2, asked_s=9.9) == [], "these counters are older than the end"
    assert attendance.judge(10.3, asked_s=10.1) == [Leaver(rank=1, never_connected=True)]
    assert (attendance.unconnected, attendance.is_settled) == ([1], False), "the session of rank 0 has not ended yet"
    watch.look(counters(ended=[an_end(0)]), 10.4)
    assert attendance.judge(10.5, asked_s=10.4) == [Leaver(rank=0, never_connected=False)]
    assert (attendance.unconnected, attendance.is_settled) == ([1], True)


def test_a_server_that_does_not_answer_holds_nobody_up_and_nothing_is_claimed() -> None:
    attendance = Attendance(Watch(workers=1))
    attendance.leave(0, 10.0)
    assert attendance.judge(14.9, asked_s=0.0) == []
    assert attendance.judge(15.0, asked_s=0.0) == [Leaver(rank=0, never_connected=False)]
    assert attendance.unconnected == []


# ---- ranks -----------------------------------------------------------------------------------------------------------
def test_a_process_that_was_only_cut_off_is_not_overdue_and_one_that_stays_silent_is() -> None:
    rank = Rank(0)
    rank.has_started()
    assert not rank.is_overdue(10.0, silent=True)
    assert not rank.is_overdue(11.0, silent=False), "it has connected again"
    assert not rank.is_overdue(12.5, silent=True)
    assert rank.is_overdue(14.5, silent=True)
    assert rank.hung
    rank.has_started()
    assert not rank.hung


def test_a_process_that_has_said_its_error_has_to_end() -> None:
    rank = Rank(0)
    rank.has_started()
    rank.has_said(ConfigError("no"), 10.0)
    assert not rank.is_overdue(14.9, silent=False)
    assert rank.is_overdue(15.0, silent=False)
    assert not rank.hung


def test_which_workers_a_job_stops_is_said() -> None:
    ranks = Ranks(range(2))
    one, other = (cast(Child, object()) for _ in range(2))
    assert ranks.stopped_in_words() == "; the workers were stopped"
    for rank, child in zip(ranks, (one, other), strict=True):
        ranks.has_started(rank, child)
    ranks[1].has_ended(Ended(other, 1, 5.0))
    assert (ranks.stopped_in_words(), ranks.some_go_on) == ("; the other workers were stopped", True)
    ranks[0].has_ended(Ended(one, 0, 6.0))
    assert (ranks.stopped_in_words(), ranks.some_go_on) == ("", False)
    ranks[1].start_at_s = 7.0
    assert (ranks.stopped_in_words(), ranks.some_go_on) == ("", True)


# ---- failures --------------------------------------------------------------------------------------------------------
def a_failure(rank: int, at_s: float, words: str) -> Failure:
    return Failure(rank=rank, status=1, at_s=at_s, words=words)


def test_a_failure_that_may_follow_another_waits_for_its_cause() -> None:
    undecided = UndecidedFailures()
    follower = a_failure(0, 10.0, "distnet.errors.PeerClosed: the server closed the connection")
    undecided.add(follower)
    assert undecided.take_decided(11.9, asked_s=10.5) == []
    cause = a_failure(1, 11.5, "ValueError: no milk")
    undecided.add(cause)
    assert undecided.take_decided(11.9, asked_s=10.5) == [cause, follower]
    assert not undecided
    undecided.add(follower)
    assert undecided.take_decided(12.0, asked_s=10.5) == [follower], "nothing else came within 2 s"


def test_a_failure_is_told_after_the_news_of_what_was_before_it() -> None:
    undecided = UndecidedFailures()
    failure = a_failure(0, 10.0, "ValueError: no milk")
    undecided.add(failure)
    assert undecided.take_decided(10.1, asked_s=9.9) == []
    assert undecided.take_decided(10.2, asked_s=10.1) == [failure]
    undecided.add(failure)
    assert undecided.take_decided(10.5, asked_s=9.9) == [failure], "the servers do not answer"


def test_the_error_of_a_job_is_what_its_worker_said_or_else_its_last_words(tmp_path: Path) -> None:
    with Children() as children:
        child = children.start("worker 1", [sys.executable, "-c", "raise ValueError('no milk')"], log=tmp_path / "log")
        while not (events := children.wait(1.0)):
            pass
    (end,) = events
    assert isinstance(end, Ended)
    logged = Failure.of(1, end).as_error("; the other workers were stopped")
    assert str(logged).startswith("worker 1 ended with exit code 1; its last words:\n    Traceback")
    assert str(logged).endswith("ValueError: no milk")
    said = Failure.of(1, end, said=PeerClosed("gone"))
    assert said.may_follow_another
    assert isinstance(said.as_error(""), PeerClosed)
    hung = Failure.of(1, dataclasses.replace(end, status=-signal.SIGKILL), silent=True).as_error("")
    assert str(hung) == "worker 1 hung, and was killed: the server heard nothing from it for its timeout"
    assert child.last_line == "ValueError: no milk"


def test_failures_of_a_job_that_went_on_are_told_together() -> None:
    assert failed_together(["worker 0 died"], 1) == "worker 0 died"
    assert failed_together(["worker 0 died"], 2) == "worker 0 died; the other workers went on without it"
    assert failed_together(["a", "b", "c"], 9) == "a; 2 more workers failed after it"


# ---- records ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("line", ["", "loss 0.5", "[1]", "{}", '{"kind": 1}', '"kind"'])
def test_a_line_that_is_no_record_is_none(line: str) -> None:
    assert record_of(line) is None


def test_a_childs_error_arrives_with_its_kind_and_one_about_settings_with_its_message_alone() -> None:
    refused = error_of("worker 1", error_record(NonFiniteGradient("it holds NaN")))
    assert isinstance(refused, NonFiniteGradient)
    assert str(refused) == "worker 1: NonFiniteGradient: it holds NaN"
    wrong = error_of("worker 1", error_record(ConfigError("no data")))
    assert (type(wrong), str(wrong)) == (ConfigError, "no data")
    missing = error_record(ModuleNotFoundError("No module named 'keras'", name="keras"))
    assert missing["error"] == "ConfigError"


# ---- a monitor -------------------------------------------------------------------------------------------------------
class PlayedFeed:
    """A feed whose answers a test sets."""

    newest: tuple[float, dict[str, Any]] | None = None
    error: DistNetError | None = None


def test_counters_are_taken_in_once_and_an_error_is_told_once() -> None:
    feed, said = PlayedFeed(), []  # type: ignore[var-annotated]
    monitor = Monitor(cast(Feed, feed), Watch(workers=1), said.append, also=lambda stats: [f"{stats.floats} floats"])
    monitor.look(1.0)
    assert monitor.stats is None
    feed.newest = 1.5, PlayedStatistics(sessions=[a_session(0)])
    monitor.look(2.0)
    monitor.look(3.0)
    assert said == ["10 floats", "worker 0 connected, 1 of 1"]
    assert monitor.asked_s == 1.5
    assert monitor.new_error() is None
    feed.error = PeerClosed("gone")
    assert isinstance(monitor.new_error(), PeerClosed)
    assert monitor.new_error() is None
    feed.error = None
    assert monitor.new_error() is None
    feed.error = PeerClosed("gone")
    assert isinstance(monitor.new_error(), PeerClosed), "it had come back meanwhile"


# ---- a whole job -----------------------------------------------------------------------------------------------------
class PlayedServers:
    """Servers that a test plays: every rank that was started has connected, and ends in order."""

    def __init__(self) -> None:
        self.dead: list[str] = []
        self.excused: list[int] = []

    @property
    def local_address(self) -> str:
        return "shm://played"

    def stats(self) -> ServerStatistics:
        return cast(ServerStatistics, PlayedStatistics(ended=[an_end(rank) for rank in range(2)]))

    def failures(self) -> list[str]:
        return self.dead

    def excuse(self, rank: int, why: str = "") -> None:
        self.excused.append(rank)


class PlayedWorkers:
    """Workers whose ranks each run a program, and say ``error`` where they end with one."""

    remedy = "connect"
    forgotten = ""

    def __init__(self, *programs: str) -> None:
        self._programs = programs
        self.heard: list[str] = []
        self.starts: list[tuple[int, int]] = []
        self.on_line: Callable[[str], None] = lambda text: None

    def start(self, children: Children, launched: Launched) -> Child:
        self.starts.append((launched.rank, launched.start))
        program = self._programs[launched.rank].replace("START", str(launched.start))
        return children.start(f"worker {launched.rank}", [sys.executable, "-c", "import sys, time; " + program])

    def hear(self, line: Line) -> DistNetError | None:
        self.heard.append(line.text)
        self.on_line(line.text)
        return NonFiniteGradient("said") if line.text == "error" else None

    def hear_last(self, line: Line) -> None:
        self.heard.append(line.text)

    def take(self, stats: ServerStatistics) -> Iterable[str]:
        return ()

    def tick(self) -> None:
        pass


FOR_EVER = "time.sleep(600)"


def see_through(
    workers: PlayedWorkers, servers: PlayedServers, policy: FailurePolicy | None = None
) -> tuple[list[str], dict[str, Any]]:
    """See a job of two workers through; returns what was said of it, and its result."""
    said: list[str] = []
    with Children() as children, Feed(servers.stats, every_s=0.05) as feed:
        job = Job(
            servers,
            workers,
            children,
            feed,
            expected=2,
            ranks=range(2),
            policy=policy or FailurePolicy(),
            say=said.append,
        )
        job.see_through()
        return said, job.result()


def test_a_job_ends_with_its_last_worker_and_excuses_all() -> None:
    workers, servers = PlayedWorkers("print('one')", "print('two')"), PlayedServers()
    said, result = see_through(workers, servers)
    assert sorted(workers.heard) == ["one", "two"]
    assert sorted(servers.excused) == [0, 1]
    assert result | {"server": None} == {"server": None, "restarts": 0, "failures": [], "unconnected": []}
    assert any("done" in line for line in said)


def test_a_worker_that_failed_starts_again_and_is_told_which_start_it_is() -> None:
    workers = PlayedWorkers("", "sys.exit(3 if START == 0 else 0)")
    said, result = see_through(workers, PlayedServers(), FailurePolicy(max_restarts=1))
    assert workers.starts == [(0, 0), (1, 0), (1, 1)]
    assert result["restarts"] == 1
    assert "worker 1 ended with exit code 3; it starts again in 1 s (restart 1 of 1)" in said


def test_the_error_that_a_worker_said_ends_the_job_and_the_others() -> None:
    workers = PlayedWorkers(FOR_EVER, "print('error'); sys.exit(1)")
    began_s = time.monotonic()
    with pytest.raises(NonFiniteGradient, match="said"):
        see_through(workers, PlayedServers())
    assert time.monotonic() - began_s < 60


def test_a_dead_server_is_the_cause_of_what_workers_say_of_it() -> None:
    workers, servers = PlayedWorkers(FOR_EVER, "sys.exit('PeerClosed: gone')"), PlayedServers()
    workers.on_line = lambda text: servers.dead.append("server 0 was killed by SIGKILL")
    with pytest.raises(ChildDied, match=r"^server 0 was killed by SIGKILL; the (other )?workers were stopped$"):
        see_through(workers, servers)


def test_a_dead_server_is_the_cause_of_what_a_job_cannot_ask_it() -> None:
    workers, servers = PlayedWorkers(FOR_EVER, FOR_EVER), PlayedServers()

    def ask(stats: ServerStatistics) -> Iterable[str]:
        servers.dead.append("server 0 was killed by SIGKILL")
        raise PeerClosed("gone")

    workers.take = ask  # type: ignore[method-assign]
    with pytest.raises(ChildDied, match=r"^server 0 was killed by SIGKILL; the workers were stopped$"):
        see_through(workers, servers)


def test_another_child_of_the_job_must_not_end_before_it() -> None:
    servers, workers = PlayedServers(), PlayedWorkers(FOR_EVER, FOR_EVER)
    with Children() as children, Feed(servers.stats) as feed:
        children.start("evaluator", [sys.executable, "-c", "raise ValueError('no milk')"])
        policy = FailurePolicy()
        job = Job(servers, workers, children, feed, expected=2, ranks=range(2), policy=policy, say=lambda line: None)
        with pytest.raises(ChildDied, match="evaluator ended with exit code 1; its last words"):
            job.see_through()
        assert all(child.status() is not None for child in children.running)
