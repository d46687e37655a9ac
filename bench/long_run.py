"""The long comparison, a training at a time: what takes hours, beside other work, at the lowest priority.

    chrt -i 0 python bench/long_run.py train --out DIR --data DIR one-process 1
    chrt -i 0 python bench/long_run.py train --out DIR --data DIR async-lockfree 1
    distnet compare --recipe long --epochs 0.5 --seeds 1,2,3 --precision bfloat16 --evaluate never --data DIR \\
        --out RATES
    python bench/long_run.py report --out DIR --data DIR --rates RATES/compare.json

`train` trains one way with one seed and keeps the run in the folder; one that is there already is kept, and one that
was cut off starts anew. `report` joins the finished ones. Time limits are an hour, because idle priority looks like
silence. How long a training took beside other work says nothing, so the report's seconds come from the rates of a short
comparison that was alone on the machine. The folder may be copied: its `runs/*/summary.json` are all that `report` and
a later `train` need, if the data's folder has the same name.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

from distnet.alexnet.job.comparing import ALL_CORES, ONE_WORKER, Way, finished_runs, run_once, ways_to_train
from distnet.alexnet.job.config import TrainConfig
from distnet.errors import DistNetError

DEADLINE_S = 3600.0
MARKS = (0.70, 0.75, 0.78, 0.80)
UNFAIR = (
    "These trainings ran at the lowest priority beside other work, so the seconds they took say nothing: seconds here "
    "are examples at the rates of short runs that were alone on the machine, where such rates are given."
)


def main() -> int:
    """Train, or report."""
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--out", type=Path, required=True, metavar="DIR", help="the comparison's folder")
    shared.add_argument("--data", default="cifar10")
    shared.add_argument("--recipe", default="long")
    shared.add_argument("--epochs", type=float, default=40.0)
    shared.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", parents=[shared])
    training.add_argument("way", help="one-process, or the name of a semantics")
    training.add_argument("seed", type=int)
    reporting = commands.add_parser("report", parents=[shared])
    reporting.add_argument("--rates", type=Path, metavar="FILE", help="compare.json of a comparison that was alone")
    options = parser.parse_args()
    ways = the_ways(options.data, recipe=options.recipe, epochs=options.epochs, precision=options.precision)
    try:
        if options.command == "report":
            report(ways, options.out, options.rates)
        else:
            train(ways, options.way, options.seed, options.out)
    except DistNetError as error:
        sys.exit(f"long_run: {error}")
    return 0


def the_ways(data: str, *, recipe: str, epochs: float, precision: str) -> dict[str, Way]:
    """Return the ways to train by what the command line calls them, in the report's order."""
    config = TrainConfig(
        data=data, recipe=recipe, epochs=epochs, precision=precision, threads_per_worker=1, timeout=DEADLINE_S
    )
    ways = ways_to_train(config)
    return {"one-process" if way.name == ONE_WORKER else way.label: way for way in ways if way.name != ALL_CORES}


def train(ways: dict[str, Way], name: str, seed: int, folder: Path) -> None:
    """Train one way with one seed."""
    from distnet.alexnet.job.display import make_display

    if name not in ways:
        sys.exit(f"no way to train is named {name!r}; expected one of {', '.join(ways)}")
    display = make_display()
    try:
        run_once(ways[name], seed, folder, display)
    finally:
        display.close()


def report(ways: dict[str, Way], folder: Path, rates: Path | None) -> None:
    """Write the comparison of the finished runs beside them."""
    from distnet.alexnet.report.comparison import compare_runs
    from distnet.alexnet.report.files import write_comparison

    comparison = compare_runs(
        finished_runs(list(ways.values()), folder),
        all_cores=ALL_CORES,
        one_worker=ONE_WORKER,
        unfair_seconds=UNFAIR,
        rates=None if rates is None else rates_of(rates),
        marks=MARKS,
    )
    write_comparison(folder, comparison)
    print(f"{folder / 'report.html'} holds {seeds_of(comparison['rows'])}")


def rates_of(path: Path) -> dict[str, float]:
    """Return the examples a second of another comparison's rows, medians over its seeds, by their names."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    return {row["name"]: statistics.median(row["examples_per_s"]["values"]) for row in rows}


def seeds_of(rows: Sequence[dict[str, object]]) -> str:
    """Say which seeds of which training are in a comparison."""
    return "; ".join(f"{row['name']}: seeds {row['seeds']}" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
