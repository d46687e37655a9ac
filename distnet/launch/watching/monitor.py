"""The newest counters of a job's servers, taken in once each, and the lines that are new since the last ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from distnet.errors import DistNetError
from distnet.launch.watching.feed import Feed
from distnet.launch.watching.watch import Watch
from distnet.stats import ServerStatistics

__all__ = ["Monitor"]


class Monitor:
    """Takes in what a feed brings, for the watch and for one more reader, and says what they have to say.

    Args:
        feed: of the counters.
        watch: has words for who comes, goes and is waited for.
        say: shows a line.
        also: returns more lines, from the same counters; they come first.

    Attributes:
        stats: the newest counters that were taken in; None before the first.
        asked_s: when those were asked for, on the monotonic clock; 0.0 before the first.

    Invariant: the counters of each moment are taken in once, in order.

    Thread safety: one thread.
    """

    def __init__(
        self,
        feed: Feed,
        watch: Watch,
        say: Callable[[str], None],
        *,
        also: Callable[[ServerStatistics], Iterable[str]],
    ) -> None:
        self._feed, self._watch, self._say, self._also = feed, watch, say, also
        self._told_error = ""
        self.stats: ServerStatistics | None = None
        self.asked_s = 0.0

    def new_error(self) -> DistNetError | None:
        """Return why there are no newer counters, once for each reason."""
        error = self._feed.error
        told, self._told_error = self._told_error, str(error or "")
        return error if self._told_error != told else None

    def look(self, now_s: float) -> None:
        """Take in the newest counters, if they have not been."""
        newest = self._feed.newest
        if newest is None or newest[0] <= self.asked_s:
            return
        self.asked_s, self.stats = newest
        for line in [*self._also(self.stats), *self._watch.look(self.stats, now_s)]:
            self._say(line)

    def look_once_more(self, now_s: float) -> None:
        """Say what of the newest counters was not said yet, because it belongs to a process that has ended since."""
        if self.stats is not None:
            for line in self._watch.look(self.stats, now_s):
                self._say(line)
