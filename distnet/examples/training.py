"""Training loops: one rank against a server, and the baseline that has none."""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import NDArray

__all__ = ["Evaluation", "Snapshot", "StepRecord", "TrainingResult"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One step of one worker, told to ``on_step``.

    Attributes:
        step: this worker's steps so far, from 1.
        examples: this worker's examples so far.
        loss: mean cross-entropy of the step's minibatch.
        staleness: the shard's version when a push was applied less the version it was computed from (0 without a server).
        version: the smallest version over the shards (the updates so far without a server).
        computing_s: seconds that the step spent on its gradient.
        exchanging_s: seconds that the step spent in push and pull.
        elapsed_s: seconds since the first step began, compilation excluded.
    """

    step: int
    examples: int
    loss: float
    staleness: int
    version: int
    computing_s: float
    exchanging_s: float
    elapsed_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Averaged parameters in the middle of a local run, told to ``on_snapshot``; the arrays are the caller's to keep."""

    step: int
    examples: int
    elapsed_s: float
    parameters: dict[str, NDArray[np.float32]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """How well parameters do on the test pictures."""

    accuracy: float
    loss: float
    examples: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a finished loop did.

    Attributes:
        parameters: the last parameters (a worker's: its replica's), by name.
        average: their moving average; None for a worker, whose server keeps it.
        steps, examples, seconds: the work and its time; seconds exclude compilation and loading.
        loss: of the last step.
    """

    parameters: dict[str, NDArray[np.float32]]
    average: dict[str, NDArray[np.float32]] | None
    steps: int
    examples: int
    seconds: float
    loss: float
