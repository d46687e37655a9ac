"""What a checkpoint says beside its tensors, as metadata, and a checkpoint as a value."""

from __future__ import annotations

import base64
import dataclasses
import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from distnet._private.arrays import Arrays
from distnet.checkpoint.arguments import arguments_from_spec
from distnet.checkpoint.file import read_file, write_file
from distnet.checkpoint.layout import layout_of
from distnet.errors import CheckpointError, ConfigError
from distnet.optimizers import state_names
from distnet.snapshot import Cut, Snapshot

__all__ = ["Checkpoint", "read_checkpoint", "write_checkpoint"]


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Checkpoint:
    """A server's whole state at one moment, from its file; :func:`distnet.checkpoint.load` returns it.

    Attributes:
        path: the file's path.
        parameters: read-only float32 arrays, a list or ``{name: array}`` as the model was given.
        optimizer_state: the same for each of the optimizer's state vectors, in the order of PyTorch's state.
        ema: the same for the exponential moving average (EMA) of the parameters; None where none was kept.
        versions: for each shard, how many updates are in it.
        round: in ``sync`` the number of the round that was open, and is not in it; else None.
        learning_rate: the one that was set in the schedule's place; None: the schedule counts.
        saved: by rank, the bytes that the rank's client saved last.
        metadata: plain values: ``"time"`` (UTC, as ISO 8601 has it), ``"optimizer"`` (kind, settings and schedule),
            ``"optimizer_state"`` (the names of its vectors), and ``"arguments"``: those that the server had.

    Thread safety: it never changes.

    Example:
        >>> model = {"w": np.ones(2, np.float32)}
        >>> with distnet.ParameterServer(model, optimizer=distnet.Adam(0.01)) as server:
        ...     checkpoint = distnet.checkpoint.load(server.checkpoint("checkpoints"))
        >>> checkpoint.version, checkpoint.parameters["w"].tolist()
        (0, [1.0, 1.0])
        >>> checkpoint.metadata["optimizer_state"]
        ['exp_avg', 'exp_avg_sq']
    """

    path: Path
    parameters: Arrays
    optimizer_state: tuple[Arrays, ...]
    ema: Arrays | None
    versions: tuple[int, ...]
    round: int | None
    learning_rate: float | None
    saved: Mapping[int, bytes]
    metadata: Mapping[str, Any]

    @property
    def version(self) -> int:
        """The smallest of ``versions``."""
        return min(self.versions)

    def snapshot(self) -> Snapshot:
        """Return it as what ``ParameterServer(restore=...)`` goes on from, without the server's arguments.

        Returns:
            A snapshot with the same arrays.
        """
        return Snapshot(
            parameters=self.parameters,
            optimizer_state=self.optimizer_state,
            ema=self.ema,
            versions=self.versions,
            round=self.round,
            optimizer=self.metadata["optimizer"],
            learning_rate=self.learning_rate,
            saved=self.saved,
        )

    def arguments(self) -> dict[str, Any]:
        """Return the server's arguments that the checkpoint keeps, as ``ParameterServer`` takes them.

        Returns:
            Values by name; some may be missing.

        Raises:
            ConfigError: this version of DistNet does not know them.
        """
        return arguments_from_spec({**self.metadata["arguments"], "optimizer": self.metadata["optimizer"]})


def write_checkpoint(path: Path, cut: Cut, arguments: Mapping[str, Any]) -> None:
    """Read a cut into a file that nobody else knows of yet, and return when it is on the disk.

    Args:
        path: the file's path.
        cut: the state, which is read here.
        arguments: plain values; those of the server, without the optimizer.

    Raises:
        OSError: it cannot be written.
        ConfigError: a model that the format cannot hold.
        DistNetError: what ended the reading of the cut.
    """
    layout = layout_of(cut.tensors, ema=cut.ema, state=state_names(cut.optimizer, cut.state_vectors))
    metadata = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "named": json.dumps(cut.named),
        "versions": json.dumps(cut.versions),
        "round": json.dumps(cut.round),
        "learning_rate": json.dumps(cut.learning_rate),
        "optimizer": json.dumps(dict(cut.optimizer)),
        "arguments": json.dumps(dict(arguments), default=_number),
    }
    write_file(path, layout, lambda vectors: _encode_saved(cut.read(vectors)), metadata)


def _number(value: Any) -> Any:
    """Return a scalar of NumPy, which settings may be, as Python's."""
    return value.item()


def _encode_saved(saved: Mapping[int, bytes]) -> bytes:
    if not saved:
        return b""
    return json.dumps({str(rank): base64.b64encode(data).decode() for rank, data in saved.items()}).encode()


def _decode_saved(text: bytes) -> dict[int, bytes]:
    saved = json.loads(text) if text else {}
    return {int(rank): base64.b64decode(data, validate=True) for rank, data in saved.items()}


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file.

    Args:
        path: the file's path.

    Returns:
        What it holds.

    Raises:
        CheckpointError: it is no checkpoint, is of a newer format, is cut short or damaged, or cannot be read.
    """
    layout, metadata, vectors, saved = read_file(path)
    try:
        named = _typed(metadata, "named", bool)
        names = [name for name, _ in layout.tensors]
        parameters, *others = (dict(zip(names, arrays, strict=True)) if named else arrays for arrays in vectors)
        if not named and names != [str(index) for index in range(len(names))]:
            raise ValueError("tensors of a list that are not numbered")
        learning_rate = json.loads(metadata["learning_rate"])
        checkpoint = Checkpoint(
            path=path,
            parameters=parameters,
            ema=others.pop(0) if layout.has_ema else None,
            optimizer_state=tuple(others),
            versions=tuple(_typed(metadata, "versions", list)),
            round=json.loads(metadata["round"]),
            learning_rate=None if learning_rate is None else float(learning_rate),
            saved=MappingProxyType(_decode_saved(saved)),
            metadata=MappingProxyType(
                {
                    "time": metadata["time"],
                    "optimizer": _typed(metadata, "optimizer", dict),
                    "optimizer_state": [v.kind for v in layout.vectors[1 + layout.has_ema :]],
                    "arguments": _typed(metadata, "arguments", dict),
                }
            ),
        )
        checkpoint.snapshot()  # which checks the rest
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ConfigError) as error:
        raise CheckpointError(f"{path} has metadata that no checkpoint has: {error}") from error
    return checkpoint


def _typed(metadata: Mapping[str, str], name: str, kind: type[Any]) -> Any:
    value = json.loads(metadata[name])
    if type(value) is not kind:
        raise ValueError(f"{name} is {str(value)[:100]}")
    return value
