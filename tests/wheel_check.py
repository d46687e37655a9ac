"""Tries out an installed wheel, with NumPy alone beside it: one push and its answer over each transport."""

from __future__ import annotations

import importlib.metadata

import numpy as np

import distnet


def main() -> None:
    """Push a gradient of ones over shared memory and over TCP; each must take its learning rate off the parameters."""
    for address, transport in (("shm://", "shm"), ("tcp://127.0.0.1:0", "tcp")):
        parameters = [np.zeros(1000, np.float32)]
        with (
            distnet.ParameterServer(
                parameters, address=address, semantics="async-apply", optimizer=distnet.SGD(0.5)
            ) as server,
            distnet.connect(server.address, rank=0, transport=transport) as client,
        ):
            (after,) = client.push_pull([np.ones(1000, np.float32)])
        if not np.array_equal(after, np.full(1000, -0.5, np.float32)):
            raise SystemExit(f"over {transport}: expected -0.5 everywhere, got {after[:3]} …")
    (backend,) = (one for one in importlib.metadata.entry_points(group="torch.backends") if one.name == "distnet")
    backend.load()()  # what PyTorch does at the end of `import torch`; without PyTorch it does nothing
    print(f"distnet {distnet.__version__}: one push over each transport is right")


if __name__ == "__main__":
    main()
