"""What is left of a run in numbers: the content of ``summary.json``."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from distnet.alexnet.job.config import TrainConfig
from distnet.alexnet.job.plan import Plan, cores
from distnet.alexnet.job.progress import JobProgress, WorkerProgress, percentiles

__all__ = ["machine", "summarise", "versions"]

_PACKAGES = (
    "distnet-ps",
    "numpy",
    "tensorflow",
    "tensorflow-cpu",
    "keras",
    "safetensors",
    "tensorboardX",
    "click",
    "rich",
)


def summarise(
    *,
    config: TrainConfig,
    plan: Plan,
    data: Mapping[str, Any],
    progress: JobProgress,
    stats: Mapping[str, Any],
    transports: Sequence[str],
    evaluations: Sequence[Mapping[str, Any]],
    seconds_in_all: float,
    started: float,
    resumed_at_examples: Sequence[int] = (),
) -> dict[str, Any]:
    """Return the summary of a finished run.

    Staleness percentiles are those of the server's own histogram where there is a server. Of a run that was resumed,
    ``seconds`` are those of all its parts; the rate, the staleness, the bytes and the server's counters (but for its
    updates) are those of the last part.

    Args:
        config, plan, data, progress, stats, transports, evaluations: the run's.
        seconds_in_all: from the start of the last part to its end.
        started: when that was, in seconds since the epoch.
        resumed_at_examples: where it was resumed, in examples of all workers; empty for a run in one part.
    """
    rate, together_s = progress.rate_together()
    counts = _staleness_counts(stats) or dict(progress.staleness())
    last = evaluations[-1] if evaluations else None
    return {
        "accuracy": last["accuracy"] if last else None,
        "loss": last["loss"] if last else None,
        "seconds": round(progress.seconds(), 3),
        "seconds_in_all": round(seconds_in_all, 3),
        "started": round(started, 3),
        "ended": round(started + seconds_in_all, 3),
        "resumed_at_examples": list(resumed_at_examples),
        "examples_per_s": round(rate, 2),
        "examples_per_s_over_s": round(together_s, 3),
        "examples": progress.examples,
        "epochs": round(progress.examples / plan.epoch_examples, 4),
        "steps": sum(worker.step for worker in progress.workers),
        "updates": stats.get("updates", plan.updates),
        "effective_batch": plan.effective_batch,
        "rate_rule": plan.rate_rule,
        "staleness": {**percentiles(counts), "counts": {str(value): counts[value] for value in sorted(counts)}},
        "bytes_received": stats.get("bytes_received", 0),
        "bytes_sent": stats.get("bytes_sent", 0),
        "transport": "+".join(transports),
        "workers": [_of_worker(worker) for worker in progress.workers],
        "server": dict(stats),
        "evaluations": [
            {**result, "epochs": round(result["examples"] / plan.epoch_examples, 4)} for result in evaluations
        ],
        "data": dict(data),
        "threads_per_worker": plan.threads,
        "batch_size": plan.batch_size,
        "config": config.to_mapping(),
        "machine": machine(),
        "versions": versions(),
    }


def machine() -> dict[str, Any]:
    """Return what this machine is."""
    release = ".".join(platform.release().split(".")[:2])  # the rest names whose build it is
    return {
        "processor": _processor(),
        "cores": cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {release}",
    }


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that matter to a run."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _of_worker(worker: WorkerProgress) -> dict[str, Any]:
    return {
        "rank": worker.rank,
        "steps": worker.step,
        "examples": worker.examples,
        "computing_s": round(worker.computing_s, 3),
        "exchanging_s": round(worker.exchanging_s, 3),
    }


def _staleness_counts(stats: Mapping[str, Any]) -> dict[int, int]:
    counts = stats.get("staleness", {}).get("counts", [])
    return {value: count for value, count in enumerate(counts) if count}


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
