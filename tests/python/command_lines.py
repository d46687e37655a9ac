"""Command lines that pages show: whether each has options that there are, and values that can be."""

from __future__ import annotations

import dataclasses
import shlex

import pytest


def check_command_line(line: str) -> None:
    """Parse what follows ``distnet`` as the command line does, without running it; and settings of ``run`` as a job."""
    click = pytest.importorskip("click")
    from distnet.cli.commands import distnet as commands
    from distnet.cli.server_options import job_settings
    from distnet.settings.job import JobSettings

    name, *arguments = shlex.split(line)
    context = click.Context(commands, info_name="distnet")
    command = commands.get_command(context, name)
    assert command is not None
    options = command.make_context(name, arguments, parent=context).params
    if name == "run":
        names = {"config_file", *(field.name for field in dataclasses.fields(JobSettings))}
        job_settings(**{option: value for option, value in options.items() if option in names})
