"""``distnet run``: a user's own script as workers, beside servers or joining some."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from distnet.commands.options import json_option
from distnet.commands.server_options import make_server, server_options
from distnet.errors import ConfigError

if TYPE_CHECKING:
    from distnet.launch.failures import Reaction
    from distnet.launch.output import Output
    from distnet.launch.resuming import Resumption
    from distnet.launch.scripts import ScriptJob
    from distnet.server import ParameterServer

__all__ = ["run"]

_JOINING = frozenset(
    {"join", "ranks", "workers", "threads_per_worker", "max_restarts", "then", "framework_logs", "as_json", "script"}
)


@click.command(
    short_help="A script of your own as workers, beside servers.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@server_options(workers_flag="-n", default_address="shm://")
@click.option("--threads-per-worker", type=int, help="Threads of each worker's numeric libraries.")
@click.option(
    "--max-restarts",
    type=int,
    default=0,
    show_default=True,
    metavar="N",
    help="Start a worker that failed again, so often; first after 1 s, then each time after twice as long.",
)
@click.option(
    "--when-a-worker-fails",
    "then",
    type=click.Choice(["stop", "continue"]),
    help="What the others do then.  [default: stop in sync unless --on-loss is given, else continue]",
)
@click.option(
    "--join", metavar="ADDRESS", help="Start no server: these workers join the one that `distnet serve` started there."
)
@click.option("--ranks", metavar="2-3", help="With --join: the ranks of the workers that run here.")
@click.option("--show-framework-logs", "framework_logs", is_flag=True, help="Show what TensorFlow says at every start.")
@json_option
@click.argument("script", nargs=-1, required=True, type=click.UNPROCESSED, metavar="SCRIPT [ARGUMENTS]...")
def run(
    script: tuple[str, ...],
    threads_per_worker: int | None,
    max_restarts: int,
    then: Reaction | None,
    join: str | None,
    ranks: str | None,
    framework_logs: bool,
    as_json: bool,
    workers: int,
    **server: Any,
) -> None:
    """Run SCRIPT as workers beside servers on this machine.

    Every copy of the script calls `distnet.connect()` without arguments, and learns the address and its rank from its
    environment; rank 0 brings the model. What they write appears here with the worker's name before it.

    \b
    Examples:
      distnet run -n 2 --semantics async-lockfree --optimizer momentum --learning-rate 0.05 train.py --epochs 3
      distnet run --join tcp://host-a:7400 --workers 4 --ranks 2-3 train.py --epochs 3
    """
    context = click.get_current_context()
    from distnet.launch.failures import FailurePolicy, failure_policy
    from distnet.launch.output import Output
    from distnet.launch.resuming import resumption_of
    from distnet.launch.scripts import ScriptJob

    output = Output(stdout_is_taken=as_json)
    options: dict[str, Any] = {"script": script, "threads": threads_per_worker, "framework_logs": framework_logs}
    try:
        if join is not None:
            _refuse_settings_of_servers(context)
            policy = FailurePolicy(max_restarts=max_restarts, then=then or "continue")
            given = context.get_parameter_source("workers") is not click.core.ParameterSource.DEFAULT
            result = _join(join, ranks, workers if given else None, output, {**options, "policy": policy})
            where = ""
        else:
            if ranks is not None:
                raise ConfigError("--ranks goes with --join ADDRESS: beside its own server, `run` starts every rank")
            begin = resumption_of(server)
            made = make_server(workers=workers, **server)
            on_loss_given = server.get("on_loss") is not None
            policy = failure_policy(made.semantics, on_loss_given=on_loss_given, max_restarts=max_restarts, then=then)
            job = ScriptJob(workers=made.workers, policy=policy, **options)
            result, where = _beside_servers(made, job, output, begin)
    finally:
        output.close()
    _finish(result, where, as_json)


def _beside_servers(
    server: ParameterServer, job: ScriptJob, output: Output, begin: Resumption
) -> tuple[dict[str, Any], str]:
    from distnet.launch.ending import serving, where_the_model_is
    from distnet.launch.resuming import what_was_restored
    from distnet.launch.scripts import run_script

    with serving(server, output.note, checkpoint=begin.checkpoint):
        for line in what_was_restored(server, begin):
            output.note(line)
        result = run_script(server, job, output)
    return result, where_the_model_is(begin.checkpoint)


def _join(
    address: str, ranks: str | None, workers: int | None, output: Output, options: dict[str, Any]
) -> dict[str, Any]:
    from distnet.launch.joining import RemoteServers, agreed_workers, parse_ranks
    from distnet.launch.scripts import ScriptJob, run_script

    if ranks is None:
        raise ConfigError("--join needs --ranks: which of the job's ranks run here, such as --ranks 2-3")
    here = parse_ranks(ranks)
    servers = RemoteServers(address, workers)
    try:
        workers = agreed_workers(servers, here, workers, output.note)
        return run_script(servers, ScriptJob(workers=workers, ranks=here, **options), output)
    finally:
        servers.close()


def _refuse_settings_of_servers(context: click.Context) -> None:
    """Refuse what only the machine with the servers can decide."""
    default = (click.core.ParameterSource.DEFAULT, click.core.ParameterSource.DEFAULT_MAP)
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in _JOINING and context.get_parameter_source(name) not in default:
            raise ConfigError(f"{parameter.opts[0]} is the server's: give it to `distnet serve`, not beside --join")


def _finish(result: dict[str, Any], where: str, as_json: bool) -> None:
    from distnet.launch.children import ChildDied
    from distnet.launch.ending import done_line
    from distnet.launch.scripts import failed_together

    if as_json:
        click.echo(json.dumps(result))
    else:
        updates = None if result["server"] is None else result["server"]["updates"]
        click.echo(done_line(updates, result["seconds"], where), err=True)
    if result["failures"]:
        raise ChildDied(failed_together(result["failures"]))
