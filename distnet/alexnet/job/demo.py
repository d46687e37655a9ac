"""The demonstration: a short training on two workers that works on a fresh machine, with or without a network."""

from __future__ import annotations

import dataclasses
import time
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distnet.alexnet.job.config import TrainConfig
from distnet.alexnet.job.display import Display

__all__ = ["demo_config"]

_EPOCHS = {"generated": 4.0}  # there are fewer of those images
_EPOCHS_OF_OTHERS = 2.0
_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
_PROBE_S = 4.0
_PROBE_BYTES = 8_000_000


def demo_config(config: TrainConfig, given: Mapping[str, Any], display: Display) -> TrainConfig:
    """Return the demonstration's configuration: what was given stays, the rest is short.

    CIFAR-10 is taken where it lies or can be fetched in a minute or so; else images are generated, with a note.
    """
    data = given.get("data") or _data_at_hand(display)
    changes: dict[str, Any] = {"data": data}
    if config.epochs is None and config.steps is None:
        changes["epochs"] = _EPOCHS.get(data, _EPOCHS_OF_OTHERS)
    return dataclasses.replace(config, **changes)


def _data_at_hand(display: Display) -> str:
    if _in_keras_cache() or _quick_to_download():
        return "cifar10"
    display.note("CIFAR-10 is not here and cannot be downloaded quickly: training on generated images instead.")
    return "generated"


def _in_keras_cache() -> bool:
    return any((Path.home() / ".keras" / "datasets").glob("cifar-10-batches-py*"))


def _quick_to_download() -> bool:
    """Return whether the first megabytes come fast enough for the whole 170 MB not to spoil the demonstration."""
    give_up_s = time.monotonic() + _PROBE_S
    try:
        with urllib.request.urlopen(_URL, timeout=_PROBE_S) as answer:
            received = 0
            while received < _PROBE_BYTES and time.monotonic() < give_up_s:
                piece = answer.read(1 << 16)
                if not piece:
                    return False
                received += len(piece)
    except (OSError, ValueError):
        return False
    return received >= _PROBE_BYTES
