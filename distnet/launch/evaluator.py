"""The process beside a training that keeps TensorFlow out of the launcher: it makes the initial parameters, and
scores averaged ones on the test pictures.

``python -m distnet.launch.evaluator CONFIG INITIAL``: reads the configuration, writes the initial parameters to the
path INITIAL, says what the data are, and then answers each line of its input, a JSON object with the ``path`` of
parameters, by the same object with ``accuracy`` and ``loss``. It runs at a low priority: workers come first.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from distnet.errors import DistNetError
from distnet.launch.config import TrainConfig, read_config_file
from distnet.launch.folder import load_arrays, save_arrays

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Be the evaluator; the exit code is 0, or 1 after saying what went wrong."""
    with contextlib.suppress(OSError):
        os.nice(10)
    try:
        _serve(TrainConfig.from_mapping(read_config_file(Path(arguments[0]))), Path(arguments[1]))
    except DistNetError as error:
        _say({"kind": "error", "error": type(error).__name__, "message": str(error)})
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _serve(config: TrainConfig, initial: Path) -> None:
    from distnet.examples.cifar10 import load_data

    data = load_data(config.data)  # first: data that are not there should not wait for TensorFlow
    from distnet.examples.training import evaluate, initial_parameters

    save_arrays(initial, initial_parameters(config.seed), {})
    train, test = len(data.train_images), len(data.test_images)
    _say({"kind": "data", "name": data.name, "train_examples": train, "test_examples": test})
    for line in sys.stdin:
        request = json.loads(line)
        result = evaluate(load_arrays(Path(request["path"])), data)
        _say({**request, "kind": "evaluation", "accuracy": result.accuracy, "loss": result.loss})


def _say(record: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
