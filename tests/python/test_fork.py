"""After a fork, connections and threads are the parent's: a child may neither use them nor end them."""

from __future__ import annotations

import gc
import os

import numpy as np
import pytest

import distnet

PARAMETERS = [np.zeros(1000, np.float32)]
GRADIENTS = [np.ones(1000, np.float32)]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize(("address", "transport"), [("shm://", "shm"), ("tcp://127.0.0.1:0", "tcp")])
def test_a_forked_child_cannot_use_a_client_and_ends_nothing_of_its_parents(address: str, transport: str) -> None:
    server = distnet.ParameterServer(
        PARAMETERS, semantics="async-apply", optimizer=distnet.SGD(1.0), address=address, workers=2
    )
    server.start()
    client = distnet.connect(server.address, rank=0, transport=transport)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with pytest.raises(distnet.ConfigError, match="fork"):
                client.pull()
            server.stop()
            with pytest.raises(ValueError, match="abandon"), client:
                raise ValueError("abandon")
            del client, server
            gc.collect()
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    (pulled,) = client.push_pull(GRADIENTS)
    assert set(pulled) == {-1.0}
    client.close()
    other = distnet.connect(server.address, rank=1, transport=transport)
    (pulled,) = other.pull()
    assert set(pulled) == {-1.0}
    other.close()
    server.stop()
