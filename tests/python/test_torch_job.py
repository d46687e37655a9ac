"""Scripts of PyTorch with two lines changed, as processes: under each launcher, with servers of its own or not."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

import distnet

torch = pytest.importorskip("torch")

from test_job_environment import VARIABLES  # noqa: E402 - it needs torch

pytestmark = pytest.mark.slow

WITHIN_S = 300.0  # beside other processes, importing torch alone takes more than a minute
SCRIPT = """
import json, os, pathlib, sys
import torch
import distnet.torch

torch.set_num_threads(1)
torch.manual_seed(7)
model = torch.nn.Linear(10, 3)
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
#BEFORE
optimizer = distnet.torch.DistributedOptimizer(optimizer, model)
placed = optimizer.client
x = torch.randn(16, 10, generator=torch.Generator().manual_seed(1))
y = torch.randn(16, 3, generator=torch.Generator().manual_seed(2))
mine = slice(placed.rank * 8, placed.rank * 8 + 8)
for step in range(5):
    optimizer.zero_grad()
    torch.nn.functional.mse_loss(model(x[mine]), y[mine]).backward()
    optimizer.step()
    #STEP
optimizer.finish()
said = {"rank": placed.rank, "weight": model.weight.tolist(), "version": placed.version, "workers": placed.workers}
pathlib.Path(sys.argv[1], f"{placed.rank}.json").write_text(json.dumps(said))
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


def alone() -> Any:
    """Return the weights after one process has trained with the whole batch."""
    torch.manual_seed(7)
    model = torch.nn.Linear(10, 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x = torch.randn(16, 10, generator=torch.Generator().manual_seed(1))
    y = torch.randn(16, 3, generator=torch.Generator().manual_seed(2))
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    return model.weight.detach()


def check_results(folder: Path) -> None:
    """Check that both ranks ended with the model that one process makes."""
    for rank in range(2):
        said = json.loads((folder / f"{rank}.json").read_text())
        assert (said["version"], said["workers"]) == (5, 2)
        torch.testing.assert_close(torch.tensor(said["weight"]), alone(), rtol=1e-6, atol=1e-6)


def run(*arguments: str, env: Mapping[str, str]) -> str:
    """Run a command to its end, and return what it wrote."""
    done = subprocess.run(
        [sys.executable, *arguments], env=env, capture_output=True, text=True, timeout=WITHIN_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@contextlib.contextmanager
def ranks(path: Path, folder: Path, variables: Sequence[Mapping[str, str]]) -> Iterator[list[subprocess.Popen[str]]]:
    """Run a script once for each environment, as a launcher that is not installed here would."""
    processes = [
        subprocess.Popen(
            [sys.executable, str(path), str(folder)], env=environment(**own), stderr=subprocess.PIPE, text=True
        )
        for own in variables
    ]
    try:
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


def ends_of(processes: Sequence[subprocess.Popen[str]]) -> list[str]:
    """Wait for the processes, and return what each wrote to stderr."""
    errors = [process.communicate(timeout=WITHIN_S)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), errors
    return errors


def slurm(rank: int) -> dict[str, str]:
    return {
        **{"SLURM_PROCID": str(rank), "SLURM_NTASKS": "2", "SLURM_LOCALID": str(rank), "SLURM_NNODES": "1"},
        **{"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0"},
    }


def open_mpi(rank: int) -> dict[str, str]:
    return {
        **{"OMPI_COMM_WORLD_RANK": str(rank), "OMPI_COMM_WORLD_SIZE": "2", "PMIX_NAMESPACE": f"prte-{os.getpid()}"},
        **{"OMPI_COMM_WORLD_LOCAL_RANK": str(rank), "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
    }


def test_distnet_run_needs_no_optimizer_because_rank_0_brings_it(tmp_path: Path) -> None:
    pytest.importorskip("click")
    text = run(
        "-m",
        "distnet",
        "run",
        "-n",
        "2",
        "--semantics",
        "sync",
        str(script(tmp_path)),
        str(tmp_path),
        env=environment(),
    )
    check_results(tmp_path)
    assert "rank 1 of 2, by distnet run (DISTNET_RANK, DISTNET_WORKERS); servers that run already, at shm://" in text


def test_distnet_run_with_another_optimizer_is_an_error_with_both(tmp_path: Path) -> None:
    pytest.importorskip("click")
    arguments = ("-m", "distnet", "run", "-n", "2", "--semantics", "sync", "--optimizer", "sgd(0.5)")
    done = subprocess.run(
        [sys.executable, *arguments, str(script(tmp_path)), str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert done.returncode != 0
    assert "the server has the optimizer sgd(0.5), and this rank's is adam(0.01)" in done.stdout + done.stderr


def test_under_torchrun_rank_0_starts_the_servers(tmp_path: Path) -> None:
    text = run(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script(tmp_path)), str(tmp_path)),
        env=environment(),
    )
    check_results(tmp_path)
    assert "rank 1 of 2, by torchrun (RANK, WORLD_SIZE); servers started by rank 0, at shm://" in text
    assert "; sync with on_loss='abort', adam(0.01)" in text


@pytest.mark.parametrize("launcher", [slurm, open_mpi])
def test_under_other_launchers_ranks_of_one_host_need_no_place_to_meet(tmp_path: Path, launcher: Any) -> None:
    with ranks(script(tmp_path), tmp_path, [launcher(rank) for rank in range(2)]) as processes:
        ends_of(processes)
    check_results(tmp_path)


def test_ranks_meet_at_the_master_s_port_where_there_is_one(tmp_path: Path) -> None:
    master = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    several_hosts = [{**slurm(rank), "SLURM_NNODES": "2", **master} for rank in range(2)]
    with ranks(script(tmp_path), tmp_path, several_hosts) as processes:
        errors = ends_of(processes)
    check_results(tmp_path)
    assert "by Slurm (SLURM_PROCID, SLURM_NTASKS); servers started by rank 0, at tcp://127.0.0.1:" in errors[1]


def test_a_process_group_that_is_there_is_where_they_meet(tmp_path: Path) -> None:
    path = script(tmp_path, before="torch.distributed.init_process_group('gloo')")
    run(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(path), str(tmp_path)),
        env=environment(),
    )
    check_results(tmp_path)


def test_an_address_beside_a_launcher_names_servers_that_run(tmp_path: Path) -> None:
    with distnet.ParameterServer(semantics="sync", workers=2) as server:
        variables = [{**slurm(rank), "DISTNET_ADDRESS": server.address} for rank in range(2)]
        with ranks(script(tmp_path), tmp_path, variables) as processes:
            errors = ends_of(processes)
        assert server.optimizer == distnet.Adam(0.01)
        assert len(server.optimizer_state()) == 2
    check_results(tmp_path)
    assert f"servers that run already, at {server_name(errors[0])}" in errors[0]


def server_name(text: str) -> str:
    return text.partition("already, at ")[2].split()[0]


def test_hosts_that_cannot_find_each_other_are_told_what_to_set(tmp_path: Path) -> None:
    lonely = {**slurm(0), "SLURM_NNODES": "2"}
    with ranks(script(tmp_path), tmp_path, [lonely]) as (process,):
        _, errors = process.communicate(timeout=WITHIN_S)
    assert process.returncode != 0
    assert "Set MASTER_ADDR and MASTER_PORT" in errors


def test_outside_any_job_the_error_says_what_was_looked_for(tmp_path: Path) -> None:
    with ranks(script(tmp_path), tmp_path, [{}]) as (process,):
        _, errors = process.communicate(timeout=WITHIN_S)
    assert process.returncode != 0
    assert "this process belongs to no job" in errors
    assert "SLURM_PROCID" in errors
    assert "set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; take `distnet run -n 1 script.py`" in errors


def test_a_rank_with_another_model_is_told_so(tmp_path: Path) -> None:
    other = "if os.environ['SLURM_PROCID'] == '1':\n    model = torch.nn.Linear(10, 4)\n"
    other += "    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)"
    with ranks(script(tmp_path, before=other), tmp_path, [slurm(rank) for rank in range(2)]) as processes:
        _, errors = processes[1].communicate(timeout=WITHIN_S)
    assert "rank 1's model is not rank 0's, or the server's" in errors
    assert errors.strip().endswith("; build the same model on every rank")
    assert errors.count("Traceback") == 1


def test_a_rank_with_another_optimizer_is_told_so(tmp_path: Path) -> None:
    other = "if os.environ['SLURM_PROCID'] == '1':\n"
    other += "    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, betas=(0.5, 0.9))"
    with ranks(script(tmp_path, before=other), tmp_path, [slurm(rank) for rank in range(2)]) as processes:
        _, errors = processes[1].communicate(timeout=WITHIN_S)
    assert "the server has the optimizer adam(0.01), and this rank's is adam(0.01, betas=[0.5, 0.9])" in errors
    assert "[0.5, 0.9]): give all ranks the same optimizer" in errors


def test_a_rank_that_dies_ends_the_rounds_of_all(tmp_path: Path) -> None:
    die = "if placed.rank == 1 and step == 2: os.kill(os.getpid(), 9)"
    three = [{**slurm(rank), "SLURM_NTASKS": "3"} for rank in range(3)]
    with ranks(script(tmp_path, step=die), tmp_path, three) as processes:
        errors = [process.communicate(timeout=WITHIN_S)[1] for process in processes]
    for rank in (0, 2):
        assert processes[rank].returncode not in (None, 0)
        assert "RoundAborted: the rounds have ended" in errors[rank], errors[rank]
        assert "rank 1" in errors[rank].rpartition("RoundAborted")[2], errors[rank]


def test_a_value_of_the_semantics_has_the_rounds_go_on_without_a_dead_rank(tmp_path: Path) -> None:
    die = "if placed.rank == 1 and step == 2: os.kill(os.getpid(), 9)"
    path = script(tmp_path, step=die)
    path.write_text(
        path.read_text().replace("(optimizer, model)", "(optimizer, model, semantics=distnet.SEMANTICS['sync'])")
    )
    with ranks(path, tmp_path, [slurm(rank) for rank in range(2)]) as processes:
        _, errors = processes[0].communicate(timeout=WITHIN_S)
    assert processes[0].returncode == 0, errors


def test_the_servers_end_where_rank_0_is_killed(tmp_path: Path) -> None:
    stop = "if placed.rank == 0 and step == 2: sys.stderr.write('stops here\\n'); signal.pause()"
    path = script(tmp_path, before="import signal", step=stop)
    with ranks(path, tmp_path, [slurm(rank) for rank in range(2)]) as processes:
        assert processes[0].stderr is not None
        assert any("stops here" in line for line in processes[0].stderr)
        shards = [os.pidfd_open(shard) for shard in shards_of(processes[0].pid)]
        assert shards
        processes[0].send_signal(signal.SIGKILL)
        _, errors = processes[1].communicate(timeout=WITHIN_S)
        assert processes[1].returncode != 0
        assert "PeerClosed" in errors or ("RoundAborted" in errors and "server" in errors), errors
        for shard in shards:
            ended, _, _ = select.select([shard], [], [], WITHIN_S)
            assert ended
            os.close(shard)


def shards_of(pid: int) -> list[int]:
    """Return the shards that a process has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(child) for child in children if "shards" in Path(f"/proc/{child}/cmdline").read_text()]


ASYNCHRONOUS = """
import json, pathlib, sys
import torch
import distnet.torch
from torch.nn.parallel import DistributedDataParallel

torch.set_num_threads(1)
torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
torch.manual_seed(rank)
model = DistributedDataParallel(torch.nn.Linear(10, 3), broadcast_buffers=False)
model.register_comm_hook(None, distnet.torch.leave_unreduced)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
optimizer = distnet.torch.DistributedOptimizer(optimizer, model, semantics="async-apply")
x = torch.randn(16, 10, generator=torch.Generator().manual_seed(1))
y = torch.randn(16, 3, generator=torch.Generator().manual_seed(2))
losses = []
for step in range(20 + 10 * rank):  # not the same number: nobody waits
    optimizer.zero_grad()
    loss = torch.nn.functional.mse_loss(model(x), y)
    loss.backward()
    losses.append(float(loss))
    optimizer.step()
optimizer.finish()
said = {"losses": losses, "names": optimizer.client.names, "updates": optimizer.client.version}
pathlib.Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(said))
torch.distributed.destroy_process_group()
"""


def test_asynchronous_training_under_the_wrapper_of_pytorch(tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(ASYNCHRONOUS)
    run(
        *("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(path), str(tmp_path)),
        env=environment(),
    )
    said = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert said[0]["names"] == ["weight", "bias"]  # those of the model in the wrapper
    assert {rank["updates"] for rank in said} == {50}
    assert all(rank["losses"][-1] < 0.8 * rank["losses"][0] for rank in said)
