"""What one AlexNet worker does, whoever started it: load, connect, train, and tell how it goes as records."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distnet.alexnet.job.config import KERAS, TrainConfig
from distnet.alexnet.job.folder import CHECKPOINTS, save_scored
from distnet.alexnet.job.plan import Plan, make_optimizer, make_plan, recipe_of
from distnet.errors import ConfigError

if TYPE_CHECKING:
    from distnet.alexnet.loops import Snapshot as Middle
    from distnet.alexnet.loops import StepRecord, TrainingResult
    from distnet.alexnet.network_tensorflow import Precision
    from distnet.client import Client
    from distnet.data.cifar10 import TrainingData

__all__ = ["Say", "local_process", "worker_process"]

Say = Callable[[dict[str, Any]], None]
"""Takes one record, a dict that JSON can hold, with a ``kind``."""

_RECORD_EVERY_S = 0.5


class StepRecorder:
    """Joins the records of steps to about two a second: a launcher needs no more, and a step should cost no writing."""

    def __init__(self, rank: int, steps: int, say: Say) -> None:
        self._rank, self._steps, self._say = rank, steps, say
        self._said_s = 0.0
        self._computing_s = self._exchanging_s = 0.0
        self._staleness: Counter[int] = Counter()

    def __call__(self, record: StepRecord) -> None:
        """Take in one step; now and then, and at the last one, say what was taken in."""
        self._computing_s += record.computing_s
        self._exchanging_s += record.exchanging_s
        self._staleness[record.staleness] += 1
        now_s = time.monotonic()
        if now_s - self._said_s < _RECORD_EVERY_S and record.step < self._steps:
            return
        self._said_s = now_s
        self._say(
            {
                "kind": "worker",
                "rank": self._rank,
                "time": round(time.time(), 3),
                "time_s": now_s,
                "step": record.step,
                "examples": record.examples,
                "loss": record.loss,
                "staleness": record.staleness,
                "staleness_counts": dict(self._staleness),
                "version": record.version,
                "computing_s": self._computing_s,
                "exchanging_s": self._exchanging_s,
            }
        )
        self._computing_s = self._exchanging_s = 0.0
        self._staleness.clear()


def worker_process(config: TrainConfig, *, address: str, rank: int, connect_timeout: float, say: Say) -> None:
    """Be worker ``rank`` of ``config.workers`` against the servers at ``address``, which may start that much later.

    Raises:
        DistNetError: whatever goes wrong with the data, the connection or a gradient.
    """
    if not 0 <= rank < config.workers:
        raise ConfigError(f"rank is {rank}; expected 0 to {config.workers - 1} with {config.workers} workers")
    import distnet
    from distnet.alexnet.network import initial_parameters

    data, plan = _prepare(config)
    client = distnet.connect(
        address,
        rank=rank,
        timeout=config.timeout,
        connect_timeout=connect_timeout,
        transport=config.transport,
        parameters=initial_parameters(config.seed),  # for a server that was started without
    )
    with client:
        steps = plan.steps_of(rank, config.workers)
        if client.workers != config.workers:
            text = (
                f"the server expects {client.workers} workers, and this one was started for --workers {config.workers}"
            )
            say({"kind": "notice", "rank": rank, "text": f"{text}: start all with the same"})
        say({"kind": "connected", "rank": rank, "transport": client.transport, "steps": steps})
        result = _train(
            config,
            client,
            plan,
            data=data,
            recipe=recipe_of(config),
            rank=rank,
            workers=config.workers,
            steps=steps,
            seed=config.seed,
            batch_size=plan.batch_size,
            threads=plan.threads,
            precision=_precision(config),
            semantics=config.semantics,
            on_step=StepRecorder(rank, steps, say),
        )
    say(_finished(rank, result))


def _train(config: TrainConfig, client: Client, plan: Plan, **arguments: Any) -> TrainingResult:
    """Train as the configuration's trainer does; its framework is imported here, so a missing server shows first."""
    if config.trainer == KERAS:
        from distnet.alexnet.fit import train_by_fit

        return train_by_fit(client, optimizer=make_optimizer(config, plan), **arguments)
    from distnet.alexnet.loops import train_worker

    return train_worker(client, overlap=config.overlap, **arguments)


def local_process(config: TrainConfig, *, folder: Path, snapshot_steps: int, say: Say) -> None:
    """Train alone, without a server: the baseline.

    What is to be scored is written into ``folder``, the scratch of a run's folder, and a checkpoint at the end into the
    run's checkpoints.
    """
    from distnet.alexnet.loops import train_local
    from distnet.checkpoint import CheckpointFolder
    from distnet.snapshot import Snapshot

    data, plan = _prepare(config)

    def keep(snapshot: Middle) -> None:
        path = folder / f"{snapshot.examples}.npz"
        save_scored(path, snapshot.parameters)
        say({"kind": "snapshot", "examples": snapshot.examples, "path": str(path), "time_s": time.monotonic()})

    optimizer = make_optimizer(config, plan)
    say({"kind": "connected", "rank": 0, "transport": "none", "steps": plan.steps})
    result = train_local(
        data=data,
        recipe=recipe_of(config),
        steps=plan.steps,
        seed=config.seed,
        batch_size=plan.batch_size,
        threads=plan.threads,
        precision=_precision(config),
        optimizer=optimizer,
        on_step=StepRecorder(0, plan.steps, say),
        snapshot_steps=snapshot_steps,
        on_snapshot=keep,
    )
    CheckpointFolder(folder.parent / CHECKPOINTS).write(
        Snapshot(
            parameters=result.parameters,
            optimizer_state=result.state,
            ema=result.ema,
            versions=(result.steps,),
            round=None,
            optimizer=optimizer.to_spec(),
        )
    )
    save_scored(folder / "last.npz", result.ema or result.parameters)
    say(_finished(0, result))


def _finished(rank: int, result: TrainingResult) -> dict[str, Any]:
    done = {"steps": result.steps, "examples": result.examples, "seconds": result.seconds}
    return {"kind": "finished", "rank": rank, **done}


def _precision(config: TrainConfig) -> Precision:
    return "bfloat16" if config.precision == "bfloat16" else "float32"


def _prepare(config: TrainConfig) -> tuple[TrainingData, Plan]:
    from distnet.data.cifar10 import load_data

    data = load_data(config.data, holdout=config.holdout or 0)
    return data, make_plan(config, len(data.train_images))
