"""``distnet worker``: one AlexNet worker, against servers on this or another machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from distnet.commands.options import config_of, config_options, json_option
from distnet.errors import ConfigError, DistNetError
from distnet.launch.extras import error_record

__all__ = ["worker"]


@click.command(short_help="One AlexNet worker, against servers anywhere.")
@config_options("servers", "optimizer", "rate", "evaluate")
@click.option("--address", metavar="ADDRESS", help="Of the servers, as `distnet serve` printed it.")
@click.option("--rank", type=int, default=0, show_default=True, help="Of this worker: 0 to workers - 1, each once.")
@click.option("--local", type=click.Path(path_type=Path), hidden=True)
@click.option("--snapshot-steps", type=int, default=0, hidden=True)
@json_option
def worker(
    config_file: Path | None,
    address: str | None,
    rank: int,
    local: Path | None,
    snapshot_steps: int,
    as_json: bool,
    **given: Any,
) -> int:
    """Train AlexNet as one worker, against servers that `distnet serve` started.

    Every worker of a job is given the same settings, and a rank of its own. --workers says how many share the work.

    \b
    Example, on two machines:
      one$ distnet serve --address tcp://0.0.0.0:7400 --workers 2 --recipe default --epochs 10
      one$ distnet worker --address tcp://one:7400 --workers 2 --rank 0 --epochs 10
      two$ distnet worker --address tcp://one:7400 --workers 2 --rank 1 --epochs 10
    """
    from distnet.launch.worker_process import local_process, worker_process

    config = config_of(config_file, given)
    say = _say_json if as_json else _say_plainly
    try:
        if local is not None:
            local_process(config, folder=local, snapshot_steps=snapshot_steps, say=say)
        elif address is None:
            raise ConfigError("--address is missing; give the address that `distnet serve` printed")
        else:
            worker_process(config, address=address, rank=rank, say=say)
    except (DistNetError, ArithmeticError, ModuleNotFoundError) as error:
        if not as_json:
            raise
        _say_json(error_record(error))
        return 2 if isinstance(error, ConfigError) else 1
    return 0


def _say_json(record: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


def _say_plainly(record: dict[str, Any]) -> None:
    if record["kind"] == "connected":
        click.echo(f"worker {record['rank']}: connected ({record['transport']}), {record['steps']:,} steps to do")
    elif record["kind"] == "worker":
        words = f"step {record['step']:,} · loss {record['loss']:.3f} · staleness {record['staleness']}"
        click.echo(f"worker {record['rank']}: {words}")
    elif record["kind"] == "finished":
        rate = record["examples"] / record["seconds"] if record["seconds"] else 0.0
        click.echo(f"worker {record['rank']}: done, {record['examples']:,} examples at {rate:,.0f} a second")
