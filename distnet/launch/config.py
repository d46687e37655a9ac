"""The full configuration of a training run: validated once, kept in its folder, and read back to run it again."""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distnet.errors import ConfigError
from distnet.formats import format_spec
from distnet.optimizers import OPTIMIZERS
from distnet.semantics import SEMANTICS

__all__ = ["LOCAL", "TrainConfig", "read_config_file", "suggest", "write_config_file"]

LOCAL = "local"
"""The baseline's name where a semantics is expected: one process that trains by itself, without a server."""

TRANSPORTS = ("auto", "shm", "tcp")
EVALUATIONS = ("during", "after", "never")
PRECISIONS = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One training of AlexNet on this machine.

    Attributes:
        semantics: a name of ``distnet.SEMANTICS``, or ``"local"``: one process, no server.
        workers: how many.
        servers: shards; None: 1, or 2 for ``async-sharded``.
        transport: ``"auto"`` (shared memory), ``"shm"`` or ``"tcp"``.
        recipe: a name of ``distnet.examples.recipes.RECIPES``.
        optimizer: a server-side optimizer instead of the recipe's, at the constant ``learning_rate``.
        learning_rate: its learning rate.
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
        push_format: how gradients travel over TCP, as in ``distnet.ParameterServer``.
        pull_format: how parameters do.
        evaluate: ``"during"`` the training as well, beside the workers; only ``"after"`` it, which leaves them the
            whole machine; or ``"never"``.
        timeout: seconds of a peer's silence that end the run; where it is longer than a round's own timeout, rounds
            of ``sync`` wait as long.
        checkpoint_every: how often a checkpoint is written, such as ``"500updates"`` or ``"10min"``; also at the end,
            and when the training is interrupted. ``"local"`` writes one at its end alone.
    """

    semantics: str = "async-lockfree"
    workers: int = 2
    servers: int | None = None
    transport: str = "auto"
    recipe: str = "default"
    optimizer: str | None = None
    learning_rate: float | None = None
    batch_size: int | None = None
    epochs: float | None = None
    steps: int | None = None
    data: str = "cifar10"
    holdout: int | None = None
    seed: int = 1
    threads_per_worker: int | None = None
    precision: str = "float32"
    overlap: bool = False
    push_format: str = "float32"
    pull_format: str = "float32"
    evaluate: str = "during"
    timeout: float = 60.0
    checkpoint_every: str = "10min"

    def __post_init__(self) -> None:
        _one_of("semantics", self.semantics, (*SEMANTICS, LOCAL))
        _one_of("transport", self.transport, TRANSPORTS)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("evaluate", self.evaluate, EVALUATIONS)
        format_spec(self.push_format, what="push")
        format_spec(self.pull_format, what="pull")
        if self.optimizer is not None:
            _one_of("optimizer", self.optimizer, tuple(OPTIMIZERS))
        for name, most in (("workers", 1024), ("servers", 64), ("threads_per_worker", 4096), ("batch_size", 1 << 20)):
            _whole(name, getattr(self, name), 1, most)
        _whole("steps", self.steps, 1, 1 << 40)
        _whole("holdout", self.holdout, 1, 1 << 40)
        _whole("seed", self.seed, 0, (1 << 31) - 1)
        for name in ("learning_rate", "epochs", "timeout"):
            _above_zero(name, getattr(self, name))
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise ConfigError("steps and epochs were both given; give one of them")
        if self.learning_rate is not None and self.optimizer is None:
            raise ConfigError("learning_rate was given without optimizer; a recipe brings its own, with a schedule")
        if self.transport != "tcp" and (self.push_format, self.pull_format) != ("float32", "float32"):
            raise ConfigError("formats are for TCP, and shared memory would be taken here; give --transport tcp, too")
        if self.semantics == LOCAL and self.workers != 1:
            raise ConfigError(
                f"semantics 'local' is one process without a server, but workers is {self.workers}; use 1"
            )
        if self.semantics != LOCAL and self.servers is not None:
            fewest = SEMANTICS[self.semantics].minimum_servers
            if self.servers < fewest:
                raise ConfigError(f"{self.semantics} needs at least {fewest} servers, not {self.servers}")

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Make one from a file's settings.

        Raises:
            ConfigError: a name that is no setting, or a value of the wrong kind.
        """
        names = {field.name: field for field in dataclasses.fields(cls)}
        for name in values:
            if name not in names:
                raise ConfigError(f"no setting is named {name!r}{suggest(name, names)}")
        return cls(**values)

    def to_mapping(self) -> dict[str, Any]:
        """Return the settings that are not None, by name."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def read_config_file(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML (or JSON) file: those of its table ``[train]``, or of its top level.

    Raises:
        ConfigError: it cannot be read, or is not what its name says.
    """
    try:
        text = path.read_text(encoding="utf-8")
        values = json.loads(text) if path.suffix == ".json" else _parse_toml(text)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from error
    table = values.get("train", values) if isinstance(values, dict) else values
    if not isinstance(table, dict):
        raise ConfigError(f'{path} holds no table of settings; expected lines such as: semantics = "sync"')
    return table


def write_config_file(path: Path, config: TrainConfig) -> None:
    """Write a configuration as TOML, so that ``--config`` runs it again."""
    lines = ["# Run again with: distnet train --config config.toml --out FOLDER", "[train]"]
    # A JSON string, number or boolean is the same in TOML.
    lines += [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in config.to_mapping().items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean …?"`` or, where nothing is near, what there is."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; expected one of {', '.join(known)}"


def _parse_toml(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise ConfigError("TOML needs Python 3.11 or the package tomli; a .json file works without") from error
    return tomllib.loads(text)


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}{suggest(str(value), allowed)}")


def _whole(name: str, value: object, least: int, most: int) -> None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most):
        raise ConfigError(f"{name} is {value!r}; expected a whole number from {least} to {most}")


def _above_zero(name: str, value: object) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12):
        raise ConfigError(f"{name} is {value!r}; expected a number above 0")
