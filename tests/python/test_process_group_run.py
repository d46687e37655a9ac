"""Process groups of a job: a parameter server brings its workers together, under ``distnet run`` and without."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from worker_processes import over_shards, over_transports, serve

import distnet


def run_script(folder: Path, script: str, *options: str) -> str:
    """Run a script as two workers of ``distnet run``, and return what it wrote."""
    pytest.importorskip("click")
    (folder / "script.py").write_text(textwrap.dedent(script))
    done = subprocess.run(
        [sys.executable, "-m", "distnet", "run", "-n", "2", *options, "script.py"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@over_transports
@over_shards
def test_the_address_of_a_server_is_that_of_a_coordinator(transport: str, shards: int) -> None:
    with serve([np.zeros(100, np.float32)], "async-apply", transport, shards) as server:

        def work(rank: int) -> float:
            with distnet.ProcessGroup(server.address, rank, 2, transport=transport) as group:
                return float(group.allreduce(rank + 1.0))

        with ThreadPoolExecutor(2) as pool:
            assert list(pool.map(work, range(2))) == [3.0, 3.0]
        assert server.stats()["groups"] == 1


def test_workers_that_only_form_a_group_are_no_job_without_workers(tmp_path: Path) -> None:
    written = run_script(
        tmp_path,
        """
        import distnet

        with distnet.ProcessGroup() as group:
            print("sum", int(group.allreduce(group.rank + 1)), group.size, group.name)
        """,
    )
    assert written.count("sum 3 2 world") == 2


@pytest.mark.parametrize("semantics", ["sync", "async-lockfree"])
def test_workers_push_to_the_server_and_reduce_among_themselves(tmp_path: Path, semantics: str) -> None:
    written = run_script(
        tmp_path,
        """
        import distnet
        import numpy as np

        with distnet.connect(parameters=[np.zeros(2, np.float32)]) as client, distnet.ProcessGroup() as group:
            client.push([np.ones(2, np.float32)])
            part = group.new_group([1, 0])
            print("ranks", client.rank == group.rank, part.rank, float(part.allreduce(1.0)))
            part.close()
            client.finish()
        """,
        "--semantics",
        semantics,
    )
    assert "ranks True 1 2.0" in written
    assert "ranks True 0 2.0" in written


def test_a_script_that_does_neither_is_still_named(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"without distnet\.connect"):
        run_script(tmp_path, "print('done')")
