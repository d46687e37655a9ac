"""Commands that start servers for any client, ``run`` and ``serve``: their options, and the servers made of these."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from distnet.alexnet.job.config import TrainConfig
from distnet.cli.options import (
    CHECKPOINT_OPTIONS,
    SERVER_OPTIONS,
    joined_options,
    option_of,
    settings_of,
    with_options,
)
from distnet.errors import CheckpointError, ConfigError
from distnet.settings.job import JobSettings

if TYPE_CHECKING:
    from distnet.server import ParameterServer

__all__ = ["job_settings", "make_server", "recipe_config", "server_options", "settings_by_recipe"]

Command = TypeVar("Command", bound=Callable[..., Any])


def server_options(*, default_address: str) -> Callable[[Command], Command]:
    """Add the options that ``job_settings`` and ``make_server`` take."""
    address = click.option(
        "--address",
        default=_DefaultAddress(default_address),
        show_default=True,
        type=click.UNPROCESSED,  # keeps the type of the default
        metavar="ADDRESS",
        help="shm:// or tcp://host:port (port 0: any).",
    )

    def add(command: Command) -> Command:
        return address(with_options(*SERVER_OPTIONS, *CHECKPOINT_OPTIONS)(command))

    return add


class _DefaultAddress(str):
    """An address that nobody gave: that of a file comes before it."""


def job_settings(**options: Any) -> JobSettings:
    """Return the settings of a job: the options that ``server_options`` adds, and the file that ``--config`` names.

    Where the job goes on from a checkpoint, what was not given is that one's.

    Raises:
        ConfigError: a file cannot be read, or a setting makes no sense.
    """
    return _complete(settings_of(JobSettings, _given(options, ("job",)), tables=("job",)))


def settings_by_recipe(images: int, **options: Any) -> JobSettings:
    """Return the settings of a job whose workers train AlexNet, as :func:`job_settings` does.

    Where a recipe is named, it brings what was not given of the optimizer, the schedule and the EMA.

    Args:
        images: in one epoch.
        options: those of ``job_settings``, and ``recipe``, ``epochs`` and ``batch_size``.
    """
    from distnet.alexnet.job.plan import make_plan, with_recipe

    config, tables = recipe_config(**options), ("job", "train")
    if config is None:
        return _complete(settings_of(JobSettings, _given(options, tables), tables=tables))
    _check_that_checkpoints_are_written(joined_options(_given(options, tables), tables=tables))
    return with_recipe(config, make_plan(config, images))


def recipe_config(**options: Any) -> TrainConfig | None:
    """Return what the workers of a served recipe train, from the options of :func:`settings_by_recipe`.

    None: no recipe is named, by an option or in the file.
    """
    tables = ("job", "train")
    given = _given(options, tables)
    if "recipe" not in joined_options(given, tables=tables):
        return None
    return settings_of(TrainConfig, given, tables=tables, transport="tcp")  # what it says, formats too, is for TCP


def make_server(**options: Any) -> ParameterServer:
    """Return a server, not started yet, whose first rank-0 client brings the model.

    Args:
        options: as :func:`job_settings` takes them, or ``to_mapping()`` of what it returned. The server itself takes
            what is not given from a checkpoint.
    """
    import distnet

    settings = settings_of(JobSettings, _given(options, ("job",)), tables=("job",))
    return distnet.ParameterServer(None, **settings.server_arguments())


def _complete(settings: JobSettings) -> JobSettings:
    """Return the settings with what their checkpoint says where nothing was given."""
    _check_that_checkpoints_are_written(settings.to_mapping())
    if settings.restore is None:
        return settings
    from distnet.checkpoint import load

    try:
        saved = load(settings.restore).arguments()
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_newest_good(Path(settings.restore))}") from error
    return settings.filled_from(saved)


def _check_that_checkpoints_are_written(values: Mapping[str, Any]) -> None:
    for name in ("checkpoint_every", "keep_checkpoints"):
        if values.get(name) is not None and values.get("checkpoint") is None:
            said = f"{option_of(name)} {values[name]}"
            raise ConfigError(f"{said} without --checkpoint DIR: no checkpoint would be written; give both or neither")


def _newest_good(damaged: Path) -> str:
    """Return words for the newest checkpoint beside a damaged one that can be read; none: no words."""
    from distnet.checkpoint import CheckpointFolder, load

    folder = damaged if damaged.is_dir() else damaged.parent
    with contextlib.suppress(OSError):
        for file in reversed(CheckpointFolder(folder).files()):
            with contextlib.suppress(CheckpointError):
                load(file)
                return f"; {file} is good: go on from it with --restore {file}"
    return ""


def _given(options: Mapping[str, Any], tables: tuple[str, ...]) -> dict[str, Any]:
    """Return the options; an address that nobody gave comes after that of a file."""
    given = dict(options)
    address = given.get("address")
    if isinstance(address, _DefaultAddress):
        del given["address"]
        if "address" not in joined_options(given, tables=tables):
            given["address"] = str(address)
    return given
