"""Where a job comes from: what each launcher says in the environment, and what `distnet run` says there itself."""

from __future__ import annotations

import socket
from collections.abc import Mapping

import pytest

from distnet._private import launcher_env
from distnet._private.launcher_env import Launched, Master, Placement
from distnet.errors import ConfigError
from distnet.launch.reserved_port import ReservedPort

VARIABLES = (
    *("DISTNET_ADDRESS", "DISTNET_RANK", "DISTNET_WORKERS", "DISTNET_START"),
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"),
    *("SLURM_PROCID", "SLURM_NTASKS", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_NNODES", "SLURM_STEP_NUM_NODES"),
    *("SLURM_JOB_ID", "SLURM_STEP_ID", "PMIX_NAMESPACE"),
    *("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
)
DISTNET = {"DISTNET_ADDRESS": "shm://x", "DISTNET_RANK": "1", "DISTNET_WORKERS": "3"}
TORCHRUN = {
    **{"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"},
    **{"MASTER_ADDR": "host-a", "MASTER_PORT": "29500"},
}
OPEN_MPI = {
    **{"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "PMIX_NAMESPACE": "prterun-host-a-7@1"},
    **{"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"},
}
SLURM = {
    **{"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "1", "SLURM_NNODES": "2"},
    **{"SLURM_JOB_ID": "77", "SLURM_STEP_ID": "0"},
}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def set_variables(monkeypatch: pytest.MonkeyPatch, values: Mapping[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


# ---- what a process hears ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            DISTNET,
            Placement(
                rank=1,
                size=3,
                local_rank=1,
                by="distnet run",
                variables=("DISTNET_RANK", "DISTNET_WORKERS"),
                one_host=False,
                address="shm://x",
                job="shm://x",
            ),
        ),
        (
            TORCHRUN,
            Placement(
                rank=3,
                size=4,
                local_rank=1,
                by="torchrun",
                variables=("RANK", "WORLD_SIZE"),
                one_host=False,
                master=Master(address="host-a", port=29500),
                job="none.29500",
            ),
        ),
        (
            OPEN_MPI,
            Placement(
                rank=1,
                size=2,
                local_rank=1,
                by="Open MPI",
                variables=("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
                one_host=True,
                job="prterun-host-a-7@1",
            ),
        ),
        (
            SLURM,
            Placement(
                rank=5,
                size=8,
                local_rank=1,
                by="Slurm",
                variables=("SLURM_PROCID", "SLURM_NTASKS"),
                one_host=False,
                job="77.0",
            ),
        ),
    ],
    ids=["distnet run", "torchrun", "Open MPI", "Slurm"],
)
def test_each_launcher_says_rank_size_and_place(
    monkeypatch: pytest.MonkeyPatch, values: Mapping[str, str], expected: Placement
) -> None:
    set_variables(monkeypatch, values)
    assert launcher_env.placement() == expected


def test_the_launcher_that_started_this_process_counts_before_the_one_around_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_variables(monkeypatch, SLURM)
    assert launcher_env.placement().by == "Slurm"
    set_variables(monkeypatch, OPEN_MPI)
    assert launcher_env.placement().by == "Open MPI"
    set_variables(monkeypatch, TORCHRUN)
    assert launcher_env.placement().by == "torchrun"
    set_variables(monkeypatch, DISTNET)
    assert launcher_env.placement().by == "distnet run"


def test_the_size_of_a_slurm_step_counts_before_that_of_its_allocation(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, {**SLURM, "SLURM_STEP_NUM_TASKS": "6", "SLURM_STEP_NUM_NODES": "1"})
    placed = launcher_env.placement()
    assert (placed.size, placed.one_host) == (6, True)


@pytest.mark.parametrize(("address", "one_host"), [("127.0.0.1", True), ("localhost", True), ("host-a", False)])
def test_ranks_set_by_hand_are_on_one_host_where_they_meet_on_this_one(
    monkeypatch: pytest.MonkeyPatch, address: str, one_host: bool
) -> None:
    set_variables(monkeypatch, {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": address, "MASTER_PORT": "1234"})
    placed = launcher_env.placement()
    assert (placed.one_host, placed.local_rank) == (one_host, 1)


def test_a_placement_says_what_it_went_by(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, SLURM)
    assert str(launcher_env.placement()) == "rank 5 of 8, by Slurm (SLURM_PROCID, SLURM_NTASKS)"


def test_outside_any_job_the_error_lists_what_was_looked_for() -> None:
    with pytest.raises(ConfigError, match="belongs to no job") as caught:
        launcher_env.placement()
    for name in ("DISTNET_RANK", "RANK and WORLD_SIZE (torchrun)", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID", "srun"):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"RANK": "1"}, "RANK is set and WORLD_SIZE is not; torchrun sets both"),
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set and RANK is not"),
        ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK is 2 and WORLD_SIZE is 2; expected 0 <= rank < size"),
        ({"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one'; expected a whole number"),
        ({**TORCHRUN, "MASTER_PORT": "70000"}, "MASTER_PORT is 70000; expected a port"),
        ({**SLURM, "SLURM_LOCALID": "-1"}, "SLURM_LOCALID is '-1'"),
    ],
)
def test_variables_that_make_no_sense_are_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, values: Mapping[str, str], message: str
) -> None:
    set_variables(monkeypatch, values)
    with pytest.raises(ConfigError, match=message):
        launcher_env.placement()


def test_an_address_beside_another_launcher_is_a_server_for_its_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, {**TORCHRUN, "DISTNET_ADDRESS": "tcp://host-b:7400"})
    assert launcher_env.placement().address == "tcp://host-b:7400"
    assert launcher_env.launched() == Launched(address="tcp://host-b:7400", rank=3, workers=4)


def test_another_launcher_alone_names_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    set_variables(monkeypatch, TORCHRUN)
    assert launcher_env.launched() is None


# ---- what `distnet run` says -----------------------------------------------------------------------------------------
def test_a_script_hears_what_torchrun_would_have_said() -> None:
    said = launcher_env.script_environment(
        Launched(address="shm://x", rank=3, workers=4),
        threads=None,
        local_rank=1,
        local_size=2,
        master=Master(address="127.0.0.1", port=4711),
    )
    assert {name: said[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")} == {
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
    }
    assert (said["MASTER_ADDR"], said["MASTER_PORT"]) == ("127.0.0.1", "4711")


def test_where_nobody_can_choose_a_port_for_all_that_of_the_environment_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = Launched(address="tcp://host-a:7400", rank=1, workers=2)
    assert "MASTER_PORT" not in launcher_env.script_environment(job, threads=None)
    set_variables(monkeypatch, {"MASTER_ADDR": "host-a", "MASTER_PORT": "29400"})
    assert launcher_env.script_environment(job, threads=None)["MASTER_PORT"] == "29400"


def test_a_reserved_port_can_be_listened_at_by_who_asks_for_it() -> None:
    with ReservedPort() as reserved, socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((reserved.master.address, reserved.master.port))
        listener.listen()
        with socket.create_connection(listener.getsockname()):
            pass
