"""``distnet worker``: one AlexNet worker, against servers on this or another machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import click

from distnet._private.quantities import show_seconds
from distnet.alexnet.job.progress import WorkerProgress
from distnet.cli.options import SERVER_ALONE, config_of, config_options, json_option
from distnet.cli.sections import SectionedCommand
from distnet.errors import ConfigError, DistNetError
from distnet.launch.children.records import error_record, say_record

__all__ = ["worker"]

_LINE_EVERY_S = 10.0


@click.command(cls=SectionedCommand, short_help="One AlexNet worker, against servers anywhere.")
@config_options(*SERVER_ALONE, "evaluate")
@click.option("--address", metavar="ADDRESS", help="Of the servers, as `distnet serve` printed it.")
@click.option("--rank", type=int, required=True, help="Of this worker: 0 to workers - 1, each once.")
@click.option(
    "--connect-timeout",
    type=float,
    default=300.0,
    show_default=True,
    help="Seconds to wait for servers that are not there yet; 0: one attempt.",
)
@click.option("--local", type=click.Path(path_type=Path), hidden=True)
@click.option("--snapshot-steps", type=int, default=0, hidden=True)
@json_option
def worker(
    config_file: Path | None,
    address: str | None,
    rank: int,
    connect_timeout: float,
    local: Path | None,
    snapshot_steps: int,
    as_json: bool,
    **given: Any,
) -> int:
    """Train AlexNet as one worker, against servers that `distnet serve` started.

    Every worker of a job is given the same settings, and a rank of its own. --workers says how many share the work. A
    worker uses all cores of its machine, unless --threads-per-worker says otherwise.

    \b
    Example, on two machines:
      one$ distnet serve --address tcp://0.0.0.0:7400 --workers 2 --recipe default --epochs 10
      one$ distnet worker --address tcp://one:7400 --workers 2 --rank 0 --epochs 10
      two$ distnet worker --address tcp://one:7400 --workers 2 --rank 1 --epochs 10
    """
    from distnet.alexnet.job.plan import cores
    from distnet.alexnet.job.worker_process import local_process, worker_process

    config = config_of(config_file, given)
    if config.threads_per_worker is None:  # by itself, a worker has its machine to itself
        config = dataclasses.replace(config, threads_per_worker=cores())
    say = say_record if as_json else _Plain(rank)
    try:
        if local is not None:
            local_process(config, folder=local, snapshot_steps=snapshot_steps, say=say)
        elif address is None:
            raise ConfigError("--address is missing; give the address that `distnet serve` printed")
        else:
            worker_process(config, address=address, rank=rank, connect_timeout=connect_timeout, say=say)
    except (DistNetError, ArithmeticError, ModuleNotFoundError) as error:
        if not as_json:
            raise
        say_record(error_record(error))
        return 2 if isinstance(error, ConfigError) else 1
    return 0


class _Plain:
    """Says how it goes in lines for people: the first steps, then a line every ten seconds."""

    def __init__(self, rank: int) -> None:
        self._worker = WorkerProgress(rank)
        self._steps = 0
        self._next_s = 0.0

    def __call__(self, record: dict[str, Any]) -> None:
        name = f"worker {self._worker.rank}"
        if record["kind"] == "connected":
            self._steps = record["steps"]
            click.echo(f"{name}: connected ({record['transport']}), {self._steps:,} steps to do")
        elif record["kind"] == "notice":
            click.echo(f"{name}: {record['text']}", err=True)
        elif record["kind"] == "worker":
            self._worker.record(record)
            if record["time_s"] >= self._next_s:
                self._next_s = record["time_s"] + _LINE_EVERY_S
                click.echo(f"{name}: {self._progress()}")
        elif record["kind"] == "finished":
            rate = record["examples"] / record["seconds"] if record["seconds"] else 0.0
            click.echo(f"{name}: done, {record['examples']:,} examples at {rate:,.0f} a second")

    def _progress(self) -> str:
        worker = self._worker
        left = (self._steps - worker.step) * worker.examples / worker.step / worker.rate if worker.rate else None
        return (
            f"step {worker.step:,} of {self._steps:,} · loss {worker.loss:.3f} · staleness {worker.last_staleness} · "
            f"{worker.rate:,.0f} examples/s · {show_seconds(left)} left"
        )
