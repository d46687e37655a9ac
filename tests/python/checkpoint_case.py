"""States, pushes and folders for the tests of checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from small_model import random_model

import distnet


def a_snapshot(parameters: Any = None, **changes: Any) -> distnet.Snapshot:
    parameters = random_model(0) if parameters is None else parameters
    fields: dict[str, Any] = {
        "parameters": parameters,
        "optimizer_state": (parameters,),
        "ema": None,
        "versions": (3,),
        "round": None,
        "optimizer": distnet.Momentum(0.1).to_spec(),
    }
    return distnet.Snapshot(**fields | changes)


def push(server: distnet.ParameterServer, count: int, transport: str = "auto") -> None:
    """Push as often, by one worker."""
    with distnet.connect(server.address, rank=0, transport=transport) as client:
        for number in range(count):
            client.push_pull(random_model(1 + number))


def names_in(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name != ".lock")
