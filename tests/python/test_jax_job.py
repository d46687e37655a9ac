"""Scripts of JAX as processes of a job: servers of `distnet run`, or rank 0's own; and ranks that differ or die."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jax")

from test_job_environment import VARIABLES

pytestmark = pytest.mark.slow

WITHIN_S = 100.0
SCRIPT = """
import json, os, pathlib, signal, sys
import jax, jax.numpy as jnp, numpy as np
import distnet, distnet.jax

tree = {"kernel": np.full((3, 2), 0.5, np.float32), "bias": np.zeros(2, np.float32)}
rank = int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0)
#BEFORE
with distnet.jax.join(tree, optimizer=distnet.SGD(0.5)) as job:
    @jax.jit
    def step(tree, number):
        gradients = jax.tree_util.tree_map(lambda value: value * 0 + number + job.rank, tree)
        return job.push_pull(gradients)

    tree = job.parameters
    for number in range(4):
        #STEP
        tree = step(tree, number)
    tree = job.finish()
    said = {"rank": job.rank, "size": job.size, "version": job.client.version, "bias": tree["bias"].tolist()}
pathlib.Path(sys.argv[1], f"{said['rank']}.json").write_text(json.dumps(said))
"""


def script(folder: Path, *, before: str = "", step: str = "") -> Path:
    path = folder / "train.py"
    path.write_text(SCRIPT.replace("#BEFORE", before).replace("#STEP", step))
    return path


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment with no launcher in it but what is said."""
    plain = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    return {**plain, "OMP_NUM_THREADS": "1", **variables}


def free_port() -> str:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return str(bound.getsockname()[1])


def slurm(rank: int) -> dict[str, str]:
    return {
        **{"SLURM_PROCID": str(rank), "SLURM_NTASKS": "2", "SLURM_LOCALID": str(rank), "SLURM_NNODES": "1"},
        **{"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0"},
    }


def run(path: Path, folder: Path, variables: Sequence[Mapping[str, str]]) -> list[tuple[int, str]]:
    """Run a script once for each environment; return how each ended, and what it wrote to stderr."""
    command = [sys.executable, str(path), str(folder)]
    ranks = [subprocess.Popen(command, env=environment(**own), stderr=subprocess.PIPE, text=True) for own in variables]
    try:
        errors = [rank.communicate(timeout=WITHIN_S)[1] for rank in ranks]
        return [(rank.returncode, error) for rank, error in zip(ranks, errors, strict=True)]
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
                rank.communicate()


def check_results(folder: Path) -> None:
    """Check that both ranks ended with what means of 0 and 1, 1 and 2, … at a rate of 0.5 give."""
    for rank in range(2):
        said: dict[str, Any] = json.loads((folder / f"{rank}.json").read_text())
        assert (said["rank"], said["size"], said["version"]) == (rank, 2, 4)
        np.testing.assert_allclose(said["bias"], [-0.5 * (0.5 + 1.5 + 2.5 + 3.5)] * 2)


def test_under_distnet_run_rank_0_brings_model_and_optimizer(tmp_path: Path) -> None:
    pytest.importorskip("click")
    command = ["-m", "distnet", "run", "-n", "2", "--semantics", "sync", str(script(tmp_path)), str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *command], env=environment(), capture_output=True, text=True, timeout=WITHIN_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    check_results(tmp_path)


def test_under_another_launcher_rank_0_starts_the_servers(tmp_path: Path) -> None:
    ended = run(script(tmp_path), tmp_path, [slurm(0), slurm(1)])
    assert [code for code, _ in ended] == [0, 0], ended
    assert all("servers started by rank 0" in error for _, error in ended)
    check_results(tmp_path)


def test_ranks_meet_at_the_master_s_port_where_they_know_no_other_place(tmp_path: Path) -> None:
    port = free_port()
    ranks = [
        {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} for rank in range(2)
    ]
    ended = run(script(tmp_path), tmp_path, ranks)
    assert [code for code, _ in ended] == [0, 0], ended
    check_results(tmp_path)


def test_a_master_s_port_that_is_taken_is_told(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ((code, error),) = run(script(tmp_path), tmp_path, [place])
    assert code == 1
    assert f"ConfigError: rank 0 cannot meet the others at MASTER_PORT {port}" in error.splitlines()[-1]


def test_outside_any_job_the_error_says_what_was_looked_for(tmp_path: Path) -> None:
    ((code, error),) = run(script(tmp_path), tmp_path, [{}])
    assert code == 1
    assert error.splitlines()[-1].startswith("distnet.errors.ConfigError: this process belongs to no job")


def test_a_rank_with_another_tree_is_told_so(tmp_path: Path) -> None:
    before = "if rank == 1: tree = {'kernel': tree['kernel'].T, 'bias': tree['bias']}"
    (_, first), (code, second) = run(script(tmp_path, before=before), tmp_path, [slurm(0), slurm(1)])
    assert code == 1, first
    assert "ManifestMismatch: rank 1's model is not rank 0's" in second.splitlines()[-1]


def test_a_rank_that_dies_ends_the_step_of_the_others_by_its_own_error(tmp_path: Path) -> None:
    step = "if number == 2 and job.rank == 1: os.kill(os.getpid(), signal.SIGKILL)"
    (code, error), (killed, _) = run(script(tmp_path, step=step), tmp_path, [slurm(0), slurm(1)])
    assert killed == -signal.SIGKILL
    assert code == 1
    assert error.splitlines()[-1].startswith("distnet.errors.RoundAborted: "), error
