"""``distnet serve``: the servers alone, for workers on several machines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distnet.cli.options import json_option
from distnet.cli.sections import SectionedCommand
from distnet.cli.server_options import make_server, recipe_config, server_options, settings_by_recipe
from distnet.launch.ending import done_line, serving, where_the_model_is
from distnet.launch.failures import check_loss
from distnet.launch.resuming import resumption_of, what_was_restored
from distnet.launch.service import joining_line, until_done
from distnet.launch.start_line import start_line, wrapped

if TYPE_CHECKING:
    from distnet.server import ParameterServer
    from distnet.stats import ServerStatistics

__all__ = ["serve"]


@click.command(cls=SectionedCommand, short_help="Servers alone, for workers on several machines.")
@server_options(default_address="tcp://0.0.0.0:7400")
@click.option(
    "--recipe",
    metavar="NAME",
    help="Serve AlexNet on CIFAR-10: the recipe brings what is not given of optimizer, schedule and EMA.",
)
@click.option("--trainer", metavar="tensorflow|keras", help="Of the recipe's run, as given to the workers.")
@click.option("--epochs", type=float, help="Of the recipe's run, as given to the workers.")
@click.option("--batch-size", type=int, help="Of one worker's step, as given to the workers.")
@click.option("--images", type=int, default=50_000, show_default=True, help="Training images in one epoch.")
@click.option("--exit-when-idle", is_flag=True, help="End as soon as no worker is connected any more.")
@json_option
def serve(
    images: int,
    exit_when_idle: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Run servers for workers on this and other machines, until all workers are done or Ctrl-C.

    Prints the address that workers connect to. The first worker of rank 0 brings the model; any number of workers may
    come and go in the asynchronous semantics.

    Only serve on networks you trust.
    """
    begin = resumption_of(options)
    settings = settings_by_recipe(images, **options)
    check_loss(settings, launched=False)
    server = make_server(**settings.to_mapping())
    checkpoint = None if settings.checkpoint is None else Path(settings.checkpoint)
    began_s = time.monotonic()
    with serving(server, _say, checkpoint=checkpoint) as kept:
        _say_where(server, options.get("recipe"), as_json)
        _say(wrapped(start_line(settings, "serve")))
        for line in what_was_restored(server, begin):
            _say(line)
        agreement = _agreement(server, images, options)
        until_done(server, exit_when_idle=exit_when_idle, say=_say, also=agreement)
        stats, seconds = server.stats(), time.monotonic() - began_s
    if as_json:
        click.echo(json.dumps({"server": stats.as_dict()}))
    else:
        click.echo(done_line(stats.updates, seconds, where_the_model_is(checkpoint, kept)))
    kept.check()


def _agreement(
    server: ParameterServer, images: int, options: dict[str, Any]
) -> Callable[[ServerStatistics], Iterable[str]]:
    """Return what looks for workers of a recipe that were started with other settings than these servers."""
    config = recipe_config(**options)
    if config is None:
        return lambda stats: ()
    from distnet.alexnet.job.agreement import Agreement

    return Agreement(server, config, images).look


def _say(line: str) -> None:
    click.echo(line, err=True)


def _say_where(server: ParameterServer, recipe: str | None, as_json: bool) -> None:
    join = joining_line(server.address, server.workers, recipe=recipe)
    if as_json:
        click.echo(json.dumps({"address": server.address, "join": join}))
    else:
        click.echo(f"serving at {server.address}")
        click.echo(f"workers, here or on another machine: {join}")
