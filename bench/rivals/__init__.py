"""Other ways to exchange gradients for parameters, each with its best settings, in a file of its own.

A rival is a file with a context manager ``contender(size)`` that yields a ``Contender``, and a line here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
from collections.abc import Callable

from distnet.benchmark.measure import Contender, Size

__all__ = ["RIVALS", "Rival"]


@dataclasses.dataclass(frozen=True)
class Rival:
    """Where a rival stands, and the package that it is made of.

    Attributes:
        name: for ``pytest -k`` and messages.
        place: ``module:context manager``.
        package: what must be installed.
    """

    name: str
    place: str
    package: str

    @property
    def installed(self) -> bool:
        """Whether its package is there."""
        return importlib.util.find_spec(self.package) is not None

    def contender(self, size: Size) -> contextlib.AbstractContextManager[Contender]:
        """Start it."""
        module, _, function = self.place.partition(":")
        make: Callable[[Size], contextlib.AbstractContextManager[Contender]]
        make = getattr(importlib.import_module(module), function)
        return make(size)


RIVALS = (
    Rival("torch-rpc", "rivals.torch_rpc:contender", "torch"),
    Rival("gloo", "rivals.gloo:contender", "torch"),
    Rival("hogwild", "rivals.hogwild:contender", "torch"),
    Rival("tensorflow", "rivals.tensorflow_ps:contender", "tensorflow"),
    Rival("tensorflow-pipelined", "rivals.tensorflow_ps:pipelined", "tensorflow"),
    Rival("ray", "rivals.ray_actor:contender", "ray"),
)
