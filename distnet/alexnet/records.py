"""What a training loop tells and returns: a record of each step, and a result; counted and timed in one place."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from distnet._private.arrays import Array
from distnet.alexnet.network import TENSORS

__all__ = ["Snapshot", "StepCounter", "StepRecord", "TrainingResult"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepRecord:
    """One step of one worker, told to ``on_step``.

    Attributes:
        step: this worker's steps so far, from 1; those before a resume count.
        examples: this worker's examples so far.
        loss: mean cross-entropy of the step's minibatch, without the L2 penalty.
        staleness: the shard's version when a push was applied less the version it was computed from (0: no server).
        version: the smallest version over the shards (the updates so far without a server).
        computing_s: seconds that the step spent on its gradient.
        exchanging_s: seconds that the step spent in push and pull.
        elapsed_s: seconds since the first step of this process began, compilation excluded.
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
    """Averaged parameters in the middle of a local run, told to ``on_snapshot``; the arrays are the caller's."""

    step: int
    examples: int
    elapsed_s: float
    parameters: dict[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """What a finished loop did.

    Attributes:
        parameters: the last parameters (a worker's: its replica's), by name.
        ema: their exponential moving average; None for a worker, whose server keeps it, or where none was kept.
        state: the optimizer's vectors, each by the parameters' names; empty for a worker.
        steps, examples: the work, that before a resume included.
        seconds: of this process's steps; compilation and loading are not in it.
        loss: of the last step; NaN if there was none.
    """

    parameters: dict[str, Array]
    ema: dict[str, Array] | None
    state: tuple[dict[str, Array], ...]
    steps: int
    examples: int
    seconds: float
    loss: float


class StepCounter:
    """Counts and times the steps of one loop, and tells of each.

    Args:
        batch_size: examples of a step.
        on_step: told after every step.
        done: steps before a resume.
    """

    def __init__(self, batch_size: int, on_step: Callable[[StepRecord], None] | None, done: int = 0) -> None:
        self.steps = done
        self._batch_size = batch_size
        self._on_step = on_step
        self._loss = float("nan")
        self._begin = time.perf_counter()

    def stepped(
        self, *, loss: float, staleness: int, version: int, computing_s: float, exchanging_s: float = 0.0
    ) -> None:
        """Count a step that has ended, and tell of it."""
        self.steps += 1
        self._loss = loss
        if self._on_step is None:
            return
        self._on_step(
            StepRecord(
                step=self.steps,
                examples=self.steps * self._batch_size,
                loss=loss,
                staleness=staleness,
                version=version,
                computing_s=computing_s,
                exchanging_s=exchanging_s,
                elapsed_s=time.perf_counter() - self._begin,
            )
        )

    def snapshot(self, variables: Sequence[Any]) -> Snapshot:
        """Return copies of AlexNet's variables, and where the loop is."""
        elapsed_s = time.perf_counter() - self._begin
        return Snapshot(
            step=self.steps,
            examples=self.steps * self._batch_size,
            elapsed_s=elapsed_s,
            parameters=_named_copies(variables),
        )

    def result(
        self, variables: Sequence[Any], ema: Sequence[Any] | None, state: Sequence[Sequence[Array]]
    ) -> TrainingResult:
        """Return copies of AlexNet's variables, of their average and of the optimizer's vectors, and what was done."""
        seconds = time.perf_counter() - self._begin
        return TrainingResult(
            parameters=_named_copies(variables),
            ema=None if ema is None else _named_copies(ema),
            state=tuple(dict(zip(TENSORS, vector, strict=True)) for vector in state),
            steps=self.steps,
            examples=self.steps * self._batch_size,
            seconds=seconds,
            loss=self._loss,
        )


def _named_copies(variables: Sequence[Any]) -> dict[str, Array]:
    return {name: np.array(variable.numpy()) for name, variable in zip(TENSORS, variables, strict=True)}
