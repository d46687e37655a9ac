"""A rank of torch.distributed that does what its test tells it: JSON lines in on stdin, one JSON line out for each.

The test names a function of ``torch_cases/``, which runs between ``init_process_group`` and ``destroy_process_group``.
"""

from __future__ import annotations

import datetime
import importlib
import json
import os
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import distnet.torch

sys.path.insert(0, str(Path(__file__).parent))


def run(
    case: str,
    rank: int,
    size: int,
    store: str,
    transport: str,
    timeout_s: float = 60.0,
    settings: dict[str, Any] | None = None,
    **arguments: Any,
) -> Any:
    """Run ``module.function`` of ``torch_cases/`` as one rank, and return what it returns."""
    module, _, function = case.partition(".")
    call = getattr(importlib.import_module(f"torch_cases.{module}"), function)
    dist.init_process_group(
        "distnet",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=timeout_s),
        pg_options=distnet.torch.ProcessGroupOptions(transport=transport),
    )
    try:
        seen = dist.group.WORLD.transport
        assert seen == transport, f"the transport is {seen}; expected {transport}"
        return call(**arguments, **(settings or {}))
    finally:
        dist.destroy_process_group()


def main() -> None:
    """Answer each line until stdin ends."""
    warnings.simplefilter("ignore", FutureWarning)  # PyTorch's, of names that older versions need
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever prints must not answer
    answers.write(json.dumps({"result": os.getpid()}) + "\n")
    for line in sys.stdin:
        arguments = json.loads(line)
        arguments.pop("do")
        begun_s = time.monotonic()
        answer: dict[str, Any]
        try:
            answer = {"result": run(**arguments)}
        except Exception as error:
            traceback.print_exc()
            answer = {"error": type(error).__name__, "message": str(error)}
        answers.write(json.dumps({**answer, "seconds": time.monotonic() - begun_s}) + "\n")


if __name__ == "__main__":
    main()
