"""``distnet run``: a user's own script as workers, beside servers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from distnet.commands.options import WORKER_OPTIONS, json_option, with_options
from distnet.commands.sections import SectionedCommand
from distnet.commands.server_options import job_settings, make_server, server_options

__all__ = ["run"]


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
@json_option
@click.argument("script", nargs=-1, required=True, type=click.UNPROCESSED, metavar="SCRIPT|-m MODULE [ARGUMENTS]...")
def run(script: tuple[str, ...], join: str | None, ranks: str | None, as_json: bool, **options: Any) -> None:
    """Run SCRIPT, or a module, as workers beside servers on this machine.

    Every copy of the script calls `distnet.connect()` without arguments, and learns the address and its rank from its
    environment; rank 0 brings the model. What they write appears here with the worker's name before it.

    \b
    Examples:
      distnet run -n 2 train.py --epochs 3
      distnet run -n 4 --semantics sync --optimizer 'momentum(0.05, momentum=0.9)' \\
        --schedule 'cosine(updates=10000, warmup=500)' -m project.train
    """
    from distnet.launch.scripts import run_script
    from distnet.launch.start_line import start_line, wrapped

    def show(name: str, stream: str, line: str) -> None:
        click.echo(f"[{name}] {line}", err=as_json or stream == "stderr")

    settings = job_settings(**options)
    with make_server(**settings.to_mapping()) as started:
        click.echo(wrapped(start_line(settings, "run")), err=True)
        threads = settings.threads_per_worker
        result = run_script(started, script, workers=started.workers, threads=threads, show=show)
    if as_json:
        click.echo(json.dumps(result))
    else:
        click.echo(f"done: {result['server']['updates']:,} updates in {result['seconds']:.1f} s", err=True)
