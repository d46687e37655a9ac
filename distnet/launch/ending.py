"""How a command's server ends: after its workers, with its checkpoint, whatever signals come meanwhile."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from distnet.errors import DistNetError
from distnet.launch.signals import holding_signals

if TYPE_CHECKING:
    from distnet.server import ParameterServer

__all__ = ["serving", "where_the_model_is"]


@contextlib.contextmanager
def serving(server: ParameterServer, say: Callable[[str], None], *, checkpoint: Path | None) -> Iterator[None]:
    """Start a server for the block and stop it after it; workers that the block started have ended by then.

    Stopping writes the last checkpoint. A signal that comes meanwhile does not break that; the next one does, and the
    user is told so. An error of the block's own comes before one that stopping raises, which is said then.

    Args:
        server: not started yet.
        say: shows a line.
        checkpoint: the folder of its checkpoints, if it writes any.
    """

    def hold() -> None:
        what = "writing the checkpoint" if checkpoint is not None else "stopping the server"
        say(f"{what}; once more to give it up")

    server.start()
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(KeyboardInterrupt), holding_signals(hold):
            _stop_after(error, server, say, checkpoint)
        raise
    with holding_signals(hold):
        server.stop()


def _stop_after(
    error: BaseException, server: ParameterServer, say: Callable[[str], None], checkpoint: Path | None
) -> None:
    """Stop the server because of an error, which is the one to be told of in the end."""
    try:
        server.stop()
    except DistNetError as second:
        if second is not error:
            say(f"the server did not end in order: {second}")
    else:
        if checkpoint is not None:
            say(where_the_model_is(checkpoint))


def where_the_model_is(checkpoint: Path | None) -> str:
    """Return where a job that has ended left its model, or how the next one leaves it."""
    if checkpoint is None:
        return "the model was not kept; --checkpoint DIR keeps it, and so does client.pull() at the script's end"
    from distnet.checkpoint import CheckpointFolder

    newest = CheckpointFolder(checkpoint).latest()
    return f"there is no checkpoint in {checkpoint}" if newest is None else f"the model is in {newest}"
