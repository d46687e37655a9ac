"""Makes the backend "distnet" known to ``torch.distributed`` in every process that imports PyTorch.

PyTorch runs :func:`register` at the end of ``import torch``, for everybody who has DistNet installed, also where nobody
uses it. So this package stands beside ``distnet``, whose import costs time, and imports nothing of it before a group is
made; and whatever goes wrong here, ``import torch`` goes on.
"""

from __future__ import annotations

from typing import Any

__all__ = ["BACKEND", "DEVICES", "register"]

BACKEND = "distnet"
DEVICES = ["cpu", "cuda"]


def register() -> None:
    """Tell ``torch.distributed`` who makes process groups of the backend "distnet"; a second call changes nothing.

    Where PyTorch was built without ``torch.distributed``, or is one that cannot be told, there is no such backend.
    """
    try:
        from torch.distributed import Backend

        if BACKEND not in Backend.backend_list:
            Backend.register_backend(BACKEND, _create, extended_api=True, devices=DEVICES)
    except Exception:
        return


def _create(options: Any, backend_options: Any = None) -> Any:
    """Make one process group: what ``init_process_group`` and ``new_group`` call."""
    from distnet.torch.registration import create

    return create(options, backend_options)
