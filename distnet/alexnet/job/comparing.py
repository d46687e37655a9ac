"""The comparison's runs: every way of training, for every seed, in turn, in one folder; finished ones are kept.

::

    FOLDER/runs/<way>-seed<seed>/   a run's folder each
    FOLDER/compare.json compare.md report.html *.png
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from distnet._private.quantities import show_seconds
from distnet.alexnet.job.config import KERAS, LOCAL, TENSORFLOW, TrainConfig
from distnet.alexnet.job.display import Display
from distnet.alexnet.job.folder import FolderError, writing
from distnet.alexnet.job.plan import cores
from distnet.alexnet.job.training import train
from distnet.errors import ConfigError
from distnet.semantics import SEMANTICS
from distnet.settings.job import DEFAULT_SEMANTICS

__all__ = ["ALL_CORES", "ONE_WORKER", "Way", "finished_runs", "run_comparison", "run_once", "ways_to_train"]

ALL_CORES = "baseline, all cores"
ONE_WORKER = "baseline, one worker's cores"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Way:
    """One way to train: its name in the report, in file names, and its configuration for a seed."""

    name: str
    label: str
    config: TrainConfig

    def for_seed(self, seed: int) -> TrainConfig:
        """Return the configuration with that seed."""
        return dataclasses.replace(self.config, seed=seed)


def ways_to_train(config: TrainConfig, semantics: Sequence[str] = tuple(SEMANTICS)) -> list[Way]:
    """Return both baselines and each of the semantics, as variations of one configuration.

    Where one worker has every core, there is one baseline. A configuration whose trainer is Keras gets one way more:
    that trainer under the default semantics, or the first that was asked for, beside the TensorFlow worker's ways.
    """
    for name in semantics:
        if name not in SEMANTICS:
            raise ConfigError(f"no semantics is named {name!r}; expected some of {', '.join(SEMANTICS)}")
    threads = config.threads_per_worker or max(1, cores() // config.workers)
    by_fit, config = config.trainer == KERAS, dataclasses.replace(config, trainer=TENSORFLOW)
    alone = dataclasses.replace(config, semantics=LOCAL, workers=1, servers=None, transport="auto")
    ways = [
        Way(name=ALL_CORES, label="baseline-all-cores", config=dataclasses.replace(alone, threads_per_worker=cores())),
        Way(
            name=ONE_WORKER, label="baseline-one-worker", config=dataclasses.replace(alone, threads_per_worker=threads)
        ),
    ]
    if threads == cores():
        del ways[1]
    for name in semantics:
        fewest = SEMANTICS[name].minimum_servers
        servers = config.servers if config.servers is None or config.servers >= fewest else fewest
        changed = dataclasses.replace(config, semantics=name, threads_per_worker=threads, servers=servers)
        ways.append(Way(name=name, label=name, config=changed))
    if by_fit and semantics:
        name = DEFAULT_SEMANTICS if DEFAULT_SEMANTICS in semantics else semantics[0]
        fitted = dataclasses.replace(next(way.config for way in ways if way.name == name), trainer=KERAS)
        ways.append(Way(name=f"{name}, Keras", label=f"{name}-keras", config=fitted))
    return ways


def run_comparison(
    ways: Sequence[Way], seeds: Sequence[int], folder: Path, display: Display
) -> dict[str, list[dict[str, Any]]]:
    """Run what has not been run yet; returns the summaries of every way, a summary for each seed.

    Seed by seed rather than way by way, so that a drift of the machine's speed meets all ways alike. Each seed begins
    with another way, so that none is always the first or the last.
    """
    summaries: dict[str, list[dict[str, Any]]] = {way.name: [] for way in ways}
    starts = [turn % max(1, len(ways)) for turn in range(len(seeds))]
    runs = [(way, seed) for seed, start in zip(seeds, starts, strict=True) for way in [*ways[start:], *ways[:start]]]
    spent_s: list[float] = []
    for count, (way, seed) in enumerate(runs):
        left = f"about {show_seconds(fmean(spent_s) * (len(runs) - count))} left in all" if spent_s else ""
        summary = run_once(way, seed, folder, display, name=f"run {count + 1} of {len(runs)}", left=left)
        spent_s.append(summary["seconds_in_all"])
        summaries[way.name].append(summary)
    return summaries


def run_once(
    way: Way, seed: int, folder: Path, display: Display, *, name: str = "run", left: str = ""
) -> dict[str, Any]:
    """Return the summary of one way of training with one seed: the finished run's in the folder, or a new one's.

    A run that was cut off starts anew. The display calls it ``name`` and says how much is ``left``.
    """
    path = _run_path(folder, way, seed)
    summary = _finished(path, way.for_seed(seed))
    name = f"{name}: {way.name}, seed {seed}"
    if summary is not None:
        display.note(f"{name}: finished before, kept")
        return summary
    display.note(f"{name}, {left}" if left else name)
    _discard_unfinished(path)
    summary = train(way.for_seed(seed), path, display)
    display.note(f"  accuracy {_percent(summary['accuracy'])}, {summary['examples_per_s']:,.0f} examples/s")
    return summary


def finished_runs(ways: Sequence[Way], folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the summaries of the finished runs in a folder, by way of training, by rising seed; others are left out.

    Raises:
        ConfigError: a run has other settings than its way of training.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for way in ways:
        seeds = sorted(int(path.name.rpartition("-seed")[2]) for path in (folder / "runs").glob(f"{way.label}-seed*"))
        summaries = [_finished(_run_path(folder, way, seed), way.for_seed(seed)) for seed in seeds]
        if known := [summary for summary in summaries if summary is not None]:
            found[way.name] = known
    return found


def _run_path(folder: Path, way: Way, seed: int) -> Path:
    return folder / "runs" / f"{way.label}-seed{seed}"


def _finished(path: Path, config: TrainConfig) -> dict[str, Any] | None:
    """Return the summary of a run that was finished before with the same configuration."""
    try:
        summary: dict[str, Any] = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise FolderError(f"cannot read {path / 'summary.json'}: {error}; remove {path} to run it again") from error
    if summary["config"] != config.to_mapping():
        raise ConfigError(
            f"{path} holds a run with other settings; give the same settings to go on, or another folder with --out"
        )
    return summary


def _discard_unfinished(path: Path) -> None:
    """Remove what an interrupted run left, and nothing that is not a run."""
    if (path / "config.toml").exists():
        with writing(path):
            shutil.rmtree(path)


def _percent(accuracy: float | None) -> str:
    return "–" if accuracy is None else f"{accuracy:.2%}"
