"""Going on from a checkpoint: which file ``--resume`` and ``--restore`` mean, and where the next one is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from distnet.errors import ConfigError

__all__ = ["Resumption", "resumption"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resumption:
    """Where a job begins and what it leaves.

    Attributes:
        restore: the checkpoint to begin with; None: the beginning.
        checkpoint: the folder to write checkpoints to; None: nowhere.
        in_words: what to tell the user; None: nothing.
    """

    restore: Path | None
    checkpoint: Path | None
    in_words: str | None


def resumption(*, checkpoint: Path | None, restore: Path | None, resume: Path | None) -> Resumption:
    """Return what ``--checkpoint``, ``--restore`` and ``--resume`` together mean.

    ``--resume DIR`` goes on from the newest checkpoint in the folder, where there is one, and writes on into it: the
    same command line begins a job and takes it up again.

    Raises:
        ConfigError: ``--resume`` beside ``--restore``, or beside a ``--checkpoint`` of another folder.
    """
    if resume is None:
        words = None if restore is None else f"going on from {restore}"
        return Resumption(restore=restore, checkpoint=checkpoint, in_words=words)
    if restore is not None:
        raise ConfigError(f"--resume {resume} and --restore {restore} were both given; give one of them")
    if checkpoint is not None and checkpoint.resolve() != resume.resolve():
        raise ConfigError(
            f"--resume {resume} writes its checkpoints there, too; leave --checkpoint {checkpoint} out, or begin there "
            f"with --restore {resume} --checkpoint {checkpoint}"
        )
    from distnet.checkpoint import CheckpointFolder

    newest = CheckpointFolder(resume).latest()
    if newest is None:
        return Resumption(restore=None, checkpoint=resume, in_words=f"{resume} holds no checkpoint yet: a new start")
    return Resumption(restore=newest, checkpoint=resume, in_words=f"going on from {newest}")
