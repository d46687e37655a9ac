"""DistNet behind PyTorch: a process group for ``torch.distributed``, and an optimizer whose steps go over a server.

::

    import torch.distributed as dist

    dist.init_process_group("distnet")                       # known without an import where DistNet is installed
    model = torch.nn.parallel.DistributedDataParallel(model)

- :class:`DistributedOptimizer`: an optimizer of PyTorch whose steps go over a parameter server.
- :func:`leave_unreduced`: ``DistributedDataParallel`` without its averaging, for asynchronous training under it.

Everything here has run on CPUs. Tensors of CUDA are copied through page-locked memory; that has not run on a GPU yet.
"""

from __future__ import annotations

from distnet._private.extras import missing_module_message

try:
    import torch as _torch  # noqa: F401 - says at once, and in one line, what is missing
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(missing_module_message(error) or str(error), name=error.name) from error

from distnet.torch.comm_hook import leave_unreduced
from distnet.torch.optimizer import DistributedOptimizer
from distnet.torch.registration import ProcessGroupOptions, register

__all__ = ["DistributedOptimizer", "ProcessGroupOptions", "leave_unreduced"]

register()
