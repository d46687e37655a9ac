"""A small model, and workers that push rounds of random gradients: for the tests of snapshots."""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

import distnet

Array = npt.NDArray[np.float32]
MODEL = {"w": (300, 70), "none": (0,), "b": (9,), "scalar": ()}


def random_model(seed: int) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in MODEL.items()}


def push_rounds(server: distnet.ParameterServer, first: int, last: int) -> None:
    """Two workers push the gradients of these rounds, once both are there: a round does not wait for who has left."""
    errors: list[BaseException] = []
    both_are_there = threading.Barrier(2, timeout=60.0)

    def work(rank: int) -> None:
        try:
            with distnet.connect(server.address, rank=rank) as client:
                both_are_there.wait()
                assert client.round == first
                for number in range(first, last):
                    client.push_pull(random_model(100 * number + rank))
        except BaseException as error:
            errors.append(error)
            both_are_there.abort()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
