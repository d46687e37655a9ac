"""``distnet run``: a user's own script as workers, beside servers."""

from __future__ import annotations

import json
from typing import Any

import click

from distnet.commands.options import json_option
from distnet.commands.server_options import make_server, server_options

__all__ = ["run"]


@click.command(
    short_help="A script of your own as workers, beside servers.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@server_options(workers_flag="-n", default_address="shm://")
@click.option("--threads-per-worker", type=int, help="Threads of each worker's numeric libraries.")
@json_option
@click.argument("script", nargs=-1, required=True, type=click.UNPROCESSED, metavar="SCRIPT [ARGUMENTS]...")
def run(script: tuple[str, ...], threads_per_worker: int | None, as_json: bool, workers: int, **server: Any) -> None:
    """Run SCRIPT as workers beside servers on this machine.

    Every copy of the script calls `distnet.connect()` without arguments, and learns the address and its rank from its
    environment; rank 0 brings the model. What they write appears here with the worker's name before it.

    \b
    Example:
      distnet run -n 2 --semantics async-lockfree --optimizer momentum --learning-rate 0.05 train.py --epochs 3
    """
    from distnet.launch.scripts import run_script

    def show(name: str, stream: str, line: str) -> None:
        click.echo(f"[{name}] {line}", err=as_json or stream == "stderr")

    with make_server(workers=workers, **server) as started:
        result = run_script(started, script, workers=workers, threads=threads_per_worker, show=show)
    if as_json:
        click.echo(json.dumps(result))
    else:
        click.echo(f"done: {result['server']['updates']:,} updates in {result['seconds']:.1f} s", err=True)
