"""A push that is cut off before its last byte changes nothing, and is counted."""

from __future__ import annotations

import numpy as np
import pytest
from raw_protocol import raw_worker
from worker_processes import serve, wait_until

FLOATS = 1024


@pytest.mark.parametrize("data_ends_first", [True, False], ids=["data first", "control first"])
@pytest.mark.parametrize("sent_bytes", [0, 4, 2 * FLOATS, 4 * FLOATS - 1, 4 * FLOATS])
def test_part_of_a_push_changes_nothing_and_is_counted(sent_bytes: int, data_ends_first: bool) -> None:
    with serve([np.zeros(FLOATS, np.float32)], "async-apply", "tcp") as server:
        with raw_worker(server) as worker:
            worker.send_push(np.ones(FLOATS, np.float32), sent_bytes=sent_bytes)
            for connection in (worker.data, worker.control)[:: 1 if data_ends_first else -1]:
                connection.close()
        wait_until(lambda: server.stats()["cut_off"] == 1, "the server counts the push")
        wait_until(lambda: server.stats()["workers_died"] == 1, "the server sees the death")
        stats = server.stats()
        assert (stats["cut_off"], stats["accepted"], stats["updates"]) == (1, 0, 0)
        np.testing.assert_array_equal(server.parameters()[0], np.zeros(FLOATS))


def test_a_worker_that_dies_between_two_pushes_has_cut_off_none() -> None:
    with serve([np.zeros(FLOATS, np.float32)], "async-apply", "tcp") as server:
        with raw_worker(server) as worker:
            worker.send_push(np.full(FLOATS, -1.0, np.float32))
            wait_until(lambda: server.stats()["applied"] == 1, "the push is applied")
        wait_until(lambda: server.stats()["workers_died"] == 1, "the server sees the death")
        assert server.stats()["cut_off"] == 0
        np.testing.assert_array_equal(server.parameters()[0], np.ones(FLOATS))


def test_a_server_without_parameters_has_counted_nothing_yet() -> None:
    with serve(None, "async-apply", "tcp") as server:
        stats = server.stats()
        assert (stats["updates"], stats["sessions"], stats["workers_done"]) == (0, [], 0)
