"""A process with one backend of Keras that does what its test tells it: JSON lines in on stdin, one JSON line out.

A backend is loaded once in a process, and takes seconds: the test names it first, and functions of ``keras_cases/``
after that, which run one after another.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

# Keras collects garbage whenever a session is cleared, a third of a second with all that it has imported by the end of
# a first fit: which is after the backend was loaded, and one call has trained.
FROZEN_BEFORE = 2


def load(backend: str) -> str:
    """Load a backend, with one thread for sums of one order, and return the version of Keras."""
    os.environ.update(
        {"KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    )
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        os.environ[name] = "1"
    import keras

    assert keras.backend.backend() == backend
    return str(keras.__version__)


def call(name: str, arguments: dict[str, Any]) -> Any:
    """Call a function of ``keras_cases/``."""
    if name == "load":
        return load(**arguments)
    if name == "nothing":
        return None
    from keras_cases.training import Training

    if "training" in arguments:
        arguments["training"] = Training(**arguments["training"])
    module, _, function = name.partition(".")
    return getattr(importlib.import_module(f"keras_cases.{module}"), function)(**arguments)


def public_name(error: Exception) -> str:
    """Return the name of an error's class: the public one that it is of, where DistNet raised it."""
    import distnet.errors

    public = (kind.__name__ for kind in type(error).__mro__ if hasattr(distnet.errors, kind.__name__))
    return next(public, type(error).__name__)


def main() -> None:
    """Answer each line until stdin ends."""
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever prints must not answer
    answers.write(json.dumps({"result": os.getpid()}) + "\n")
    for number, line in enumerate(sys.stdin):
        if number == FROZEN_BEFORE:
            gc.collect()
            gc.freeze()
        arguments = json.loads(line)
        begun_s = time.monotonic()
        answer: dict[str, Any]
        try:
            answer = {"result": call(arguments.pop("do"), arguments)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": public_name(error), "message": str(error)}
        answers.write(json.dumps({**answer, "seconds": time.monotonic() - begun_s}) + "\n")


if __name__ == "__main__":
    main()
