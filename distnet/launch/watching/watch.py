"""Words for silence: who came and went, what is waited for and for how long, told from a server's counters.

``Watch.look`` is given the counters now and then, and returns the lines that are new. A wait gets its first line after
10 s, and each further one when it has lasted twice as long. The comings and goings of hundreds of workers are gathered
in few lines.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from distnet._private.bounds import ENDED_SESSIONS
from distnet._private.quantities import show_seconds
from distnet.launch.watching.patience import Gathered, Patience

__all__ = ["Watch", "worker_names"]

_FIRST_WORD_S = 10.0
_NO_UPDATE_S = 60.0
_MOST_NAMED = 4
_ROUNDS_MISSED = 2


def worker_names(ranks: Collection[int]) -> str:
    """Return what messages call these workers, of which there is at least one."""
    ordered = sorted(ranks)
    if len(ordered) == 1:
        return f"worker {ordered[0]}"
    named, others = ordered, 0
    if len(ordered) > _MOST_NAMED + 1:
        named, others = ordered[:_MOST_NAMED], len(ordered) - _MOST_NAMED
    words = [str(rank) for rank in named] + ([f"{others} others"] if others else [])
    return f"workers {', '.join(words[:-1])} and {words[-1]}"


class _RoundsWithout:
    """Which workers synchronous rounds close without.

    Invariant: a worker takes part in each round that it pushes to. The counters may show a round that has just closed
    without its newest push; so two rounds without any news of a worker are two that closed without it, or one.
    """

    def __init__(self) -> None:
        self._newest: dict[int, tuple[tuple[int, ...], int]] = {}  # rank → counts of its pushes; the round at the time
        self._left: set[int] = set()

    def look(self, number: int, pushes: Mapping[int, tuple[int, ...]]) -> tuple[set[int], set[int]]:
        """Return the workers that rounds go on without since this look, and those that take part again.

        Args:
            number: of the open round.
            pushes: counts of pushes, by the rank of each worker that could push.
        """
        back = set()
        for rank, counts in pushes.items():
            if rank not in self._newest or self._newest[rank][0] != counts:
                self._newest[rank] = counts, number
                if rank in self._left and counts:
                    back.add(rank)
        left = {rank for rank in pushes if number - self._newest[rank][1] >= _ROUNDS_MISSED}
        left -= self._left
        self._left = (self._left & set(pushes) | left) - back
        return left, back


class Watch:
    """What there is to say about a job's workers, as its server sees them.

    Args:
        workers: how many the server expects; their ranks are below it.
        launched: ranks whose processes somebody else watches, and tells of when they fail.

    Attributes:
        seen: ranks that have had a session.
        done: ranks whose newest session ended in order.
        knows_all: whether no session can have come and gone unseen, among hundreds of others.

    Thread safety: one thread.
    """

    def __init__(self, *, workers: int, launched: Collection[int] = ()) -> None:
        self._workers = workers
        self._launched = frozenset(launched)
        self.seen: set[int] = set()
        self.done: set[int] = set()
        self.knows_all = True
        self._gone: set[int] = set()  # will not come, or not again
        self._live: dict[int, int] = {}  # rank → incarnation
        self._away: set[int] = set()
        self._lost: set[int] = set()  # ended without a goodbye, and not back
        self._silent: set[int] = set()  # those of them that were given up because nothing was heard
        self._starting: set[int] = set()  # launched ranks whose newest process has not connected yet
        self._rounds_without = _RoundsWithout()
        self._ended: set[int] = set()  # incarnations of which the counters said that they ended
        self._happened = {what: Gathered() for what in ("came", "back", "done", "died", "silent", "fenced")}
        self._arrival, self._round = Patience(_FIRST_WORD_S), Patience(_FIRST_WORD_S)
        self._update = Patience(_NO_UPDATE_S)
        self._return = Patience(_FIRST_WORD_S)

    def leave(self, rank: int) -> None:
        """This rank will not come, or not again: nobody waits for it."""
        self._gone.add(rank)

    def finish(self, rank: int) -> None:
        """A launched rank's process has ended with success: if its session ended in order, too, it is done."""
        if rank in self.done:
            self._happened["done"].add([rank])

    def start(self, rank: int) -> None:
        """A launched rank has a new process: what is still said of the session of an older one is not said of it."""
        self._silent.discard(rank)
        self._starting.add(rank)

    def is_live(self, rank: int) -> bool:
        """Whether the rank has a session now."""
        return rank in self._live

    def is_lost(self, rank: int) -> bool:
        """Whether the rank's newest session ended without a goodbye."""
        return rank in self._lost

    @property
    def silent(self) -> frozenset[int]:
        """Ranks whose newest session was given up because nothing was heard for its timeout."""
        return frozenset(self._silent)

    @property
    def connected(self) -> int:
        """How many workers are connected."""
        return len(self._live)

    def look(self, stats: Mapping[str, Any], now_s: float) -> list[str]:
        """Take in the counters as they are at ``now_s``; returns the lines that are new."""
        self._take_ended(stats["ended"])
        self._take_live(stats["sessions"])
        return [*self._events(now_s), *self._left_behind(stats), *self._waits(stats, now_s)]

    # ---- what happened -----------------------------------------------------------------------------------------------
    def _take_live(self, sessions: Iterable[Mapping[str, Any]]) -> None:
        workers = [session for session in sessions if session["role"] == "worker"]
        live = {session["rank"]: session["incarnation"] for session in workers}
        self._came(rank for rank, incarnation in live.items() if self._live.get(rank, -1) < incarnation)
        self._live = live
        self._away = {session["rank"] for session in workers if session["presence"] == "away"}

    def _take_ended(self, ended: Iterable[Mapping[str, Any]]) -> None:
        listed = list(ended)
        new = [session for session in listed if session["incarnation"] not in self._ended]
        if len(new) >= ENDED_SESSIONS:
            self.knows_all = False  # there may have been more than the counters list
        self._ended = {session["incarnation"] for session in listed}
        for session in new:
            rank, how = session["rank"], session["how"]
            if self._live.get(rank, 0) > session["incarnation"]:
                continue  # a newer session of the rank is what counts
            if self._live.get(rank) != session["incarnation"]:
                self._came([rank])  # and went since the last look
            self._live.pop(rank, None)
            if how == "done":
                self.done.add(rank)
                if rank not in self._launched:
                    self._happened["done"].add([rank])
            elif how in ("died", "silent"):
                self._lost.add(rank)
                self._silent |= {rank} - self._starting if how == "silent" else set()
                if how == "silent" or rank not in self._launched:
                    self._happened[how].add([rank])
            elif how == "fenced":
                self._happened["fenced"].add([rank])

    def _came(self, ranks: Iterable[int]) -> None:
        for rank in ranks:
            self._happened["back" if rank in self.seen else "came"].add([rank])
            self.seen.add(rank)
            self.done.discard(rank)
            self._lost.discard(rank)
            self._silent.discard(rank)
            self._starting.discard(rank)

    def _events(self, now_s: float) -> list[str]:
        lines = []
        here = len([rank for rank in self.seen if rank < self._workers])
        sentences = {
            "came": f"{{}} connected, {here} of {self._workers}",
            "back": "{} connected again",
            "done": "{} {are} done",
            "died": "{} {are} lost: the connection ended without a goodbye",
            "silent": "{} {are} lost: nothing was heard for its timeout",
            "fenced": "{} gave way to a newer session of the same rank",
        }
        for what, sentence in sentences.items():
            if ranks := self._happened[what].take(now_s):
                lines.append(sentence.format(worker_names(set(ranks)), are="are" if len(set(ranks)) > 1 else "is"))
        return lines

    def _left_behind(self, stats: Mapping[str, Any]) -> list[str]:
        """Say which workers rounds go on without, although they are there or may yet come."""
        workers = {session["rank"]: session for session in stats["sessions"] if session["role"] == "worker"}
        expected = set(range(self._workers)) - self._gone - self.done - self._lost
        pushes = {
            rank: tuple(session.get(name, 0) for name in ("incarnation", "accepted", "applied", "refused"))
            if (session := workers.get(rank)) is not None
            else ()
            for rank in expected
        }
        left, back = self._rounds_without.look(stats["round"], pushes)
        lines = []
        if back:
            lines.append(f"{worker_names(back)} {'takes' if len(back) == 1 else 'take'} part in the rounds")
        absent = left - self.seen
        if absent:
            lines.append(f"the rounds go on without {worker_names(absent)} (not connected yet)")
        if left - absent:
            push = "pushes" if len(left - absent) == 1 else "push"
            lines.append(f"the rounds go on without {worker_names(left - absent)}, which {push} nothing")
        return lines

    # ---- what is waited for ------------------------------------------------------------------------------------------
    def _waits(self, stats: Mapping[str, Any], now_s: float) -> list[str]:
        awaited = [rank for rank in stats["awaited"] if rank not in self._gone] if stats["queue_depth"] > 0 else []
        lines = self._wait_of_a_round(stats["round"], awaited, now_s)
        missing = set(range(self._workers)) - self.seen - self._gone
        can_come = stats["floats"] > 0 or 0 not in self._gone  # without a model nobody is let in
        are_to_come = self.seen or not stats["groups"]  # workers that only form groups never connect
        arrivals = missing and can_come and are_to_come and not awaited
        waited_s = self._arrival.waited_s("arrivals" if arrivals else None, now_s)
        if waited_s is not None:
            lines.append(_missing(missing, stats["floats"] > 0, waited_s))
        lost = self._lost - self._launched - self._gone
        waited_s = self._return.waited_s("return" if lost and not self._live else None, now_s)
        if waited_s is not None:
            are = "is" if len(lost) == 1 else "are"
            lines.append(
                f"nobody is connected; {worker_names(lost)} {are} lost and may come back, {show_seconds(waited_s)}"
            )
        here = bool(self._live) and not awaited
        waited_s = self._update.waited_s(stats["updates"] if here else None, now_s)
        if waited_s is not None:
            verb = "is" if len(self._live) == 1 else "are"
            lines.append(f"no update for {show_seconds(waited_s)}; {worker_names(self._live)} {verb} connected")
        return lines

    def _wait_of_a_round(self, number: int, awaited: Collection[int], now_s: float) -> list[str]:
        spoken, lasted_s = self._round.spoken, self._round.lasted_s(now_s)
        waited_s = self._round.waited_s(number if awaited else None, now_s)
        if waited_s is not None:
            return [f"round {number} waits for {self._described(awaited)}, {show_seconds(waited_s)}"]
        if spoken and not self._round.spoken:
            return [f"the rounds go on, after {show_seconds(lasted_s)}"]
        return []

    def _described(self, ranks: Collection[int]) -> str:
        """Return the names of awaited workers, with why each is not there."""
        kinds: dict[str, list[int]] = {}
        for rank in ranks:
            kinds.setdefault(self._why(rank), []).append(rank)
        return "; ".join(worker_names(some) + (f" ({why})" if why else "") for why, some in kinds.items())

    def _why(self, rank: int) -> str:
        if rank in self._away:
            return "away: its connection broke"
        if rank in self._live:
            return ""
        if rank in self._lost:
            return "lost"
        return "not connected yet" if rank not in self.seen else "not connected"


def _missing(ranks: Collection[int], has_model: bool, waited_s: float) -> str:
    if 0 in ranks and not has_model:
        return (
            f"worker 0 has not connected yet, {show_seconds(waited_s)}; it brings the model, which the others wait for"
        )
    have = "has" if len(ranks) == 1 else "have"
    return f"{worker_names(ranks)} {have} not connected yet, {show_seconds(waited_s)}"
