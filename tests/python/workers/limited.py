"""A server in a process of its own, under a limit of descriptors: it prints its address, then a line for each request.

``python limited.py LIMIT ARGUMENTS``: the soft limit (0 leaves it), and what ``ParameterServer`` takes, as JSON;
``floats`` is the size of the model, or 0 where rank 0 brings it; ``on_loss`` changes that of the semantics. It ends
with its stdin.
"""

from __future__ import annotations

import dataclasses
import json
import resource
import sys
from typing import Any

import numpy as np

import distnet


def main() -> None:
    limit, arguments = int(sys.argv[1]), json.loads(sys.argv[2])
    if limit:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    floats = arguments.pop("floats")
    semantics = distnet.SEMANTICS[arguments.pop("semantics")]
    if "on_loss" in arguments:
        semantics = dataclasses.replace(semantics, on_loss=arguments.pop("on_loss"))
    model = [np.zeros(floats, np.float32)] if floats else None
    with distnet.ParameterServer(model, semantics=semantics, optimizer=distnet.SGD(1.0), **arguments) as server:
        say(server.address)
        for line in sys.stdin:
            say(answer(server, line.strip()))


def answer(server: distnet.ParameterServer, question: str) -> Any:
    if question == "stats":
        return server.stats().as_dict()
    if question == "memory":
        return server.memory()["total"]
    raise ValueError(question)


def say(what: Any) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
