"""The process beside a training that keeps TensorFlow and the images out of the launcher.

``python -m distnet.alexnet.job.evaluator CONFIG``: reads the configuration, loads the data and says what they are, and
then answers each line of its input, a JSON object with the ``path`` of parameters, by the same object with ``accuracy``
and ``loss`` on the test images. It runs at a low priority: workers come first.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

from distnet.alexnet.job.config import TrainConfig, read_config_file
from distnet.alexnet.job.folder import load_scored
from distnet.errors import DistNetError
from distnet.launch.children.records import error_record, say_record

__all__ = ["main"]


def main(arguments: list[str]) -> int:
    """Be the evaluator; the exit code is 0, or 1 after saying what went wrong."""
    with contextlib.suppress(OSError):
        os.nice(10)
    try:
        _serve(TrainConfig.from_mapping(read_config_file(Path(arguments[0]))))
    except (DistNetError, ModuleNotFoundError) as error:
        say_record(error_record(error))
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _serve(config: TrainConfig) -> None:
    from distnet.data.cifar10 import load_data

    data = load_data(config.data, holdout=config.holdout or 0)
    train, test = len(data.train_images), len(data.test_images)
    say_record({"kind": "data", "name": data.name, "train_examples": train, "test_examples": test})
    for line in sys.stdin:
        from distnet.alexnet.loops import evaluate  # with TensorFlow, which nothing before needs

        request = json.loads(line)
        result = evaluate(load_scored(Path(request["path"])), data)
        say_record({**request, "kind": "evaluation", "accuracy": result.accuracy, "loss": result.loss})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
