"""How a command's server ends: after its workers, with its checkpoint, whatever signals come meanwhile."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from distnet._private.quantities import show_seconds
from distnet.errors import CheckpointError, DistNetError
from distnet.launch.signals import holding_signals
from distnet.launch.watching.feed import Feed

if TYPE_CHECKING:
    from distnet.server import ParameterServer

__all__ = ["Kept", "NotKept", "done_line", "save_before_the_workers_end", "serving", "where_the_model_is"]

_ANSWER_WITHIN_S = 2.0  # in which a server says how far it is, before it is stopped


class NotKept(DistNetError):
    """A job has ended without its last checkpoint, which could not be written."""


@dataclasses.dataclass
class Kept:
    """How a server's last checkpoint went.

    Attributes:
        missing: why it could not be written; None: it was, or the server writes none.
    """

    missing: str | None = None

    def check(self) -> None:
        """Raise :class:`NotKept` where it is missing."""
        if self.missing is not None:
            raise NotKept("the job ended without its last checkpoint; a line before this one says why")


@contextlib.contextmanager
def serving(server: ParameterServer, say: Callable[[str], None], *, checkpoint: Path | None) -> Iterator[Kept]:
    """Start a server for the block and stop it after it; workers that the block started have ended by then.

    Stopping writes the last checkpoint. A signal that comes meanwhile does not break that; the next one does, and the
    user is told so.

    Args:
        server: not started yet.
        say: shows a line.
        checkpoint: the folder of its checkpoints, if it writes any.

    Yields:
        what says after the block whether the last checkpoint was written; one that was not is logged by then.
    """

    def hold() -> None:
        what = "writing the checkpoint" if checkpoint is not None else "stopping the server"
        say(f"{what}; once more to give it up")

    kept, updates = Kept(), None
    server.__enter__()
    try:
        yield kept
    except BaseException:
        with contextlib.suppress(KeyboardInterrupt), holding_signals(hold):
            try:
                updates = _updates_of(server)
            finally:
                server.__exit__(*sys.exc_info())
        if updates:
            say(f"stopped after {_count(updates)}")
        if updates or checkpoint is not None:
            say(where_the_model_is(checkpoint))
        raise
    with holding_signals(hold):
        try:
            server.__exit__(None, None, None)
        except CheckpointError as error:
            kept.missing = str(error)


def save_before_the_workers_end(server: ParameterServer, say: Callable[[str], None]) -> None:
    """Write the last checkpoint of rounds before their workers are told to end.

    They end one after another, and one that leaves in order leaves a last round to the others, which a job that was
    not interrupted does not have. Where each gradient is an update, the last checkpoint comes after the workers; so it
    does where this one was not written. Signals are held as while a server stops.
    """
    if server.semantics.joins != "all":
        return
    with (
        contextlib.suppress(DistNetError, OSError, KeyboardInterrupt),  # the end goes on, and has its reason already
        holding_signals(lambda: say("writing the checkpoint; once more to give it up")),
    ):
        server.write_last_checkpoint()


def _updates_of(server: ParameterServer) -> int | None:
    """Return how many updates a server has made; None where it does not say so soon, or has lost a process."""
    if server.failures():
        return None
    with Feed(server.stats) as feed:
        stats = feed.fresh(_ANSWER_WITHIN_S)
    return None if stats is None else stats.updates


def where_the_model_is(checkpoint: Path | None, kept: Kept | None = None) -> str:
    """Return where a job that has ended left its model, or how the next one leaves it.

    Args:
        checkpoint: the folder of its checkpoints, if it writes any.
        kept: how the last one went, where that is known.
    """
    if kept is not None and kept.missing is not None:
        return "the last of them were not kept"
    if checkpoint is None:
        return "the model was not kept; --checkpoint DIR keeps it, and client.finish() returns it to the script"
    from distnet.checkpoint import CheckpointFolder

    newest = CheckpointFolder(checkpoint).latest()
    return f"there is no checkpoint in {checkpoint}" if newest is None else f"the model is in {newest}"


def done_line(updates: int | None, seconds: float, where: str) -> str:
    """Return a job's last line: how many updates, where known, in what time, and where the model is."""
    count = "" if updates is None else f"{_count(updates)} in "
    return f"done: {count}{show_seconds(seconds)}{f'; {where}' if where else ''}"


def _count(updates: int) -> str:
    return f"{updates:,} update{'' if updates == 1 else 's'}"
