"""``distnet run``: a user's own script as workers, beside servers or joining some."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distnet.cli.options import WORKER_OPTIONS, json_option, with_options
from distnet.cli.sections import SectionedCommand
from distnet.cli.server_options import job_settings, make_server, server_options
from distnet.errors import ConfigError

if TYPE_CHECKING:
    from distnet.launch.ending import Kept
    from distnet.launch.failures import Reaction
    from distnet.launch.output.console import Output

__all__ = ["run"]

_OF_WORKERS = frozenset({*WORKER_OPTIONS, "workers", "config_file", "framework_logs", "as_json", "script"})


class _ScriptCommand(SectionedCommand):
    """A command whose arguments begin with a script, or with ``-m`` and a module; what follows is the script's."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Read the options before the script; an unknown one is an error."""
        return super().parse_args(context, self._with_the_end_marked(args))

    def _with_the_end_marked(self, args: Sequence[str]) -> list[str]:
        """Return the arguments with ``--`` before ``-m``, which ends the options."""
        options = {flag: parameter for parameter in self.params for flag in parameter.opts}
        place = 0
        while place < len(args) and args[place].startswith("-") and args[place] not in ("-", "--"):
            if args[place] == "-m":
                return [*args[:place], "--", *args[place:]]
            option = options.get(args[place])
            takes_value = isinstance(option, click.Option) and not option.is_flag
            place += 2 if takes_value else 1
        return list(args)


@click.command(
    cls=_ScriptCommand,
    short_help="A script of your own as workers, beside servers.",
    context_settings={"allow_interspersed_args": False},
)
@server_options(default_address="shm://")
@with_options(*WORKER_OPTIONS)
@click.option("--show-framework-logs", "framework_logs", is_flag=True, help="Show what TensorFlow says at every start.")
@json_option
@click.argument("script", nargs=-1, required=True, type=click.UNPROCESSED, metavar="SCRIPT|-m MODULE [ARGUMENTS]...")
def run(
    script: tuple[str, ...],
    join: str | None,
    ranks: str | None,
    framework_logs: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Run SCRIPT, or a module, as workers beside servers on this machine.

    Every copy of the script calls `distnet.connect()` without arguments, and learns the address and its rank from its
    environment; rank 0 brings the model. What they write appears here with the worker's name before it.

    \b
    Examples:
      distnet run -n 2 train.py --epochs 3
      distnet run -n 4 --semantics sync --optimizer 'momentum(0.05, momentum=0.9)' \\
        --schedule 'cosine(updates=10000, warmup=500)' -m project.train
      distnet run --join tcp://host-a:7400 --workers 4 --ranks 2-3 train.py --epochs 3
    """
    from distnet.launch.ending import Kept
    from distnet.launch.output.console import Output

    kept, output = Kept(), Output(stdout_is_taken=as_json)
    what: dict[str, Any] = {"script": script, "framework_logs": framework_logs}
    try:
        if join is not None:
            _refuse_settings_of_servers()
            result, where = _join(join, ranks, output, options, what), ""
        elif ranks is not None:
            raise ConfigError("--ranks goes with --join ADDRESS: beside its own server, `run` starts every rank")
        else:
            result, where, kept = _beside_servers(output, options, what)
    finally:
        output.close()
    _finish(result, where, as_json)
    kept.check()


def _beside_servers(output: Output, options: dict[str, Any], what: dict[str, Any]) -> tuple[dict[str, Any], str, Kept]:
    from distnet.launch.ending import save_before_the_workers_end, serving, where_the_model_is
    from distnet.launch.failures import check_loss, failure_policy
    from distnet.launch.program import program_of
    from distnet.launch.resuming import resumption_of, what_was_restored
    from distnet.launch.scripts import ScriptJob, run_script
    from distnet.launch.start_line import start_line, wrapped

    begin = resumption_of(options)
    settings = job_settings(**options)
    check_loss(settings, launched=True)
    program_of(what["script"])  # before servers are started for one that is not there
    server = make_server(**settings.to_mapping())
    policy = failure_policy(server.semantics, max_restarts=settings.restarts, then=settings.after_failure)
    job = ScriptJob(workers=server.workers, threads=settings.threads_per_worker, policy=policy, **what)
    checkpoint = None if settings.checkpoint is None else Path(settings.checkpoint)
    with serving(server, output.note, checkpoint=checkpoint) as kept:
        click.echo(wrapped(start_line(settings, "run")), err=True)
        for line in what_was_restored(server, begin):
            output.note(line)
        result = run_script(
            server, job, output, before_stopping=lambda: save_before_the_workers_end(server, output.note)
        )
    return result, where_the_model_is(checkpoint, kept), kept


def _join(
    address: str, ranks: str | None, output: Output, options: dict[str, Any], what: dict[str, Any]
) -> dict[str, Any]:
    from distnet.launch.failures import FailurePolicy
    from distnet.launch.joining import RemoteServers, agreed_workers, parse_ranks
    from distnet.launch.scripts import ScriptJob, run_script

    if ranks is None:
        raise ConfigError("--join needs --ranks: which of the job's ranks run here, such as --ranks 2-3")
    here, settings = parse_ranks(ranks), job_settings(**options)
    then: Reaction = "stop" if settings.when_a_worker_fails == "stop" else "continue"
    policy = FailurePolicy(max_restarts=settings.restarts, then=then)
    servers = RemoteServers(address, settings.workers)
    try:
        workers = agreed_workers(servers, here, settings.workers, output.note)
        job = ScriptJob(workers=workers, ranks=here, threads=settings.threads_per_worker, policy=policy, **what)
        return run_script(servers, job, output)
    finally:
        servers.close()


def _refuse_settings_of_servers() -> None:
    """Refuse what only the machine with the servers can decide."""
    context = click.get_current_context()
    default = (click.core.ParameterSource.DEFAULT, click.core.ParameterSource.DEFAULT_MAP)
    for parameter in context.command.params:
        name = parameter.name or ""
        if name not in _OF_WORKERS and context.get_parameter_source(name) not in default:
            raise ConfigError(f"{parameter.opts[0]} is the server's: give it to `distnet serve`, not beside --join")


def _finish(result: dict[str, Any], where: str, as_json: bool) -> None:
    from distnet.launch.children import ChildDied
    from distnet.launch.ending import done_line
    from distnet.launch.failures import failed_together

    if as_json:
        click.echo(json.dumps(result))
    else:
        server = result["server"]
        if server is not None and not server["floats"] and server["groups"]:
            server, where = None, ""  # the workers were a process group, and had no model here
        click.echo(done_line(None if server is None else server["updates"], result["seconds"], where), err=True)
    if result["failures"]:
        raise ChildDied(failed_together(result["failures"], result["workers"]))
