"""The one place that reads the environment: detects a launcher, and writes what it hands to its children.

``distnet run`` gives every copy of a user's script three variables; ``distnet.connect()`` without arguments reads them
here. A fourth says how often the rank was started before; ``connect()`` reads it whoever set it, so that any supervisor
that starts a dead worker again can say so. Beside them it sets the variables that PyTorch's launcher sets.

:func:`placement` says where a process stands in its job, whichever launcher started it. Standard library only.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import MutableMapping
from pathlib import Path

from distnet.errors import ConfigError

__all__ = [
    "Launched",
    "Master",
    "Placement",
    "framework_logs_are_set",
    "launched",
    "placement",
    "script_environment",
    "set_up_tensorflow",
    "start_number",
    "worker_environment",
]

_ADDRESS = "DISTNET_ADDRESS"
_RANK = "DISTNET_RANK"
_WORKERS = "DISTNET_WORKERS"
_START = "DISTNET_START"
_MOST_STARTS = 2**32 - 1
_MASTER_ADDRESS, _MASTER_PORT = "MASTER_ADDR", "MASTER_PORT"
_THIS_HOST = ("localhost", "127.0.0.1", "::1")
_FRAMEWORK_LOGS = "TF_CPP_MIN_LOG_LEVEL"
_ERRORS_ONLY = "2"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launched:
    """What a launcher tells a worker.

    Attributes:
        address: of the servers, as ``distnet.connect`` takes it.
        rank: of this worker, from 0.
        workers: how many there are; every rank is below it.
        start: how often this rank was started before. A worker of a higher start replaces one of a lower.
    """

    address: str
    rank: int
    workers: int
    start: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Master:
    """Where the processes of a job find each other: a port on rank 0's host, which frameworks open there.

    Attributes:
        address: of the host.
        port: from 1 to 65535.
    """

    address: str
    port: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """Where a process stands in its job.

    Attributes:
        rank: of this process, from 0.
        size: how many processes the job has.
        local_rank: this process's number on its host, from 0; ``rank`` where the launcher does not say.
        by: what says so, such as ``"torchrun"``.
        variables: the variables that were read.
        one_host: whether all processes are known to be on one host.
        address: of the servers; None: nobody has named any.
        master: where frameworks have their processes meet; None: the environment does not say.
        job: a name that all processes of this job have in common and no other job on the host has; None: the launcher
            gives it none.
    """

    rank: int
    size: int
    local_rank: int
    by: str
    variables: tuple[str, ...]
    one_host: bool
    address: str | None = None
    master: Master | None = None
    job: str | None = None

    def __str__(self) -> str:
        return f"rank {self.rank} of {self.size}, by {self.by} ({', '.join(self.variables)})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Launcher:
    """The variables of a launcher; of several names for one thing the first that is set counts."""

    name: str
    rank: str
    size: tuple[str, ...]
    local_rank: str
    local_size: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    job: tuple[str, ...] = ()  # all of them together name the job


# In this order: torchrun may run under Slurm, and so may mpirun; the one that started this very process counts.
_LAUNCHERS = (
    _Launcher(
        name="distnet run",
        rank=_RANK,
        size=(_WORKERS,),
        local_rank="LOCAL_RANK",
        local_size=("LOCAL_WORLD_SIZE",),
        job=(_ADDRESS,),
    ),
    _Launcher(
        name="torchrun",
        rank="RANK",
        size=("WORLD_SIZE",),
        local_rank="LOCAL_RANK",
        local_size=("LOCAL_WORLD_SIZE",),
        job=("TORCHELASTIC_RUN_ID", _MASTER_PORT),
    ),
    _Launcher(
        name="Open MPI",
        rank="OMPI_COMM_WORLD_RANK",
        size=("OMPI_COMM_WORLD_SIZE",),
        local_rank="OMPI_COMM_WORLD_LOCAL_RANK",
        local_size=("OMPI_COMM_WORLD_LOCAL_SIZE",),
        job=("PMIX_NAMESPACE",),
    ),
    _Launcher(
        name="Slurm",
        rank="SLURM_PROCID",
        size=("SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"),
        local_rank="SLURM_LOCALID",
        hosts=("SLURM_STEP_NUM_NODES", "SLURM_NNODES"),
        job=("SLURM_JOB_ID", "SLURM_STEP_ID"),
    ),
)


def placement() -> Placement:
    """Return where this process stands in its job, by the environment of the launcher that started it.

    Looked for are ``distnet run``, torchrun (and whoever sets RANK and WORLD_SIZE as it does), Open MPI and Slurm, in
    this order.

    Raises:
        ConfigError: no launcher is to be seen, it lists what was looked for; or variables that are missing, or make no
            sense.
    """
    placed = _placement()
    if placed is None:
        looked_for = "; ".join(f"{each.rank} and {' or '.join(each.size)} ({each.name})" for each in _LAUNCHERS)
        raise ConfigError(
            f"this process belongs to no job: there is no rank and no size in its environment. Looked for were "
            f"{looked_for}. Start the script with `distnet run`, torchrun, mpirun or srun, or set RANK, WORLD_SIZE, "
            "MASTER_ADDR and MASTER_PORT; take `distnet run -n 1 script.py` for one process"
        )
    return placed


def _placement() -> Placement | None:
    for launcher in _LAUNCHERS:
        size_name = next((name for name in launcher.size if os.environ.get(name)), launcher.size[0])
        texts = {name: os.environ.get(name) for name in (launcher.rank, size_name)}
        if not any(texts.values()):
            continue
        if missing := [name for name, text in texts.items() if not text]:
            said = next(name for name, text in texts.items() if text)
            raise ConfigError(f"{said} is set and {missing[0]} is not; {launcher.name} sets both")
        rank, size = (_whole_number(name, text or "") for name, text in texts.items())
        if not 0 <= rank < size:
            raise ConfigError(f"{launcher.rank} is {rank} and {size_name} is {size}; expected 0 <= rank < size")
        return Placement(
            rank=rank,
            size=size,
            local_rank=_number_of(launcher.local_rank) if os.environ.get(launcher.local_rank) else rank,
            by=launcher.name,
            variables=tuple(texts),
            one_host=_is_on_one_host(launcher, size),
            address=os.environ.get(_ADDRESS) or None,
            master=_master(),
            job=_job_name(launcher),
        )
    return None


def _is_on_one_host(launcher: _Launcher, size: int) -> bool:
    local_size = next((name for name in launcher.local_size if os.environ.get(name)), None)
    if local_size is not None:
        return _number_of(local_size) == size
    hosts = next((name for name in launcher.hosts if os.environ.get(name)), None)
    if hosts is not None:
        return _number_of(hosts) == 1
    return size == 1 or os.environ.get(_MASTER_ADDRESS) in _THIS_HOST


def _job_name(launcher: _Launcher) -> str | None:
    texts = [os.environ.get(name) for name in launcher.job]
    return ".".join(text for text in texts if text) if all(texts) else None


def _master() -> Master | None:
    """Return what MASTER_ADDR and MASTER_PORT say; None unless both are set."""
    address, port = os.environ.get(_MASTER_ADDRESS), os.environ.get(_MASTER_PORT)
    if not address or not port:
        return None
    number = _whole_number(_MASTER_PORT, port)
    if not 1 <= number <= 65535:
        raise ConfigError(f"{_MASTER_PORT} is {number}; expected a port, 1 to 65535")
    return Master(address=address, port=number)


def launched() -> Launched | None:
    """Return what the launcher of this process said, or None where there is none.

    ``DISTNET_ADDRESS`` alone is enough beside another launcher, such as torchrun: that says rank and size.

    Raises:
        ConfigError: some of the variables are missing, or make no sense.
    """
    values = {name: os.environ.get(name) for name in (_ADDRESS, _RANK, _WORKERS)}
    if all(value is None for value in values.values()):
        return None
    address = values[_ADDRESS]
    placed = None if values[_RANK] or values[_WORKERS] else _placement()
    if address and placed is not None:
        return Launched(address=address, rank=placed.rank, workers=placed.size, start=start_number())
    missing = [name for name, value in values.items() if not value]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)} not set, although other DISTNET_ variables are; set all three "
            f"({', '.join(values)}), or none and give connect() an address"
        )
    rank, workers = (_whole_number(name, values[name] or "") for name in (_RANK, _WORKERS))
    if not 0 <= rank < workers:
        raise ConfigError(f"{_RANK} is {rank} and {_WORKERS} is {workers}; expected 0 <= rank < workers")
    return Launched(address=values[_ADDRESS] or "", rank=rank, workers=workers, start=start_number())


def start_number() -> int:
    """Return how often this process's rank was started before it, by what the launcher says; 0 where nobody says so.

    Raises:
        ConfigError: the variable makes no sense.
    """
    text = os.environ.get(_START)
    if not text:
        return 0
    start = _whole_number(_START, text)
    if start > _MOST_STARTS:
        raise ConfigError(f"{_START} is {start}; expected 0 for the first start, then 1, 2 and so on")
    return start


def framework_logs_are_set() -> bool:
    """Whether the user has said how much a framework's C++ part logs."""
    return _FRAMEWORK_LOGS in os.environ


def script_environment(
    job: Launched,
    *,
    threads: int | None,
    framework_logs: bool = False,
    local_rank: int | None = None,
    local_size: int | None = None,
    master: Master | None = None,
) -> dict[str, str]:
    """Return this process's environment with what a launched script needs.

    Args:
        job: what ``launched`` returns in the script.
        local_rank: this copy's number among those of this host. None: its rank.
        local_size: how many copies there are on this host. None: all of the job.
        master: where frameworks have the copies meet. None: what the environment says already, if anything.
        threads: how many threads its numeric libraries should use; None leaves that to them.
        framework_logs: whether TensorFlow's start-up lines are wanted; what the user has set counts all the same.
    """
    environment = dict(os.environ)
    values: dict[str, object] = {
        _ADDRESS: job.address,
        _RANK: job.rank,
        _WORKERS: job.workers,
        _START: job.start,
    }
    values |= {
        "RANK": job.rank,
        "WORLD_SIZE": job.workers,
        "LOCAL_RANK": job.rank if local_rank is None else local_rank,
        "LOCAL_WORLD_SIZE": job.workers if local_size is None else local_size,
    }
    if master is not None:
        values |= {_MASTER_ADDRESS: master.address, _MASTER_PORT: master.port}
    environment.update({name: str(value) for name, value in values.items()})
    environment.setdefault("PYTHONUNBUFFERED", "1")
    if not framework_logs:
        environment.setdefault(_FRAMEWORK_LOGS, _ERRORS_ONLY)
    return _limit_threads(environment, threads)


def worker_environment(*, threads: int | None, scratch: Path) -> dict[str, str]:
    """Return this process's environment for a worker of DistNet's own.

    Without TensorFlow's chatter at start, with oneDNN's convolutions on every processor, and with its temporary files
    in ``scratch``: a killed worker leaves them.
    """
    environment = dict(os.environ)
    for name in (_ADDRESS, _RANK, _WORKERS, _START):
        environment.pop(name, None)
    _set_up_tensorflow(environment)
    environment["TMPDIR"] = str(scratch.resolve())
    return _limit_threads(environment, threads)


def set_up_tensorflow() -> None:
    """Have TensorFlow start in this process as in a worker of DistNet's own. Call it before TensorFlow is imported."""
    _set_up_tensorflow(os.environ)


def _set_up_tensorflow(environment: MutableMapping[str, str]) -> None:
    environment.setdefault(_FRAMEWORK_LOGS, _ERRORS_ONLY)
    environment.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # TensorFlow leaves it off without AVX-512


def _limit_threads(environment: dict[str, str], threads: int | None) -> dict[str, str]:
    if threads is not None:
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
            environment.setdefault(name, str(threads))
    return environment


def _number_of(name: str) -> int:
    return _whole_number(name, os.environ.get(name) or "")


def _whole_number(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ConfigError(f"{name} is {text!r}; expected a whole number")
    return int(text)
