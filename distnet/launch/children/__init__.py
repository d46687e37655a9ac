"""Child processes: started, heard, named when they die, stopped in order, and tied to the life of their launcher."""

from __future__ import annotations

from distnet.launch.children.child import Child, ChildDied, Ended, Line, death_of, describe_status
from distnet.launch.children.children import Children

__all__ = ["Child", "ChildDied", "Children", "Ended", "Line", "death_of", "describe_status"]
