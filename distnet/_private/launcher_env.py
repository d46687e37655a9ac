"""The one place that reads the environment: detects a launcher, and writes what it hands to its children.

``distnet run`` gives every copy of a user's script three variables; ``distnet.connect()`` without arguments reads them
here. A fourth says how often the rank was started before; ``connect()`` reads it whoever set it, so that any supervisor
that starts a dead worker again can say so. Standard library only.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import MutableMapping
from pathlib import Path

from distnet.errors import ConfigError

__all__ = [
    "Launched",
    "framework_logs_are_set",
    "launched",
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


def launched() -> Launched | None:
    """Return what the launcher of this process said, or None where there is none.

    Raises:
        ConfigError: some of the variables are missing, or make no sense.
    """
    values = {name: os.environ.get(name) for name in (_ADDRESS, _RANK, _WORKERS)}
    if all(value is None for value in values.values()):
        return None
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


def script_environment(job: Launched, *, threads: int | None, framework_logs: bool = False) -> dict[str, str]:
    """Return this process's environment with what a launched script needs.

    Args:
        job: what ``launched`` returns in the script.
        threads: how many threads its numeric libraries should use; None leaves that to them.
        framework_logs: whether TensorFlow's start-up lines are wanted; what the user has set counts all the same.
    """
    environment = dict(os.environ)
    values = {_ADDRESS: job.address, _RANK: job.rank, _WORKERS: job.workers, _START: job.start}
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


def _whole_number(name: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ConfigError(f"{name} is {text!r}; expected a whole number")
    return int(text)
