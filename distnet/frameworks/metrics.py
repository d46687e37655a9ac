"""What one step of a worker did."""

from __future__ import annotations

import dataclasses
import time

from distnet.frameworks.client_protocol import ParameterClient

__all__ = ["StepMetrics", "measured"]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class StepMetrics:
    """What one step did.

    Attributes:
        loss: of the minibatch, before its gradient was applied.
        staleness: as the client last heard: largest over shards, of its newest applied push.
        version: the smallest version over the shards.
        computing_s: seconds until loss and gradients were there.
        exchanging_s: seconds in push and pull; with ``overlap`` only what the step had to wait for.
    """

    loss: float
    staleness: int
    version: int
    computing_s: float
    exchanging_s: float


def measured(client: ParameterClient, *, loss: float, begun_s: float, computed_s: float) -> StepMetrics:
    """Return the metrics of a step whose exchange has just ended.

    Args:
        client: that the step used.
        loss: of its minibatch.
        begun_s: when the step began, by ``time.perf_counter()``.
        computed_s: when loss and gradients were there.
    """
    return StepMetrics(
        loss=loss,
        staleness=client.staleness,
        version=client.version,
        computing_s=computed_s - begun_s,
        exchanging_s=time.perf_counter() - computed_s,
    )
