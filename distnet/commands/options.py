"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from distnet.formats import FORMATS
from distnet.launch.config import LOCAL, TrainConfig, read_config_file
from distnet.semantics import SEMANTICS

__all__ = ["config_options", "config_of", "json_option", "out_option"]

Command = TypeVar("Command", bound=Callable[..., Any])

_SEMANTICS_HELP = f"When the server answers and how it guards its memory: {', '.join(SEMANTICS)}; or '{LOCAL}' for one \
process without a server.  [default: {TrainConfig.semantics}]"

_CONFIG = {
    "semantics": click.option("--semantics", metavar="NAME", help=_SEMANTICS_HELP),
    "workers": click.option("--workers", "-n", type=int, help=f"Number of workers.  [default: {TrainConfig.workers}]"),
    "servers": click.option("--servers", type=int, help="Number of servers (shards).  [default: 1; async-sharded 2]"),
    "transport": click.option("--transport", metavar="auto|shm|tcp", help="How gradients travel.  [default: auto]"),
    "recipe": click.option(
        "--recipe", metavar="NAME", help="'default', 'momentum', 'nesterov', or 'tutorial': the 2017 project's."
    ),
    "optimizer": click.option("--optimizer", metavar="NAME", help="Server-side optimizer instead of the recipe's."),
    "learning_rate": click.option("--learning-rate", type=float, help="Its learning rate, constant."),
    "batch_size": click.option(
        "--batch-size", type=int, help="Examples in one worker's step.  [default: the recipe's]"
    ),
    "epochs": click.option("--epochs", type=float, help="Passes over the images, all workers together."),
    "steps": click.option("--steps", type=int, help="Steps of all workers together, instead of epochs."),
    "data": click.option(
        "--data",
        metavar="cifar10|generated|DIR",
        help="The images: CIFAR-10 through Keras, made on the spot, or a folder of the official binary files.",
    ),
    "holdout": click.option(
        "--holdout", type=int, metavar="N", help="Score the last N training images, untrained, not the test images."
    ),
    "seed": click.option("--seed", type=int, help="Of parameters, shares and augmentation.  [default: 1]"),
    "threads_per_worker": click.option("--threads-per-worker", type=int, help="[default: the cores, shared evenly]"),
    "precision": click.option(
        "--precision", metavar="float32|bfloat16", help="Of the convolutions; bfloat16 is faster where the CPU has it."
    ),
    "overlap": click.option(
        "--overlap/--no-overlap", default=None, help="Exchange one gradient while the next is computed."
    ),
    "push_format": click.option(
        "--push-format",
        metavar="NAME",
        help=f"How gradients travel over TCP: {', '.join(FORMATS)}:RATIO.  [default: float32]",
    ),
    "pull_format": click.option(
        "--pull-format", metavar="NAME", help="How parameters do: any of these but topk.  [default: float32]"
    ),
    "evaluate": click.option(
        "--evaluate", metavar="during|after|never", help="When to score the test images.  [default: during]"
    ),
    "timeout": click.option("--timeout", type=float, help="Seconds of silence that end the run.  [default: 60]"),
    "checkpoint_every": click.option(
        "--checkpoint-every",
        metavar="500updates|10min",
        help=f"How often to write a checkpoint, but for the end and Ctrl-C.  [default: {TrainConfig.checkpoint_every}]",
    ),
}


def config_options(*left_out: str) -> Callable[[Command], Command]:
    """Add an option for every setting of a ``TrainConfig`` but those left out, and ``--config``."""

    def add(command: Command) -> Command:
        for name, option in reversed(_CONFIG.items()):
            if name not in left_out:
                command = option(command)
        file = click.option(
            "--config",
            "config_file",
            type=click.Path(path_type=Path),
            metavar="FILE.toml",
            help="Settings from a file, such as a run's config.toml; options given beside it win.",
        )
        return file(command)

    return add


def config_of(config_file: Path | None, given: dict[str, Any]) -> TrainConfig:
    """Join a file's settings and the options that were given."""
    values = {} if config_file is None else read_config_file(config_file)
    return TrainConfig.from_mapping({**values, **{name: value for name, value in given.items() if value is not None}})


def out_option(what: str) -> Callable[[Command], Command]:
    """Add ``--out``."""
    return click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help=what)


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Write JSON to standard output, and nothing else there."
)
