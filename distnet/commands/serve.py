"""``distnet serve``: the servers alone, for workers on several machines."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from distnet.commands.options import json_option
from distnet.commands.sections import SectionedCommand
from distnet.commands.server_options import make_server, server_options, settings_by_recipe
from distnet.errors import ConfigError, DistNetError
from distnet.launch.start_line import start_line, wrapped

if TYPE_CHECKING:
    from distnet.arrays import Array
    from distnet.server import ParameterServer

__all__ = ["serve"]

_LOOK_EVERY_S = 0.5
_SHOW_EVERY_S = 10.0


@click.command(cls=SectionedCommand, short_help="Servers alone, for workers on several machines.")
@server_options(default_address="tcp://0.0.0.0:7400")
@click.option(
    "--recipe",
    metavar="NAME",
    help="Serve AlexNet on CIFAR-10: the recipe brings what is not given of optimizer, schedule and EMA.",
)
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
    settings = settings_by_recipe(images, **options)
    checkpoint = None if settings.checkpoint is None else Path(settings.checkpoint)
    _check_writable(checkpoint)
    with make_server(**dataclasses.replace(settings, checkpoint=None).to_mapping()) as server:
        click.echo(json.dumps({"address": server.address}) if as_json else f"serving at {server.address}")
        click.echo(wrapped(start_line(settings, "serve")), err=True)
        interrupted = False
        try:
            _until_done(server, server.workers, exit_when_idle, quiet=as_json)
        except KeyboardInterrupt:
            interrupted = True
            raise
        finally:
            with contextlib.suppress(DistNetError) if interrupted else contextlib.nullcontext():
                _finish(server, checkpoint, bool(settings.ema_decay), as_json)


def _check_writable(checkpoint: Path | None) -> None:
    if checkpoint is not None and not checkpoint.parent.is_dir():
        raise ConfigError(f"there is no folder {checkpoint.parent} to write the checkpoint to")


def _memory_line(bound: dict[str, int]) -> str:
    from distnet.reporting.text import memory_line

    return memory_line(bound)


def _until_done(server: ParameterServer, workers: int, exit_when_idle: bool, *, quiet: bool) -> None:
    seen, shown_s, stated = False, time.monotonic(), quiet
    while True:
        stats = server.stats()
        if not stated and stats.floats > 0:
            click.echo(_memory_line(server.memory()), err=True)
            stated = True
        connected = sum(session["role"] == "worker" for session in stats["sessions"])
        seen = seen or connected > 0
        if connected == 0 and (stats["workers_done"] >= workers or (exit_when_idle and seen)):
            return
        if not quiet and time.monotonic() - shown_s >= _SHOW_EVERY_S:
            shown_s = time.monotonic()
            click.echo(f"{connected} workers · {stats['updates']:,} updates · queue {stats['queue_depth']}", err=True)
        time.sleep(_LOOK_EVERY_S)


def _finish(server: ParameterServer, checkpoint: Path | None, averaged: bool, as_json: bool) -> None:
    stats = server.stats()
    if checkpoint is not None and stats["updates"] > 0:
        from distnet.launch.folder import save_arrays, writing

        arrays = _named(server.parameters(), "")
        if averaged:
            arrays |= _named(server.parameters(ema=True), "ema/")
        for index, vector in enumerate(server.optimizer_state()):
            arrays |= _named(vector, f"optimizer/{index}/")
        with writing(checkpoint):
            save_arrays(checkpoint, arrays, {"updates": str(stats["updates"])})
    click.echo(json.dumps({"server": stats.as_dict()}) if as_json else f"done: {stats['updates']:,} updates")


def _named(arrays: list[Array] | dict[str, Array], prefix: str) -> dict[str, Array]:
    """Return arrays by name, those of a list by their place in it."""
    names = arrays if isinstance(arrays, dict) else map(str, range(len(arrays)))
    values = arrays.values() if isinstance(arrays, dict) else arrays
    return {f"{prefix}{name}": array for name, array in zip(names, values, strict=True)}
