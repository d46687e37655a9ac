"""Groups of ranks that compute together: collectives, messages and barriers on NumPy arrays.

::

    with distnet.ProcessGroup() as group:             # by distnet run; elsewhere it takes an address, a rank and a size
        total = group.allreduce(array)                # the sum over all ranks, the same bits on each
        group.broadcast(parameters, root=0, out=parameters)

What comes from several ranks is a list, by rank; what goes to several ranks is one array, split along its first axis.
"""

from distnet.process_group.coordinator import GroupCoordinator
from distnet.process_group.group import ProcessGroup
from distnet.process_group.work import Work

__all__ = ["GroupCoordinator", "ProcessGroup", "Work"]
