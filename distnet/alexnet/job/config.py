"""The full configuration of a training run: validated once, kept in its folder, and read back to run it again."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from distnet.errors import ConfigError
from distnet.semantics import SEMANTICS
from distnet.settings.job import DEFAULT_SEMANTICS, DEFAULT_WORKERS, JobSettings, check_choice, check_whole

__all__ = ["KERAS", "LOCAL", "TENSORFLOW", "TrainConfig", "read_config_file", "write_config_file"]

LOCAL = "local"
"""The baseline's name where a semantics is expected: one process that trains by itself, without a server."""

TENSORFLOW, KERAS = "tensorflow", "keras"
"""The trainers: DistNet's own worker for TensorFlow, and the ``fit`` of Keras on a distributed model."""

TRAINERS = (TENSORFLOW, KERAS)
TRANSPORTS = ("auto", "shm", "tcp")
EVALUATIONS = ("during", "after", "never")
PRECISIONS = ("float32", "bfloat16")
_TABLES = ("job", "train")  # that a file of settings may have, whoever reads it


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(JobSettings):
    """One training of AlexNet on this machine: a job's settings and those of the training itself.

    What is not given of the optimizer, its learning rate, its schedule and the EMA is the recipe's.

    Attributes:
        semantics: a name of ``distnet.SEMANTICS``, or ``"local"``: one process, no server.
        workers: how many.
        push_format: how gradients travel over TCP, as in ``distnet.ParameterServer``.
        pull_format: how parameters do.
        transport: ``"auto"`` (shared memory), ``"shm"`` or ``"tcp"``.
        trainer: ``"tensorflow"``, the worker of ``distnet.tensorflow``, or ``"keras"``, plain ``fit`` on a model that
            ``distnet.keras.distribute`` has put over the servers. In rounds it leaves out the steps that cannot be
            shared evenly.
        recipe: a name of ``distnet.alexnet.recipes.RECIPES``.
        batch_size: of one worker; None: the recipe's.
        epochs: passes over the training images, all workers together; None: the recipe's, unless ``steps`` is given.
        steps: steps of all workers together, instead of ``epochs``.
        data: ``"cifar10"``, ``"generated"`` or a folder of the official binary files.
        holdout: so many training images, the last ones, are scored instead of the test images, and not trained on;
            None: none.
        seed: of the initial parameters, the shares of the data and the augmentation.
        threads_per_worker: None: this machine's cores shared evenly.
        precision: of the convolutions, ``"float32"`` or ``"bfloat16"``.
        overlap: whether a worker exchanges one step's gradient while it computes the next.
        evaluate: ``"during"`` the training as well, beside the workers; only ``"after"`` it, which leaves them the
            whole machine; or ``"never"``.
        timeout: seconds of a peer's silence that end the run; where it is longer than a round's own timeout, rounds
            of ``sync`` wait as long.
        checkpoint_every: how often a checkpoint is written, such as ``"500updates"`` or ``"10min"``; also at the end,
            and when the training is interrupted. ``"local"`` writes one at its end alone.
    """

    semantics: str = DEFAULT_SEMANTICS
    workers: int = DEFAULT_WORKERS
    push_format: str = "float32"
    pull_format: str = "float32"
    transport: str = "auto"
    trainer: str = TENSORFLOW
    recipe: str = "default"
    batch_size: int | None = None
    epochs: float | None = None
    steps: int | None = None
    data: str = "cifar10"
    holdout: int | None = None
    seed: int = 1
    precision: str = "float32"
    overlap: bool = False
    evaluate: str = "during"
    timeout: float = 60.0
    checkpoint_every: str = "10min"

    known_semantics: ClassVar[tuple[str, ...]] = (*SEMANTICS, LOCAL)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choice("transport", self.transport, TRANSPORTS)
        check_choice("trainer", self.trainer, TRAINERS)
        check_choice("precision", self.precision, PRECISIONS)
        check_choice("evaluate", self.evaluate, EVALUATIONS)
        check_whole("batch_size", self.batch_size, 1, 1 << 20)
        check_whole("steps", self.steps, 1, 1 << 40)
        check_whole("holdout", self.holdout, 1, 1 << 40)
        check_whole("seed", self.seed, 0, (1 << 31) - 1)
        for name in ("epochs", "timeout"):
            _above_zero(name, getattr(self, name))
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise ConfigError("steps and epochs were both given; give one of them")
        if self.transport != "tcp" and (self.push_format, self.pull_format) != ("float32", "float32"):
            raise ConfigError("formats are for TCP, and shared memory would be taken here; give --transport tcp, too")
        if self.max_restarts or self.when_a_worker_fails == "continue":
            raise ConfigError("a training ends when one of its workers fails; max_restarts is a setting of distnet run")
        if self.semantics == LOCAL and self.workers != 1:
            raise ConfigError(
                f"semantics 'local' is one process without a server, but workers is {self.workers}; use 1"
            )
        if self.trainer == KERAS and self.semantics == LOCAL:
            raise ConfigError("trainer is 'keras', and semantics 'local' has no server; give another semantics")
        if self.trainer == KERAS and (self.overlap or self.groups):
            what = "overlap" if self.overlap else "groups"
            raise ConfigError(f"{what} goes with the trainer 'tensorflow'; the compiled optimizer of 'keras' has none")
        if self.semantics == LOCAL and self.groups:
            raise ConfigError("semantics 'local' is one process without a server, and groups are the server's")


def read_config_file(path: Path, *, tables: Sequence[str] = ("job", "train")) -> dict[str, Any]:
    """Return the settings in a TOML (or JSON) file: those of its top level, and of its tables of these names.

    Args:
        path: the file.
        tables: what may hold settings; later ones win. A training reads ``[job]`` and ``[train]``, which a run's own
            ``config.toml`` has.

    Raises:
        ConfigError: it cannot be read, or is not what its name says; it holds another table, or a setting both at its
            top level and in a table.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else _parse_toml(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from error
    if not isinstance(values, dict):
        raise _no_table(path)
    settings = {name: value for name, value in values.items() if name not in _TABLES and not _is_table(name, value)}
    for name, value in values.items():
        if name not in _TABLES and _is_table(name, value):
            raise ConfigError(
                f"{path} has a table [{name}]; expected settings in {_listed(tables)} or at its top level"
            )
        if name in _TABLES and not isinstance(value, dict):
            raise _no_table(path)
    if "train" in values and not {*tables, *settings} & set(values):
        raise ConfigError(f"{path} holds the settings of a training, [train]; expected a table [{tables[0]}]")
    top = dict(settings)
    for name in tables:
        table = values.get(name, {})
        if twice := sorted(set(top) & set(table)):
            raise ConfigError(f"{path} says {twice[0]} at its top level and in [{name}]; say it once")
        settings |= table
    return settings


def _is_table(name: str, value: object) -> bool:
    """Return whether a value is a table of settings; that of groups is a setting itself."""
    return isinstance(value, dict) and name != "groups"


def _listed(tables: Sequence[str]) -> str:
    return " or ".join(f"[{name}]" for name in tables)


def _no_table(path: Path) -> ConfigError:
    return ConfigError(f'{path} holds no table of settings; expected lines such as: semantics = "sync"')


def write_config_file(path: Path, config: TrainConfig) -> None:
    """Write a configuration as TOML, so that ``--config`` runs it again."""
    lines = ["# Run again with: distnet train --config config.toml --out FOLDER", "[train]"]
    # A JSON string, number or boolean is the same in TOML.
    lines += [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in config.to_mapping().items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _parse_toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise ConfigError("TOML needs Python 3.11 or the package tomli; a .json file works without") from error
    return tomllib.loads(text)


def _above_zero(name: str, value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12):
        raise ConfigError(f"{name} is {value!r}; expected a number above 0")
