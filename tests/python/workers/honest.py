"""A worker that pushes without end: ``python honest.py ADDRESS RANK``; a line on stdin has it say how often it has."""

from __future__ import annotations

import select
import sys

import numpy as np

import distnet


def main() -> None:
    client = distnet.connect(sys.argv[1], rank=int(sys.argv[2]), transport="tcp")
    gradient = [np.ones(shape, np.float32) for shape in client.shapes]
    steps = 0
    while True:
        client.push_pull(gradient)
        steps += 1
        if select.select([0], [], [], 0)[0]:
            if not sys.stdin.readline():
                break
            sys.stdout.write(f"{steps}\n")
            sys.stdout.flush()
    client.close()


if __name__ == "__main__":
    main()
