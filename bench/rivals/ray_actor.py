"""A Ray actor that holds the parameters: gradients go through the object store, fresh parameters come back through it.

Best settings found: one flat array; a gradient that is put into the store and passed by reference, read there without a
copy; parameters that the actor puts there and the worker copies from there, once. No dashboard.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

from distnet.benchmark.measure import RATE, Size
from distnet.benchmark.turns import Contender, timed
from rivals.pair import pair, serve

_STORE_BYTES = 2 << 30
_PUT_FROM_BYTES = 100 << 10  # Ray itself sends smaller arguments along with the call


@contextlib.contextmanager
def contender(size: Size) -> Iterator[Contender]:
    """Push a gradient to the actor and get its parameters."""
    with pair("Ray actor", __name__, size, roles=("worker",)) as rival:
        yield rival


def main(role: str, tensors: list[int], folder: str) -> None:
    """Run the worker; Ray starts the rest, and ends it with the worker."""
    import numpy as np

    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    class Server:
        def __init__(self, floats: int) -> None:
            self.parameters = np.zeros(floats, np.float32)
            self.scratch = np.empty_like(self.parameters)

        def push_pull(self, gradient: Any) -> Any:
            np.multiply(gradient, np.float32(RATE), out=self.scratch)
            self.parameters -= self.scratch
            return self.parameters

    ray.init(
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=_STORE_BYTES,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=folder,
    )
    make: Any = ray.remote(Server)
    server = make.remote(sum(tensors))
    gradient = np.ones(sum(tensors), np.float32)
    own = np.zeros_like(gradient)

    def call() -> None:
        argument = ray.put(gradient) if gradient.nbytes >= _PUT_FROM_BYTES else gradient
        np.copyto(own, ray.get(server.push_pull.remote(argument)))

    serve(timed(call), lambda: (float(own.min()), float(own.max())), checks="steps")
    ray.shutdown()


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
