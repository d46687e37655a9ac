"""``distnet compare``: the baselines and all five semantics on the same work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from distnet.alexnet.job.display import make_display
from distnet.alexnet.job.folder import new_run_path
from distnet.cli.options import config_of, config_options, json_option, out_option
from distnet.cli.sections import SectionedCommand
from distnet.errors import ConfigError
from distnet.semantics import SEMANTICS

__all__ = ["compare"]


@click.command(cls=SectionedCommand, short_help="The baseline and all five semantics on the same work; a report.")
@config_options("semantics", "seed")
@click.option("--semantics", "names", metavar="NAME,NAME", help="Only these.  [default: all five]")
@click.option("--seeds", default="1", show_default=True, metavar="N,N,N", help="Train every way once with each.")
@out_option("The comparison's folder; give it again to go on with one that was cut off.  [default: runs/TIME-compare]")
@json_option
def compare(
    config_file: Path | None, names: str | None, seeds: str, out: Path | None, as_json: bool, **given: Any
) -> None:
    """Train the single-process baseline and all five semantics on the same examples, and report.

    The baseline runs twice: once with all cores, and once with as many as one worker has. All ways take turns, seed by
    seed; of two seeds or more the report says what the noise can explain, of one it claims nothing. Finished runs in
    the folder are kept, so that a long comparison may be interrupted and taken up again. The folder ends up with
    compare.md, compare.json, plots, and report.html, one page with everything in it.

    With --trainer keras there is one row more: the default semantics again, or the first of --semantics, whose workers
    train by the fit of Keras.

    \b
    Example:
      distnet compare --epochs 3 --seeds 1,2,3 --out comparison
    """
    from distnet.alexnet.job.comparing import ALL_CORES, ONE_WORKER, run_comparison, ways_to_train
    from distnet.alexnet.report.comparison import compare_runs
    from distnet.alexnet.report.files import write_comparison
    from distnet.alexnet.report.table import terminal_table, uncertain

    given["evaluate"] = given["evaluate"] or "after"  # the workers' rates are compared: they get the whole machine
    config = config_of(config_file, given)
    ways = ways_to_train(config, names.split(",") if names else tuple(SEMANTICS))
    folder = out or new_run_path("compare")
    display = make_display()
    try:
        summaries = run_comparison(ways, _seeds(seeds), folder, display)
    finally:
        display.close()
    one_worker = ONE_WORKER if ONE_WORKER in summaries else ALL_CORES
    comparison = compare_runs(summaries, all_cores=ALL_CORES, one_worker=one_worker)
    write_comparison(folder, comparison)
    if as_json:
        click.echo(json.dumps({"folder": str(folder), **comparison}))
    else:
        click.echo(terminal_table(comparison))
        for doubt in uncertain(comparison):
            click.echo(f"\n{doubt}")
        click.echo(f"\n{folder / 'report.html'} holds everything on one page; the table and the plots are beside it.")


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--seeds is {text!r}; expected whole numbers with commas between, such as 1,2,3") from error
    if len(set(seeds)) != len(seeds):
        raise ConfigError(f"--seeds {text} names a seed twice")
    return seeds
