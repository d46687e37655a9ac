"""A server that waits for workers from anywhere: what ``distnet serve`` does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from distnet.launch.children import ChildDied
from distnet.launch.start_line import memory_line
from distnet.launch.watching.feed import Feed
from distnet.launch.watching.monitor import Monitor
from distnet.launch.watching.watch import Watch

if TYPE_CHECKING:
    from distnet.server import ParameterServer
    from distnet.stats import ServerStatistics

__all__ = ["joining_line", "until_done"]

_LOOK_EVERY_S = 0.2
_FIRST_LINES_S, _FIRST_MINUTE_S, _LATER_LINES_S = 10.0, 60.0, 60.0


def joining_line(address: str, workers: int, *, recipe: str | None) -> str:
    """Return what to run on other machines, for servers that they reach at ``address``."""
    first = address.partition(",")[0]  # it tells of the others
    if recipe is not None:
        return f"distnet worker --address {first} --workers {workers} --rank 0"
    ranks = "0" if workers == 1 else f"0-{workers - 1}"
    return f"distnet run --join {first} --workers {workers} --ranks {ranks} SCRIPT"


def until_done(
    server: ParameterServer,
    *,
    exit_when_idle: bool,
    say: Callable[[str], None],
    also: Callable[[ServerStatistics], Iterable[str]] = lambda stats: (),
) -> None:
    """Return when every rank has ended in order; until then, say who comes, goes and is waited for.

    Args:
        server: started.
        exit_when_idle: return also when workers were there and none is any more.
        say: shows a line.
        also: returns more lines, from the same counters.

    Raises:
        ChildDied: a server process died.
    """
    with Feed(server.stats) as feed:
        service = _Service(server, feed, say, also)
        while not service.is_done(exit_when_idle=exit_when_idle):
            if failures := server.failures():
                raise ChildDied("; ".join(failures))
            service.look()
            time.sleep(_LOOK_EVERY_S)


class _Service:
    """A server in use."""

    def __init__(
        self,
        server: ParameterServer,
        feed: Feed,
        say: Callable[[str], None],
        also: Callable[[ServerStatistics], Iterable[str]],
    ) -> None:
        self._server, self._say, self._also = server, say, also
        self._watch = Watch(workers=server.workers)
        self._monitor = Monitor(feed, self._watch, say, also=self._lines)
        self._told_memory = False
        self._progress = _ProgressLines()

    def is_done(self, *, exit_when_idle: bool) -> bool:
        """Whether nobody is connected, and nobody will come."""
        watch, stats = self._watch, self._monitor.stats
        counted = 0 if stats is None or watch.knows_all else stats.workers_done
        done = max(len(watch.done), counted)
        return watch.connected == 0 and (done >= self._server.workers or (exit_when_idle and bool(watch.seen)))

    def look(self) -> None:
        """Take in the newest counters, and say what there is to say."""
        error = self._monitor.new_error()
        if error is not None:
            self._say(str(error))
        before, now_s = self._monitor.asked_s, time.monotonic()
        self._monitor.look(now_s)
        stats = self._monitor.stats
        if stats is not None and self._monitor.asked_s > before and self._progress.due(stats, now_s):
            count = self._watch.connected
            workers = "1 worker" if count == 1 else f"{count} workers"
            self._say(f"{workers} connected · {stats.updates:,} updates · queue {stats.queue_depth}")

    def _lines(self, stats: ServerStatistics) -> Iterable[str]:
        if not self._told_memory and stats.floats > 0:
            self._told_memory = True
            yield memory_line(self._server.memory())
        yield from self._also(stats)


class _ProgressLines:
    """When to say how many updates there were: every 10 s in the first minute, then every minute, where there were."""

    def __init__(self) -> None:
        self._began_s: float | None = None
        self._next_s = 0.0
        self._updates = 0

    def due(self, stats: Mapping[str, Any], now_s: float) -> bool:
        """Whether it is time for a line."""
        if stats["updates"] == self._updates:
            return False
        if self._began_s is None:
            self._began_s, self._next_s = now_s, now_s + _FIRST_LINES_S
        if now_s < self._next_s:
            return False
        self._updates = stats["updates"]
        self._next_s = now_s + (_FIRST_LINES_S if now_s - self._began_s < _FIRST_MINUTE_S else _LATER_LINES_S)
        return True
