"""A process that ends while one of its threads waits for a server ends quietly."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import threading, numpy as np, distnet
server = distnet.ParameterServer([np.zeros(4, np.float32)], semantics="sync", workers=2).start()
client = distnet.connect(server.address, rank=0)
waiting = threading.Thread(target=lambda: client.push_pull([np.ones(4, np.float32)]), daemon=True)
waiting.start()
while server.stats()["accepted"] == 0:
    pass
"""


def test_a_daemon_thread_that_waits_for_a_round_does_not_abort_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
