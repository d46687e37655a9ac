"""Commands that start servers for any client, ``run`` and ``serve``: their options, and the servers made of these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from distnet.commands.options import CHECKPOINT_OPTIONS, SERVER_OPTIONS, joined_options, with_options
from distnet.launch.config import TrainConfig
from distnet.launch.job import JobSettings

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
    return _with_checkpoint(JobSettings.from_mapping(_joined(options, tables=("job",))))


def settings_by_recipe(images: int, **options: Any) -> JobSettings:
    """Return the settings of a job whose workers train AlexNet, as :func:`job_settings` does.

    Where a recipe is named, it brings what was not given of the optimizer, the schedule and the EMA.

    Args:
        images: in one epoch.
        options: those of ``job_settings``, and ``recipe``, ``epochs`` and ``batch_size``.
    """
    from distnet.launch.plan import make_plan, with_recipe

    config = recipe_config(**options)
    if config is None:
        return _with_checkpoint(JobSettings.from_mapping(_joined(options, tables=("job", "train"))))
    return with_recipe(config, make_plan(config, images))


def recipe_config(**options: Any) -> TrainConfig | None:
    """Return what the workers of a served recipe train, from the options of :func:`settings_by_recipe`.

    None: no recipe is named, by an option or in the file.
    """
    values = _joined(options, tables=("job", "train"))
    if "recipe" not in values:
        return None
    return TrainConfig.from_mapping({**values, "transport": "tcp"})  # what it says, formats too, is for TCP


def make_server(**options: Any) -> ParameterServer:
    """Return a server, not started yet, whose first rank-0 client brings the model.

    Args:
        options: as :func:`job_settings` takes them, or ``to_mapping()`` of what it returned.
    """
    import distnet

    return distnet.ParameterServer(None, **job_settings(**options).server_arguments())


def _with_checkpoint(settings: JobSettings) -> JobSettings:
    complete = None not in (settings.semantics, settings.optimizer, settings.workers)
    if settings.restore is None or complete:
        return settings
    from distnet.checkpoint import load

    return settings.filled_from(load(settings.restore).arguments())


def _joined(options: Mapping[str, Any], *, tables: tuple[str, ...]) -> dict[str, Any]:
    given, default = dict(options), None
    if isinstance(given.get("address"), _DefaultAddress):
        default = given.pop("address")
    values = joined_options(given, tables=tables)
    return values if default is None else {"address": str(default), **values}
