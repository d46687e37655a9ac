"""``distnet train``: AlexNet on CIFAR-10, all roles on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from distnet.alexnet.job.display import make_display
from distnet.alexnet.job.folder import new_run_path
from distnet.alexnet.job.interrupted import config_to_resume
from distnet.cli.options import config_of, config_options, json_option, out_option
from distnet.cli.sections import SectionedCommand
from distnet.errors import ConfigError

__all__ = ["train"]


@click.command(cls=SectionedCommand, short_help="AlexNet on CIFAR-10, all roles on this machine.")
@config_options()
@out_option("The run's folder.  [default: runs/TIME-SEMANTICS]")
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Go on with an interrupted run in its folder, from its latest checkpoint, with its own settings.",
)
@click.option(
    "--demo", is_flag=True, help="A short training that works without any data: two workers, a summary, a plot."
)
@json_option
def train(
    config_file: Path | None, out: Path | None, resume: Path | None, demo: bool, as_json: bool, **given: Any
) -> None:
    """Train AlexNet on CIFAR-10 with workers and servers on this machine.

    The run's folder holds its configuration (run it again with --config), metrics.jsonl, TensorBoard event files,
    checkpoints (score them with `distnet evaluate`), and summary.json. Checkpoints are written now and then, at the
    end, and at Ctrl-C and SIGTERM; --resume goes on from the latest.

    \b
    Examples:
      distnet train --epochs 5
      distnet train --semantics sync --workers 4 --data ~/cifar-10-batches-bin
      distnet train --config runs/some-run/config.toml --seed 2
      distnet train --resume runs/some-run
    """
    from distnet.alexnet.job import demo as demonstration
    from distnet.alexnet.job import training

    if resume is not None:
        _check_alone(config_file=config_file, out=out, demo=demo)
        config, out = config_to_resume(resume, given), resume
    else:
        config = config_of(config_file, given)
    display = make_display()
    try:
        if demo:
            config = demonstration.demo_config(config, given, display)
        out = out or new_run_path("demo" if demo else config.semantics)
        summary = training.train(config, out, display, resume=resume is not None)
    finally:
        display.close()
    plot = _plot(summary, out) if demo else None
    if as_json:
        click.echo(json.dumps({"folder": str(out), **summary}))
    else:
        _print_summary(summary, out, plot)


def _check_alone(*, config_file: Path | None, out: Path | None, demo: bool) -> None:
    given = {"--config": config_file is not None, "--out": out is not None, "--demo": demo}
    if others := [name for name, was_given in given.items() if was_given]:
        raise ConfigError(f"--resume goes on in the run's own folder with its own settings; leave out {others[0]}")


def _plot(summary: dict[str, Any], out: Path) -> Path:
    from distnet.alexnet.report.plots import plot_run

    return plot_run(out, summary)


def _print_summary(summary: dict[str, Any], out: Path, plot: Path | None) -> None:
    from distnet.alexnet.report.text import run_summary

    click.echo(run_summary(summary, out, plot))
