"""The options of commands that start a server for any client: ``run`` and ``serve``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from distnet.errors import ConfigError
from distnet.formats import FORMATS
from distnet.optimizers import OPTIMIZERS
from distnet.semantics import SEMANTICS
from distnet.suggestions import suggest

if TYPE_CHECKING:
    from distnet.optimizers import Optimizer
    from distnet.server import ParameterServer

__all__ = ["make_server", "named_optimizer", "server_options"]

Command = TypeVar("Command", bound=Callable[..., Any])


def server_options(*, workers_flag: str | None = None, default_address: str) -> Callable[[Command], Command]:
    """Add the options that ``make_server`` takes."""
    flags = ["--workers"] + ([workers_flag] if workers_flag else [])
    options = [
        click.option(
            "--semantics", metavar="NAME", default="async-lockfree", show_default=True, help=", ".join(SEMANTICS)
        ),
        click.option(*flags, type=int, default=2, show_default=True, help="Number of workers."),
        click.option("--servers", type=int, help="Number of servers (shards).  [default: 1; async-sharded 2]"),
        click.option(
            "--address", default=default_address, show_default=True, help="shm:// or tcp://host:port (port 0: any)."
        ),
        click.option("--optimizer", metavar="NAME", default="sgd", show_default=True, help=", ".join(OPTIMIZERS)),
        click.option("--learning_rate", type=float, default=0.01, show_default=True, help="Its learning rate."),
        click.option(
            "--push-format",
            metavar="NAME",
            default="float32",
            show_default=True,
            help=f"How gradients travel over TCP: {', '.join(FORMATS)}:RATIO.",
        ),
        click.option(
            "--pull-format",
            metavar="NAME",
            default="float32",
            show_default=True,
            help="How parameters do: any of these but topk.",
        ),
        click.option(
            "--ema-decay",
            type=float,
            help="Decay of a moving average of the parameters (EMA), kept on the server.",
        ),
    ]

    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def named_optimizer(name: str, learning_rate: float) -> Optimizer:
    """Return the optimizer of that name at a constant learning rate."""

    if name not in OPTIMIZERS:
        raise ConfigError(f"no optimizer is named {name!r}{suggest(name, OPTIMIZERS)}")
    return OPTIMIZERS[name](learning_rate)


def make_server(
    *,
    semantics: str,
    workers: int,
    servers: int | None,
    address: str,
    optimizer: str | Optimizer,
    learning_rate: float,
    ema_decay: float | None,
    push_format: str,
    pull_format: str,
) -> ParameterServer:
    """Return a server, not started yet, whose first rank-0 client brings the model."""
    import distnet

    if semantics not in SEMANTICS:
        raise ConfigError(f"no semantics is named {semantics!r}{suggest(semantics, SEMANTICS)}")
    if workers < 1:
        raise ConfigError(f"workers is {workers}; expected at least 1")
    return distnet.ParameterServer(
        None,
        semantics=semantics,
        optimizer=named_optimizer(optimizer, learning_rate) if isinstance(optimizer, str) else optimizer,
        workers=workers,
        servers=servers,
        address=address,
        processes=True,
        ema_decay=ema_decay,
        push_format=push_format,
        pull_format=pull_format,
    )
