"""Two machines train one model, and each keeps its data to itself: gradients and parameters travel, examples do not.

    host-a$ distnet serve --address tcp://0.0.0.0:7400 --workers 2 --semantics sync --learning-rate 0.5
    host-a$ distnet run --join tcp://host-a:7400 --workers 2 --ranks 0 examples/two_machines.py
    host-b$ distnet run --join tcp://host-a:7400 --workers 2 --ranks 1 examples/two_machines.py

The model is a curve through noisy points. The first machine has only those to the left of 0 and the second only those
to the right, yet both end with a curve that fits all of them: in `sync` an update joins a gradient of each. The server
ends when both are done. It takes gradients from whoever reaches its port, so keep that inside your own network.

One machine can play both: say localhost for host-a, and add the word tcp at the end of both `distnet run` lines,
because a worker on the server's own host takes shared memory otherwise.
"""

import socket
import sys

import numpy as np

import distnet

STEPS, POINTS, BATCH = 1_500, 1_000, 50
TRUTH = np.array([0.5, 1, -2, -1.5], np.float32)  # 0.5 + x - 2 x² - 1.5 x³


def powers(x):
    """Return 1, x, x² and x³ of every x, one row each."""
    return np.stack([np.ones_like(x), x, x**2, x**3], axis=1)


def main(transport="auto"):
    """Train as one worker of `distnet run --join`."""
    with distnet.connect(parameters={"curve": np.zeros(4, np.float32)}, transport=transport) as client:
        random = np.random.default_rng(seed=client.rank)
        low, high = ((-1, 0), (0, 1))[client.rank]
        x = powers(random.uniform(low, high, size=POINTS).astype(np.float32))
        y = x @ TRUTH + random.normal(scale=0.1, size=POINTS).astype(np.float32)
        print(f"rank {client.rank} on {socket.gethostname()} over {client.transport}: points from {low} to {high}")
        curve = client.pull()["curve"]
        for _ in range(STEPS):
            batch = random.integers(POINTS, size=BATCH)
            error = x[batch] @ curve - y[batch]
            curve = client.push_pull({"curve": x[batch].T @ error / BATCH})["curve"]
        curve = client.finish()["curve"]
        worst = np.abs(powers(np.linspace(-1, 1)) @ (curve - TRUTH)).max()
        print(f"rank {client.rank}: from -1 to 1 the curve {np.round(curve, 2)} is off by at most {worst:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
