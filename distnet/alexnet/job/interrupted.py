"""Where an interrupted run goes on: its configuration, its newest checkpoint, and the records up to that."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distnet.alexnet.job.config import LOCAL, TrainConfig, read_config_file
from distnet.alexnet.job.folder import CHECKPOINTS, Record, find_run
from distnet.alexnet.job.progress import WorkerProgress
from distnet.errors import ConfigError

__all__ = ["ResumePoint", "config_to_resume", "resume_point"]

_MAY_CHANGE = ("checkpoint_every", "evaluate", "timeout")
"""Settings that change nothing about what is computed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ResumePoint:
    """Where a run goes on.

    Attributes:
        checkpoint: the newest one; None where there is none yet, and the run begins anew in its folder.
        updates: in the parameters of the checkpoint: of the shard that has the fewest.
        steps: by rank, the steps that are in it.
        records: what ``metrics.jsonl`` holds of the time before the checkpoint, in order.
        cut: how many later records it held; what they told of will happen once more.
    """

    checkpoint: Path | None
    updates: int
    steps: Mapping[int, int]
    records: Sequence[Record]
    cut: int

    @property
    def evaluations(self) -> list[Record]:
        """The evaluations so far."""
        return [record for record in self.records if record["kind"] == "evaluation"]

    def worker(self, rank: int, batch_size: int) -> WorkerProgress:
        """Return how far a rank is, by its records and the checkpoint."""
        worker = WorkerProgress(rank)
        for record in self.records:
            if record["kind"] == "worker" and record["rank"] == rank:
                worker.record(record)
        worker.history.clear()  # its times are another process's
        worker.state = "starting"
        worker.step = self.steps.get(rank, 0)
        worker.examples = worker.step * batch_size
        return worker

    def seconds(self) -> float:
        """Return the seconds of training that are in the records, without the time between two starts."""
        parts: list[list[float]] = [[]]
        for record in self.records:
            if record["kind"] == "resumed":
                parts.append([])
            elif record["kind"] == "worker":
                parts[-1].append(record["time_s"])
        return sum(max(part) - min(part) for part in parts if part)


def config_to_resume(path: Path, given: Mapping[str, Any]) -> TrainConfig:
    """Return the configuration of an interrupted run, with what may be given anew.

    Raises:
        ConfigError: there is no such run, it has finished, or its kind cannot be resumed; or a setting was given that
            would make another run of it.
    """
    folder = find_run(path)
    if (folder / "summary.json").exists():
        raise ConfigError(
            f"the run in {path} has finished; there is nothing to resume. To train longer, start another run: "
            f"distnet train --config {folder / 'config.toml'} {_longer(folder)} --out FOLDER"
        )
    config = TrainConfig.from_mapping(read_config_file(folder / "config.toml"))
    if config.semantics == LOCAL:
        raise ConfigError(
            f"the run in {path} is the baseline ('{LOCAL}'), which has no server and writes its checkpoint only at its "
            "end: it cannot be resumed; start it anew with: "
            f"distnet train --config {path / 'config.toml'} --out FOLDER"
        )
    changes = {name: value for name, value in given.items() if value is not None}
    if fixed := [name for name in changes if name not in _MAY_CHANGE]:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in fixed)
        raise ConfigError(f"--resume goes on with the run's own settings; leave out {options}, or start another run")
    return dataclasses.replace(config, **changes)


def _longer(folder: Path) -> str:
    """Return the option, with a number, that makes a run twice as long."""
    config = TrainConfig.from_mapping(read_config_file(folder / "config.toml"))
    if config.steps is not None:
        return f"--steps {2 * config.steps}"
    return "--epochs N" if config.epochs is None else f"--epochs {2 * config.epochs:g}"


def resume_point(path: Path, batch_size: int) -> ResumePoint:
    """Return where the run in a folder goes on: at its newest checkpoint.

    Args:
        path: the run's folder.
        batch_size: of one worker's step.

    Raises:
        ConfigError: the checkpoint cannot be read, or is not one of an AlexNet run.
    """
    from distnet import checkpoint
    from distnet.alexnet.place import Place

    newest = checkpoint.CheckpointFolder(path / CHECKPOINTS).latest()
    if newest is None:
        records = _records(path / "metrics.jsonl")
        return ResumePoint(checkpoint=None, updates=0, steps={}, records=[], cut=len(records))
    found = checkpoint.load(newest)
    steps = {rank: Place.from_bytes(data).step for rank, data in found.saved.items()}
    return point_at(
        newest, min(found.versions), steps, _records(path / "metrics.jsonl"), examples=sum(steps.values()) * batch_size
    )


def point_at(
    checkpoint: Path, updates: int, steps: Mapping[int, int], records: Sequence[Record], *, examples: int
) -> ResumePoint:
    """Return the point of a checkpoint, with those of the records that are of the time before it."""

    def is_before(record: Record) -> bool:
        kind = record["kind"]
        if kind == "worker":
            return bool(record["step"] <= steps.get(record["rank"], 0))
        if kind == "server":
            return bool(record["updates"] <= updates)
        return bool(record["examples"] <= examples) if kind == "evaluation" else True

    kept = [record for record in records if is_before(record)]
    return ResumePoint(
        checkpoint=checkpoint, updates=updates, steps=dict(steps), records=kept, cut=len(records) - len(kept)
    )


def _records(path: Path) -> list[Record]:
    """Return a run's records. What a killed launcher left of a last line is none."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    return list(itertools.chain.from_iterable(_record(line) for line in lines))


def _record(line: bytes) -> list[Record]:
    try:
        record = json.loads(line)
    except ValueError:
        return []
    return [record] if isinstance(record, dict) and "kind" in record else []
