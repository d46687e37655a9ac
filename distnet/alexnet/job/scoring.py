"""What ``distnet evaluate`` does: finds a checkpoint and its images, and scores the one on the other."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distnet._private import launcher_env
from distnet._private.arrays import Arrays
from distnet.alexnet.job.config import TrainConfig, read_config_file
from distnet.alexnet.job.folder import CHECKPOINTS
from distnet.errors import ConfigError, ManifestMismatch
from distnet.launch.output.chatter import is_chatter

__all__ = ["score"]


def score(path: Path, *, parameters: bool = False, data: str | None = None) -> dict[str, Any]:
    """Score the parameters of a checkpoint on test images.

    Args:
        path: a run's folder, a folder of checkpoints, or a checkpoint's file.
        parameters: the parameters themselves; else their EMA, where the checkpoint has one.
        data: the images; None: those of the run that the checkpoint lies in, else CIFAR-10.

    Returns:
        ``checkpoint`` (its path), ``updates``, ``scored`` (``"ema"`` or ``"parameters"``), ``data`` (the images' name),
        ``examples``, ``accuracy`` and ``loss``.

    Raises:
        ConfigError: there is no checkpoint, or it cannot be read; or there are no images.
        ManifestMismatch: the checkpoint is of another model.
    """
    from distnet import checkpoint

    file, run = _find(path)
    found = checkpoint.load(file)
    arrays = found.parameters if parameters or found.ema is None else found.ema
    _check_model(file, arrays)  # before images are looked for
    config = None if run is None else TrainConfig.from_mapping(read_config_file(run / "config.toml"))
    launcher_env.set_up_tensorflow()
    from distnet.data.cifar10 import load_data

    with _without_chatter():
        from distnet.alexnet.loops import evaluate

    source = data or (config.data if config is not None else TrainConfig.data)
    holdout = config.holdout if config is not None and data is None else None
    images = load_data(source, holdout=holdout or 0)
    result = evaluate(arrays, images)
    return {
        "checkpoint": str(file),
        "updates": min(found.versions),
        "scored": "parameters" if arrays is found.parameters else "ema",
        "data": images.name,
        "examples": result.examples,
        "accuracy": result.accuracy,
        "loss": result.loss,
    }


def _check_model(file: Path, arrays: Arrays) -> None:
    from distnet.alexnet.network import in_order

    try:
        in_order(arrays)
    except ManifestMismatch as error:
        raise ManifestMismatch(f"{file} is not a checkpoint of AlexNet, which alone is scored here: {error}") from error


@contextlib.contextmanager
def _without_chatter() -> Iterator[None]:
    """Hold this process's standard error back inside, and write it at the end without what TensorFlow says at a start.

    TensorFlow writes to the descriptor itself, before anything can be set.
    """
    own = os.dup(2)
    try:
        with tempfile.TemporaryFile() as held:
            os.dup2(held.fileno(), 2)
            try:
                yield
            finally:
                os.dup2(own, 2)
                held.seek(0)
                for line in held:
                    if not is_chatter(line.decode(errors="replace")):
                        os.write(2, line)
    finally:
        os.close(own)


def _find(path: Path) -> tuple[Path, Path | None]:
    """Return a checkpoint's file, and the folder of the run that it lies in, if any."""
    from distnet.checkpoint import CheckpointFolder

    if path.is_file():
        file = path.resolve()
    else:
        is_run = (path / "config.toml").is_file()
        newest = CheckpointFolder(path / CHECKPOINTS if is_run else path).latest() if path.is_dir() else None
        if newest is None:
            raise ConfigError(
                f"there is no checkpoint in {path}; expected a run's folder, a folder of checkpoints, or a checkpoint"
            )
        file = newest.resolve()
    run = file.parent.parent
    return file, run if file.parent.name == CHECKPOINTS and (run / "config.toml").is_file() else None
