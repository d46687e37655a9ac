"""A run's folder: everything needed to understand the run, to go on with it, and to run it again.

::

    config.toml              the full configuration; ``distnet train --config`` runs it again
    metrics.jsonl            one record a line: workers' steps, the server's counters, evaluations, resumes
    events.out.tfevents.*    the same numbers for TensorBoard, a file for each start
    checkpoints/             the newest checkpoints, and ``latest``; see ``distnet.checkpoint``
    summary.json             accuracy, time, rate, updates, staleness, bytes, versions; a run without was cut off
    logs/                    what each child process wrote on its standard error
    scratch/                 averaged parameters on their way to evaluation, and temporary files; of a run that was cut
                             off what waits to be scored, else removed at the end

Every record has its ``kind`` and ``time``, seconds since the epoch; a ``time_s`` beside it is the machine's monotonic
clock, for differences. A ``resumed`` record says at which steps a run went on; what had been recorded of later steps
was cut then, and follows once more.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from distnet._private.arrays import Array
from distnet.alexnet.job.config import TrainConfig, write_config_file
from distnet.errors import ConfigError, DistNetError

__all__ = [
    "CHECKPOINTS",
    "FolderError",
    "Record",
    "RunFolder",
    "find_run",
    "load_scored",
    "new_run_path",
    "save_scored",
]


Record = dict[str, Any]

CHECKPOINTS = "checkpoints"
"""The name of the folder of checkpoints in a run's folder."""

_WAITING = re.compile(r"(\d+)-(\d+\.\d+)\.npz")  # examples and seconds of training


class FolderError(DistNetError):
    """A run's folder cannot be written: no room, no permission, or no longer there."""


class RunFolder:
    """The folder of one run, open for writing. A run that fails before anything was recorded leaves no folder.

    Args:
        path: the folder.
        config: the run's configuration.
        resumed: the records to go on after, of a run that was interrupted; None for a new run.

    Raises:
        ConfigError: the folder holds a run already, or another process writes to it.
        FolderError: it cannot be written.
    """

    def __init__(self, path: Path, config: TrainConfig, *, resumed: Sequence[Record] | None = None) -> None:
        self.path = path
        self.scratch = path / "scratch"
        self._recorded = resumed is not None  # then the folder is not this run's to remove
        self._finished = False
        if resumed is None and (path / "config.toml").exists():
            raise ConfigError(
                f"{path} holds a run already; give another folder with --out, go on with it with --resume {path} if it "
                "was interrupted, or remove it"
            )
        self._made = [folder for folder in path.parents if not folder.exists()]  # with the folder, innermost first
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = _locked(path)
        try:
            with writing(path):
                (path / "logs").mkdir(exist_ok=True)
                self.scratch.mkdir(exist_ok=True)
                write_config_file(path / "config.toml", config)
                if resumed is not None:
                    _write_records(path / "metrics.jsonl", resumed)
                self._metrics: IO[str] = (path / "metrics.jsonl").open(
                    "w" if resumed is None else "a", encoding="utf-8"
                )
                self._events = _EventFile(path)
        except BaseException:
            if not self._recorded:
                self._discard()
            os.close(self._lock)
            raise

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
        if kind is not None and not self._recorded:
            self._discard()

    @property
    def has_records(self) -> bool:
        """Whether anything was recorded, by this start of the run or an earlier one."""
        return self._recorded

    @property
    def checkpoints(self) -> Path:
        """The folder of the run's checkpoints."""
        return self.path / CHECKPOINTS

    def log(self, name: str) -> Path:
        """Return the path of a child's log."""
        return self.path / "logs" / f"{name.replace(' ', '-')}.log"

    def record(self, kind: str, values: Mapping[str, Any], *, step: int) -> None:
        """Add a record to ``metrics.jsonl``, and its numbers to the event file under ``kind/name``."""
        self._recorded = True
        with writing(self.path):
            record = {"kind": kind, "time": round(time.time(), 3), **values}
            self._metrics.write(json.dumps(record) + "\n")
            self._metrics.flush()
            label = f"{kind} {values['rank']}" if "rank" in values else kind
            self._events.write(label, values, step)

    def keep_to_score(self, arrays: Mapping[str, Array], *, examples: int, seconds: float) -> Path:
        """Keep parameters of so many examples and seconds of training until they are scored."""
        path = self.scratch / f"{examples}-{seconds:.3f}.npz"
        with writing(self.path):
            save_scored(path, arrays)
        return path

    def waiting_to_be_scored(self, *, at_most_examples: int) -> list[tuple[Path, int, float]]:
        """Return what an interrupted start kept and did not score: path, examples and seconds, by rising examples.

        Parameters of more examples than ``at_most_examples`` are removed: the run comes there once more.
        """
        found = []
        for path in list(self.scratch.iterdir()):
            match = _WAITING.fullmatch(path.name)
            if match is None or int(match[1]) > at_most_examples:
                with contextlib.suppress(OSError):
                    path.unlink()
            else:
                found.append((path, int(match[1]), float(match[2])))
        return sorted(found, key=lambda one: one[1])

    def summary(self, values: Mapping[str, Any]) -> None:
        """Write ``summary.json``, whole or not at all."""
        with writing(self.path):
            unfinished = self.path / "summary.json.part"
            unfinished.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            unfinished.replace(self.path / "summary.json")
        self._finished = True

    def close(self) -> None:
        """Close the files and remove the scratch. What could not be written was an error before.

        What waits to be scored stays, if the run has not finished.
        """
        if self._finished or not self._recorded:
            shutil.rmtree(self.scratch, ignore_errors=True)
        else:
            self._remove_all_but_waiting()
        with contextlib.suppress(OSError):
            self._metrics.close()
        with contextlib.suppress(OSError):
            self._events.close()
        os.close(self._lock)

    def _remove_all_but_waiting(self) -> None:
        with contextlib.suppress(OSError):
            for path in list(self.scratch.iterdir()):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                elif not _WAITING.fullmatch(path.name):
                    path.unlink()
            self.scratch.rmdir()  # fails where something waits, which stays

    def _discard(self) -> None:
        for folder in (self.path / "logs", self.scratch):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.checkpoints.rmdir()  # one that is not empty is not this run's
        with contextlib.suppress(OSError):
            for file in [
                self.path / "config.toml",
                self.path / "metrics.jsonl",
                *self.path.glob("events.out.tfevents.*"),
            ]:
                file.unlink(missing_ok=True)
            for folder in (self.path, *self._made):
                folder.rmdir()  # fails where something else lies in it, which stays


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
            if isinstance(value, (int, float)) and name not in ("rank", "time", "time_s")
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


def find_run(path: Path) -> Path:
    """Return the folder of a run.

    Raises:
        ConfigError: it is no such folder.
    """
    if not (path / "config.toml").is_file():
        raise ConfigError(f"{path} holds no run; expected a folder that `distnet train` wrote, with its config.toml")
    return path


def save_scored(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write parameters for the evaluator, whole or not at all: NumPy's own format, which only this run reads."""
    unfinished = path.with_suffix(".part")
    by_name: dict[str, Any] = dict(arrays)
    with unfinished.open("wb") as file:
        np.savez(file, **by_name)
    unfinished.replace(path)


def load_scored(path: Path) -> dict[str, Array]:
    """Read what ``save_scored`` wrote.

    Raises:
        ConfigError: it is not there, or not such a file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(f"cannot read parameters from {path}: {error}") from error


def _locked(path: Path) -> int:
    """Return a descriptor of a folder that no other run has while this process lives or until it is closed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigError(f"another process is training in {path}; wait for its end, or stop it") from error
    except OSError:
        pass  # a file system without locks
    return descriptor


def _write_records(path: Path, records: Sequence[Record]) -> None:
    unfinished = path.with_suffix(".part")
    unfinished.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    unfinished.replace(path)
