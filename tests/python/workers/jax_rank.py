"""A worker that trains with JAX as its test tells it: JSON lines in on stdin, one JSON line out for each.

The test names a function of ``jax_training``, which gets a client and this worker's share of the data.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import jax_training
from jax_training import leaves_of, share_of

import distnet
from distnet.jax import callbacks

BUFFER_CALLBACK = callbacks.buffer_callback


def train(way: str, address: str, rank: int, *, by: str) -> list[Any]:
    """Train in a way of ``jax_training``, and return the leaves of the parameters."""
    _call_by(by)
    with distnet.connect(address, rank=rank) as client:
        return leaves_of(getattr(jax_training, way)(client, share_of(rank)))


def _call_by(name: str) -> None:
    """Have steps that are traced from now on call the client by this function of JAX."""
    callbacks.buffer_callback = BUFFER_CALLBACK if name == "buffer_callback" else None
    callbacks.chosen_way.cache_clear()
    assert callbacks.chosen_way().name == name


def main() -> None:
    """Answer each line until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever prints must not answer
    answers.write(json.dumps({"result": os.getpid()}) + "\n")
    for line in sys.stdin:
        arguments = json.loads(line)
        arguments.pop("do")
        answer: dict[str, Any]
        try:
            answer = {"result": train(**arguments)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": type(error).__name__, "message": str(error)}
        answers.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
