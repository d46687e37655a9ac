"""A run's folder: everything needed to understand the run and to run it again.

::

    config.toml              the full configuration; ``distnet train --config`` runs it again
    metrics.jsonl            one record a line: workers' steps, the server's counters, evaluations
    events.out.tfevents.*    the same numbers for TensorBoard
    checkpoint.safetensors   the parameters, ema/…, optimizer/<vector>/… and the optimizer's settings
    summary.json             accuracy, time, rate, updates, staleness, bytes, versions; a run without was cut off
    logs/                    what each child process wrote on its standard error
    scratch/                 averaged parameters on their way to evaluation, and temporary files; removed at the end
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from distnet.errors import ConfigError, DistNetError
from distnet.launch.config import TrainConfig, write_config_file

__all__ = ["Arrays", "FolderError", "RunFolder", "load_arrays", "new_run_path", "save_arrays"]

Arrays = Mapping[str, NDArray[np.float32]]


class FolderError(DistNetError):
    """A run's folder cannot be written: no room, no permission, or no longer there."""


class RunFolder:
    """The folder of one run, open for writing. A run that fails before anything was recorded leaves no folder.

    Raises:
        ConfigError: the folder holds a run already.
        FolderError: it cannot be written.
    """

    def __init__(self, path: Path, config: TrainConfig) -> None:
        self.path = path
        self.scratch = path / "scratch"
        self._recorded = False
        if (path / "config.toml").exists():
            raise ConfigError(f"{path} holds a run already; give another folder with --out, or remove it")
        try:
            with writing(path):
                path.mkdir(parents=True, exist_ok=True)
                (path / "logs").mkdir(exist_ok=True)
                self.scratch.mkdir(exist_ok=True)
                write_config_file(path / "config.toml", config)
                self._metrics: IO[str] = (path / "metrics.jsonl").open("w", encoding="utf-8")
                self._events = _EventFile(path)
        except BaseException:
            self._discard()
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is not None and not self._recorded:
            self._discard()

    def log(self, name: str) -> Path:
        """Return the path of a child's log."""
        return self.path / "logs" / f"{name.replace(' ', '-')}.log"

    def record(self, kind: str, values: Mapping[str, Any], *, step: int) -> None:
        """Add a record to ``metrics.jsonl``, and its numbers to the event file under ``kind/name``."""
        self._recorded = True
        with writing(self.path):
            self._metrics.write(json.dumps({"kind": kind, **values}) + "\n")
            self._metrics.flush()
            label = f"{kind} {values['rank']}" if "rank" in values else kind
            self._events.write(label, values, step)

    def snapshot(self, name: str, arrays: Arrays) -> Path:
        """Keep averaged parameters until they are evaluated."""
        path = self.scratch / f"{name}.safetensors"
        with writing(self.path):
            save_arrays(path, arrays, {})
        return path

    def checkpoint(self, arrays: Arrays, metadata: Mapping[str, str]) -> None:
        """Write ``checkpoint.safetensors``, whole or not at all."""
        with writing(self.path):
            save_arrays(self.path / "checkpoint.safetensors", arrays, metadata)

    def summary(self, values: Mapping[str, Any]) -> None:
        """Write ``summary.json``, whole or not at all."""
        with writing(self.path):
            unfinished = self.path / "summary.json.part"
            unfinished.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            unfinished.replace(self.path / "summary.json")

    def close(self) -> None:
        """Close the files and remove the scratch. What could not be written was an error before."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        with contextlib.suppress(OSError):
            self._metrics.close()
        with contextlib.suppress(OSError):
            self._events.close()

    def _discard(self) -> None:
        for folder in (self.path / "logs", self.scratch):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            for file in [
                self.path / "config.toml",
                self.path / "metrics.jsonl",
                *self.path.glob("events.out.tfevents.*"),
            ]:
                file.unlink(missing_ok=True)
            self.path.rmdir()  # fails where something else lies in it, which stays


class _EventFile:
    """TensorBoard's file, written at once and in this thread: a full disk is an error here, not in another."""

    def __init__(self, path: Path) -> None:
        from tensorboardX.event_file_writer import EventsWriter

        self._writer = EventsWriter(str(path / "events"))

    def write(self, label: str, values: Mapping[str, Any], step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        numbers = [
            Summary.Value(tag=f"{label}/{name}", simple_value=float(value))
            for name, value in values.items()
            if isinstance(value, (int, float)) and name not in ("rank", "time_s")
        ]
        if numbers:
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=numbers)))
            self._writer.flush()

    def close(self) -> None:
        self._writer.close()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what goes wrong with files inside into one clear error."""
    try:
        yield
    except OSError as error:
        place, reason = error.filename or path, error.strerror or error
        raise FolderError(f"cannot write {place}: {reason}; make room or give another folder with --out") from error


def new_run_path(label: str) -> Path:
    """Return a folder's name for a run that was given none: ``runs/<time>-<label>``, free so far."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{label}"
    path, count = Path("runs") / stem, 1
    while path.exists():
        count += 1
        path = Path("runs") / f"{stem}-{count}"
    return path


def save_arrays(path: Path, arrays: Arrays, metadata: Mapping[str, str]) -> None:
    """Write arrays as safetensors, by way of another name, so that the file is there whole or not at all."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    unfinished = path.with_suffix(".part")
    try:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, unfinished, dict(metadata))
    except SafetensorError as error:
        raise OSError(None, str(error), str(path)) from error
    os.replace(unfinished, path)


def load_arrays(path: Path) -> dict[str, NDArray[np.float32]]:
    """Read what ``save_arrays`` wrote, or another safetensors file of float32 arrays.

    Raises:
        ConfigError: it is not there, or not such a file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        arrays: dict[str, NDArray[np.float32]] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"cannot read parameters from {path}: {error}") from error
    return arrays
