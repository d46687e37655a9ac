"""How ``torch.distributed`` comes to a process group of DistNet: the backend's name, its options, its maker."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import torch

from distnet.errors import ConfigError
from distnet_torch_backend import BACKEND, register

__all__ = ["OLDEST_TORCH", "ProcessGroupOptions", "check_torch", "create", "register"]

OLDEST_TORCH = (2, 6)
_TRANSPORTS = ("auto", "shm", "tcp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessGroupOptions:
    """What ``init_process_group`` and ``new_group`` take as ``pg_options`` for the backend "distnet".

    Args:
        transport: ``"auto"`` (shared memory where all ranks are on one host, else TCP), ``"shm"`` or ``"tcp"``. The
            same on all ranks.

    Raises:
        ConfigError: another transport.

    Example:
        >>> distnet.torch.ProcessGroupOptions(transport="tcp")
        ProcessGroupOptions(transport='tcp')
    """

    transport: str = "auto"

    def __post_init__(self) -> None:
        if self.transport not in _TRANSPORTS:
            raise ConfigError(f"transport is {self.transport!r}; expected one of {', '.join(_TRANSPORTS)}")


def check_torch(version: str) -> None:
    """Refuse a PyTorch that is too old.

    Raises:
        ConfigError: it is older than :data:`OLDEST_TORCH`.
    """
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if numbers is not None and tuple(map(int, numbers.groups())) < OLDEST_TORCH:
        raise ConfigError(
            f"this is PyTorch {version}; the backend {BACKEND!r} needs {'.'.join(map(str, OLDEST_TORCH))} or later: "
            "pip install --upgrade torch"
        )


def create(options: Any, backend_options: Any = None) -> Any:
    """Make the process group that ``torch.distributed`` asks for, once all its ranks are there.

    Args:
        options: of ``torch.distributed``: the group's store, rank, size, timeout and name.
        backend_options: :class:`ProcessGroupOptions`, or None.

    Raises:
        ConfigError: PyTorch is too old, or the options are another backend's.
        DistNetError: the ranks did not come together.
    """
    check_torch(torch.__version__)
    chosen = ProcessGroupOptions() if backend_options is None else backend_options
    if not isinstance(chosen, ProcessGroupOptions):
        raise ConfigError(
            f"pg_options is a {type(chosen).__name__}; the backend {BACKEND!r} takes distnet.torch.ProcessGroupOptions"
        )
    from distnet.torch.process_group import ProcessGroup

    return ProcessGroup(
        options.store,
        options.group_rank,
        options.group_size,
        timeout_s=options.timeout.total_seconds(),
        name=str(options.group_id),
        transport=chosen.transport,
    )
