"""The commands: a module each, imported when it is asked for. To add one: a module with a command of its name, and a
line of ``COMMANDS``."""

from __future__ import annotations

import importlib
from typing import cast

import click

from distnet._private.suggestions import suggest

__all__ = ["COMMANDS", "distnet"]

COMMANDS = ("train", "evaluate", "compare", "run", "serve", "worker", "bench")


class _Commands(click.Group):
    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return cast(click.Command, getattr(importlib.import_module(f"distnet.cli.{name}"), name))

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            meant = f"; did you mean 'distnet run {name}'?" if name.endswith(".py") else suggest(name, COMMANDS)
            context.fail(f"no command is named {name!r}{meant}")
        return super().resolve_command(context, args)


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 done · 1 something failed · 2 wrong usage or setting · 130 Ctrl-C · 143 SIGTERM.",
)
@click.version_option(package_name="distnet-ps", prog_name="distnet")
def distnet() -> None:
    """Data-parallel training with parameter servers, made fast by a C++ core.

    Start with `distnet train --demo`; then see all five update semantics side by side with `distnet compare`.
    """
