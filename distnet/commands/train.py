"""``distnet train``: AlexNet on CIFAR-10, all roles on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from distnet.commands.options import config_of, config_options, json_option, out_option
from distnet.commands.sections import SectionedCommand
from distnet.launch.display import make_display
from distnet.launch.folder import new_run_path

__all__ = ["train"]


@click.command(cls=SectionedCommand, short_help="AlexNet on CIFAR-10, all roles on this machine.")
@config_options()
@out_option("The run's folder.  [default: runs/TIME-SEMANTICS]")
@click.option(
    "--demo", is_flag=True, help="A short training that works without any data: two workers, a summary, a plot."
)
@json_option
def train(config_file: Path | None, out: Path | None, demo: bool, as_json: bool, **given: Any) -> None:
    """Train AlexNet on CIFAR-10 with workers and servers on this machine.

    The run's folder holds its configuration (run it again with --config), metrics.jsonl, TensorBoard event files, a
    checkpoint of the parameters, and summary.json.

    \b
    Examples:
      distnet train --epochs 5
      distnet train --semantics sync --workers 4 --data ~/cifar-10-batches-bin
      distnet train --config runs/some-run/config.toml --seed 2
    """
    from distnet.launch import demo as demonstration
    from distnet.launch import training

    config = config_of(config_file, given)
    display = make_display()
    try:
        if demo:
            config = demonstration.demo_config(config, given, display)
        out = out or new_run_path("demo" if demo else config.semantics)
        summary = training.train(config, out, display)
    finally:
        display.close()
    plot = _plot(summary, out) if demo else None
    if as_json:
        click.echo(json.dumps({"folder": str(out), **summary}))
    else:
        _print_summary(summary, out, plot)


def _plot(summary: dict[str, Any], out: Path) -> Path:
    from distnet.reporting.plots import plot_run

    return plot_run(out, summary)


def _print_summary(summary: dict[str, Any], out: Path, plot: Path | None) -> None:
    from distnet.reporting.text import run_summary

    click.echo(run_summary(summary, out, plot))
