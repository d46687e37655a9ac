"""Many clients in one process: ``python crowd.py ADDRESS TRANSPORT COUNT FIRST_RANK``; a JSON line for each request.

``connect`` connects them all, and says how many were refused and why; ``train`` has each of those admitted push and
pull twice; ``close`` closes them. It ends with its stdin.
"""

from __future__ import annotations

import json
import resource
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import distnet

AT_ONCE = 16
DEADLINE_S = 60.0


class Crowd:
    def __init__(self, address: str, transport: str, count: int, first_rank: int) -> None:
        self._address, self._transport = address, transport
        self._ranks = range(first_rank, first_rank + count)
        self._clients: list[distnet.Client] = []

    def connect(self, threads: ThreadPoolExecutor) -> dict[str, Any]:
        came = list(threads.map(self._connect_one, self._ranks))
        self._clients = [one for one in came if isinstance(one, distnet.Client)]
        refusals = sorted({one for one in came if isinstance(one, str)})
        return {"admitted": len(self._clients), "refused": len(came) - len(self._clients), "why": refusals}

    def train(self, threads: ThreadPoolExecutor) -> int:
        """Return how many pushes were made."""
        return sum(threads.map(self._train_one, self._clients))

    def close(self, threads: ThreadPoolExecutor) -> None:
        list(threads.map(distnet.Client.close, self._clients))
        self._clients = []

    def _connect_one(self, rank: int) -> distnet.Client | str:
        model = [np.zeros(1000, np.float32)] if rank == 0 else None
        try:
            return distnet.connect(
                self._address,
                rank=rank,
                transport=self._transport,
                timeout=DEADLINE_S,
                connect_timeout=0,
                parameters=model,
            )
        except distnet.TransportError as error:
            return f"{type(error).__name__}: {error}"

    @staticmethod
    def _train_one(client: distnet.Client) -> int:
        gradient = [np.full(1000, -1.0, np.float32)]
        for _ in range(2):
            client.push_pull(gradient)
        return 2


def main() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    crowd = Crowd(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    with ThreadPoolExecutor(AT_ONCE) as threads:
        for line in sys.stdin:
            answer = getattr(crowd, line.strip())(threads)
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main()
