"""Where a fit begins: at the model that the program has, or at the server's, and at which epoch."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from distnet.errors import ConfigError

__all__ = ["Beginning", "epoch_of", "with_epoch"]

_MOST_EPOCH = 2**31 - 1  # what any rank saved is not believed beyond that
_KEY = "distnet.keras epoch"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beginning:
    """Rank 0's word on where a fit begins.

    Attributes:
        brings: whether the server takes rank 0's values; else all have the server's.
        epoch: that it begins at, from 0; None: as ``fit`` was told.
        said: what the user is told; empty: nothing.
    """

    brings: bool
    epoch: int | None
    said: str = ""

    @classmethod
    def of(cls, *, trained: bool, differs: bool, backs_up: bool, restored: int | None, saved: int | None) -> Beginning:
        """Decide.

        A server that was trained before this process came, resumed or still running, counts: it has the optimizer's
        state as well, which no file of Keras has. The epoch is that of the backup where its values are the server's;
        else the one that the server was in, which it says where a ``BackupAndRestore`` was there then.

        Args:
            trained: whether it was.
            differs: whether rank 0's values are others than the server's.
            backs_up: whether there is a ``BackupAndRestore``.
            restored: the epoch that it has restored; None: it restored nothing.
            saved: the epoch that the server says it was in; None: it says nothing.

        Raises:
            ConfigError: nobody knows at which epoch the server was.
        """
        if not trained:
            what = "of rank 0"
            if restored is not None:
                what = f"with which epoch {restored + 1} begins, restored by BackupAndRestore,"
            told = f"the values {what} are the server's now; its optimizer keeps the state that it has"
            return cls(brings=differs, epoch=restored, said=told if differs else "")
        if not backs_up:
            told = "the server was trained before: its parameters count, and what was loaded into the model is dropped"
            return cls(brings=False, epoch=restored, said=told if differs else "")
        if restored is not None and not differs:
            return cls(brings=False, epoch=restored, said=f"the server is where epoch {restored + 1} begins")
        if saved is not None:
            from_file = "" if restored in (None, saved) else f", and the file of BackupAndRestore epoch {restored + 1}"
            told = f"goes on from the server, which was in epoch {saved + 1}{from_file}"
            return cls(brings=False, epoch=saved, said=told)
        if restored is not None:
            raise ConfigError(
                "the server was trained before, without saying up to which epoch, and BackupAndRestore has restored "
                f"other values, of epoch {restored + 1}: remove its backup_dir to go on from the server, or start the "
                "server without its checkpoint (--resume) to go on from the backup"
            )
        return cls(brings=False, epoch=None)


def epoch_of(saved: bytes | None) -> int | None:
    """Return the epoch in what a client saved at the server; None where there is none."""
    try:
        epoch: Any = json.loads(saved or b"")[_KEY]
    except (ValueError, KeyError, TypeError):
        return None
    return epoch if type(epoch) is int and 0 <= epoch <= _MOST_EPOCH else None


def with_epoch(epoch: int) -> bytes:
    """Return what a client saves at the server when an epoch begins, from 0."""
    return json.dumps({_KEY: epoch}).encode()
