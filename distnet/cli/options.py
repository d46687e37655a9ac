"""The options of all commands, one definition each, and how they and a file of settings become one value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from distnet.alexnet.job.config import LOCAL, TrainConfig, read_config_file
from distnet.errors import ConfigError
from distnet.formats import FORMATS
from distnet.optimizers import OPTIMIZERS
from distnet.semantics import SEMANTICS
from distnet.settings.job import DEFAULT_SEMANTICS, DEFAULT_WORKERS, JobSettings, join_settings

__all__ = [
    "config_of",
    "config_options",
    "joined_options",
    "json_option",
    "option_of",
    "out_option",
    "settings_of",
    "with_options",
]

Command = TypeVar("Command", bound=Callable[..., Any])
Settings = TypeVar("Settings", bound=JobSettings)

_OPTIONS: Mapping[str, Callable[[Command], Command]] = {
    # ---- the job -----------------------------------------------------------------------------------------------------
    "semantics": click.option(
        "--semantics",
        metavar="NAME",
        help=f"When the server answers and how it guards its memory: {', '.join(SEMANTICS)}.  "
        f"[default: {DEFAULT_SEMANTICS}]",
    ),
    "workers": click.option("--workers", "-n", type=int, help=f"Number of workers.  [default: {DEFAULT_WORKERS}]"),
    "servers": click.option("--servers", type=int, help="Number of servers (shards).  [default: 1; async-sharded 2]"),
    "advertise": click.option(
        "--advertise",
        metavar="HOST",
        help="What clients are told instead of --address: a host or tcp://host:port, for mapped ports and containers.",
    ),
    "transport": click.option("--transport", metavar="auto|shm|tcp", help="How gradients travel.  [default: auto]"),
    "push_format": click.option(
        "--push-format",
        metavar="NAME",
        help=f"How gradients travel over TCP: {', '.join(FORMATS)}:RATIO.  [default: float32]",
    ),
    "pull_format": click.option(
        "--pull-format", metavar="NAME", help="How parameters do: any of these but topk.  [default: float32]"
    ),
    "ema_decay": click.option(
        "--ema-decay",
        type=float,
        help="Decay of a moving average of the parameters (EMA), kept on the server, such as 0.999; 0: none.",
    ),
    "config_file": click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        metavar="FILE.toml",
        help="Settings from a file, by these options' names, at its top level and in a table [job]; options given "
        "beside it win.",
    ),
    # ---- the optimizer -----------------------------------------------------------------------------------------------
    "optimizer": click.option(
        "--optimizer",
        metavar="NAME(…)",
        help=f"Of {', '.join(OPTIMIZERS)}, with settings such as 'momentum(0.05, momentum=0.9)'.",
    ),
    "learning_rate": click.option("--learning-rate", type=float, help="The learning rate, or where a schedule starts."),
    "schedule": click.option(
        "--schedule",
        metavar="NAME(…)",
        help="From the learning rate down, by updates: 'cosine(updates=10000, warmup=500)', 'exponential(factor=0.1, "
        "updates=350)', 'piecewise(boundaries=[100], learning_rates=[0.1, 0.01])', constant.",
    ),
    "groups": click.option(
        "--group",
        "groups",
        multiple=True,
        callback=lambda _context, _parameter, groups: groups or None,  # None: not given, as everywhere
        metavar="PATTERN=group(…)",
        help="Settings of the tensors of these names: '*bias*=group(learning_rate_multiplier=2, weight_decay=0)'. May "
        "be given several times; the first pattern that matches counts.",
    ),
    "clip_norm": click.option("--clip-norm", type=float, help="Workers scale longer gradients down to this norm."),
    "clip_value": click.option("--clip-value", type=float, help="Clamp a gradient's elements to plus or minus this."),
    # ---- the training ------------------------------------------------------------------------------------------------
    "recipe": click.option(
        "--recipe",
        metavar="NAME",
        help="'default', 'momentum', 'nesterov', 'long', or 'tutorial': the 2017 project's.",
    ),
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
    "trainer": click.option(
        "--trainer",
        metavar="tensorflow|keras",
        help="DistNet's worker for TensorFlow, or fit() of a distributed Keras model.  [default: tensorflow]",
    ),
    "precision": click.option(
        "--precision", metavar="float32|bfloat16", help="Of the convolutions; bfloat16 is faster where the CPU has it."
    ),
    "overlap": click.option(
        "--overlap/--no-overlap", default=None, help="Exchange one gradient while the next is computed."
    ),
    "evaluate": click.option(
        "--evaluate", metavar="during|after|never", help="When to score the test images.  [default: during]"
    ),
    "timeout": click.option("--timeout", type=float, help="Seconds of silence that end the run.  [default: 60]"),
    # ---- workers -----------------------------------------------------------------------------------------------------
    "threads_per_worker": click.option(
        "--threads-per-worker", type=int, help="Threads of each worker's numeric libraries."
    ),
    "on_loss": click.option(
        "--on-loss",
        metavar="shrink|wait|abort",
        help="What a round of sync does about a worker that died: go on without it, wait for it to come back, or end "
        "all rounds.  [default: shrink; where checkpoints are written, or with --max-restarts, wait]",
    ),
    "round_timeout": click.option(
        "--round-timeout",
        type=float,
        metavar="SECONDS",
        help="How long a round waits for a worker that lives but pushes nothing.  [default: 1800]",
    ),
    "reconnect_timeout": click.option(
        "--reconnect-timeout",
        type=float,
        metavar="SECONDS",
        help="How long a worker whose TCP connection broke counts as away, not as died.  [default: 0]",
    ),
    "max_restarts": click.option(
        "--max-restarts",
        type=int,
        metavar="N",
        help="Start a worker that failed again, up to N times, after 1 s, then 2 s, then 4 s ….  [default: 0]",
    ),
    "when_a_worker_fails": click.option(
        "--when-a-worker-fails",
        metavar="stop|continue",
        help="And is not started again: stop the job, or let the others go on.  [default: continue; in sync stop, "
        "unless --on-loss is given]",
    ),
    "join": click.option(
        "--join",
        metavar="ADDRESS",
        help="Start no servers: the workers join those at this address, as `distnet serve` printed it.",
    ),
    "ranks": click.option(
        "--ranks", metavar="2-3", help="The ranks to start here, such as 0, 2-3 or 0,2.  With --join."
    ),
    # ---- checkpoints -------------------------------------------------------------------------------------------------
    "checkpoint": click.option(
        "--checkpoint", type=click.Path(), metavar="DIR", help="Write checkpoints into this folder, also at the end."
    ),
    "checkpoint_every": click.option(
        "--checkpoint-every", metavar="500updates|10min", help="How often to write one meanwhile.  [default: 10min]"
    ),
    "keep_checkpoints": click.option(
        "--keep-checkpoints", type=int, metavar="N", help="Keep the last N of them.  [default: 3]"
    ),
    "restore": click.option(
        "--restore",
        type=click.Path(),
        metavar="PATH",
        help="Go on from a checkpoint, or from the latest of a folder. What is not given here is as it was saved.",
    ),
    "resume": click.option(
        "--resume",
        type=click.Path(),
        metavar="DIR",
        help="Go on from the latest checkpoint in a folder, and write further ones there: --restore and --checkpoint.",
    ),
    # ---- in detail ---------------------------------------------------------------------------------------------------
    "reduction": click.option("--reduction", metavar="mean|sum", help="Of a round's gradients.  [default: mean]"),
    "max_inflight": click.option(
        "--max-inflight",
        type=int,
        metavar="N",
        help="Pushes of one worker that may be accepted and not yet applied, 1 to 16.  [default: 2]",
    ),
    "joins": click.option(
        "--joins",
        metavar="one|all",
        help="Whether an update joins one push or one of each worker. This and the next two: instead of what "
        "--semantics has.",
    ),
    "replies": click.option(
        "--replies",
        metavar="after-apply|before-apply",
        help="When a push is answered.",
    ),
    "guard": click.option("--guard", metavar="mutex|lock-free", help="How the parameters are guarded."),
    "tuning": click.option(
        "--tuning", metavar="tuning(…)", help="The servers' fast paths, such as 'tuning(spin=0, deliver=false)'."
    ),
}

SERVER_OPTIONS = (
    *("semantics", "workers", "servers", "advertise", "push_format", "pull_format", "ema_decay", "config_file"),
    *("optimizer", "learning_rate", "schedule", "groups", "clip_norm", "clip_value"),
    *("on_loss", "round_timeout", "reconnect_timeout"),
    *("reduction", "max_inflight", "joins", "replies", "guard", "tuning"),
)
"""What is said of servers, whoever starts them."""
SERVER_ALONE = (
    *(name for name in SERVER_OPTIONS if name not in ("semantics", "workers")),
    "checkpoint_every",
    "keep_checkpoints",
)
"""What a worker of DistNet's own need not know."""
CHECKPOINT_OPTIONS = ("checkpoint", "checkpoint_every", "keep_checkpoints", "restore", "resume")
WORKER_OPTIONS = ("threads_per_worker", "max_restarts", "when_a_worker_fails", "join", "ranks")
_TRAIN_OPTIONS = (
    *(name for name in SERVER_OPTIONS if name not in ("semantics", "advertise", "config_file")),
    *("transport", "trainer", "recipe", "batch_size", "epochs", "steps", "data", "holdout", "seed", "precision"),
    *("overlap", "evaluate", "timeout", "threads_per_worker", "checkpoint_every", "keep_checkpoints"),
)
_TRAIN_SEMANTICS = click.option(
    "--semantics",
    metavar="NAME",
    help=f"When the server answers and how it guards its memory: {', '.join(SEMANTICS)}; or '{LOCAL}' for one process "
    f"without a server.  [default: {TrainConfig.semantics}]",
)


def with_options(*names: str) -> Callable[[Command], Command]:
    """Add the options of these names."""

    def add(command: Command) -> Command:
        for name in reversed(names):
            command = _OPTIONS[name](command)
        return command

    return add


def config_options(*left_out: str) -> Callable[[Command], Command]:
    """Add an option for the settings of a ``TrainConfig`` but for those left out, and ``--config``."""
    names = [name for name in _TRAIN_OPTIONS if name not in left_out]

    def add(command: Command) -> Command:
        command = with_options(*names)(command)
        if "semantics" not in left_out:
            command = _TRAIN_SEMANTICS(command)
        return _OPTIONS["config_file"](command)

    return add


def config_of(config_file: Path | None, given: Mapping[str, Any]) -> TrainConfig:
    """Join a file's settings and the options that were given."""
    return settings_of(TrainConfig, {**given, "config_file": config_file}, tables=("job", "train"))


def settings_of(kind: type[Settings], options: Mapping[str, Any], *, tables: Sequence[str], **fixed: Any) -> Settings:
    """Return the settings that a file and the options that were given make; what is wrong is named as it was written.

    Args:
        kind: of settings.
        options: as :func:`joined_options` takes them.
        tables: of the file.
        fixed: settings that win over both.

    Raises:
        ConfigError: a setting makes no sense; the message names its option, or the file.
    """
    values = joined_options(options, tables=tables)
    try:
        return kind.from_mapping({**values, **fixed})
    except ConfigError as error:
        message, name = str(error), str(error).partition(" ")[0]
        if name in values and options.get(name) is not None:
            raise ConfigError(option_of(name) + message[len(name) :]) from error
        file = options.get("config_file")
        if file is not None and message in (_wrong_with(kind, file, tables, fixed) or ""):
            raise ConfigError(f"{file}: {message}") from error
        raise


def _wrong_with(kind: type[JobSettings], file: Any, tables: Sequence[str], fixed: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a file by itself."""
    try:
        kind.from_mapping({**read_config_file(Path(file), tables=tables), **fixed})
    except ConfigError as error:
        return str(error)
    return None


def option_of(name: str) -> str:
    """Return the option that gives a setting."""
    return {"groups": "--group"}.get(name, "--" + name.replace("_", "-"))


def joined_options(options: Mapping[str, Any], *, tables: Sequence[str] = ("job", "train")) -> dict[str, Any]:
    """Return the settings in the file that ``--config`` names, with the options that were given, which win.

    Args:
        options: as a command got them; None: not given.
        tables: of the file.
    """
    given = {name: value for name, value in options.items() if value is not None}
    file = given.pop("config_file", None)
    return join_settings({} if file is None else read_config_file(Path(file), tables=tables), given)


def out_option(what: str) -> Callable[[Command], Command]:
    """Add ``--out``."""
    return click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help=what)


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Write JSON to standard output, and nothing else there."
)
