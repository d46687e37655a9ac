"""Going on from a checkpoint: which file ``--resume`` and ``--restore`` mean, and where the next one is written."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distnet.errors import ConfigError
from distnet.optimizers import Optimizer
from distnet.semantics import Semantics
from distnet.settings.grammar import as_text

if TYPE_CHECKING:
    from distnet.server import ParameterServer

__all__ = ["Resumption", "resumption", "resumption_of", "what_was_restored"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resumption:
    """Where a job begins and what it leaves.

    Attributes:
        restore: the checkpoint to begin with; None: the beginning.
        checkpoint: the folder to write checkpoints to; None: nowhere.
        starts_anew: whether the folder to go on from is empty so far.
    """

    restore: Path | None
    checkpoint: Path | None
    starts_anew: bool = False


def resumption(*, checkpoint: Path | None, restore: Path | None, resume: Path | None) -> Resumption:
    """Return what ``--checkpoint``, ``--restore`` and ``--resume`` together mean.

    ``--resume DIR`` goes on from the newest checkpoint in the folder, where there is one, and writes on into it: the
    same command line begins a job and takes it up again.

    Raises:
        ConfigError: ``--resume`` beside ``--restore``, or beside a ``--checkpoint`` of another folder.
    """
    if resume is None:
        return Resumption(restore=restore, checkpoint=checkpoint)
    if restore is not None:
        raise ConfigError(f"--resume {resume} and --restore {restore} were both given; give one of them")
    if checkpoint is not None and checkpoint.resolve() != resume.resolve():
        raise ConfigError(
            f"--resume {resume} writes its checkpoints there, too; leave --checkpoint {checkpoint} out, or begin there "
            f"with --restore {resume} --checkpoint {checkpoint}"
        )
    from distnet.checkpoint import CheckpointFolder

    newest = CheckpointFolder(resume).latest()
    return Resumption(restore=newest, checkpoint=resume, starts_anew=newest is None)


def resumption_of(options: dict[str, Any]) -> Resumption:
    """Return what the options of a command that starts a server mean; in them, ``--resume`` becomes the other two."""

    def path(name: str) -> Path | None:
        return None if options.get(name) is None else Path(options[name])

    begin = resumption(checkpoint=path("checkpoint"), restore=path("restore"), resume=path("resume"))
    options.pop("resume", None)
    for name, value in (("checkpoint", begin.checkpoint), ("restore", begin.restore)):
        if value is not None:
            options[name] = str(value)
    return begin


def what_was_restored(server: ParameterServer, begin: Resumption) -> list[str]:
    """Return the lines that say what a server went on from, and which of its settings are not the checkpoint's."""
    if begin.starts_anew:
        return [f"{begin.checkpoint} holds no checkpoint yet: a new start"]
    restored = server.restored
    if restored is None:
        return []
    update = f"update {min(restored.versions):,}" + ("" if restored.round is None else f", round {restored.round:,}")
    given = "; ".join(f"{d.name} is {_shown(d.given)}, and was {_shown(d.kept)}" for d in restored.differences)
    return [
        f"going on from {restored.path}: {update}; its settings count where none is given",
        *([f"given: {given}"] if given else []),
    ]


def _shown(value: object) -> str:
    """Return a setting as the command line takes it."""
    if isinstance(value, Optimizer):
        return as_text(value)
    return str(value) if isinstance(value, Semantics) else repr(value)
