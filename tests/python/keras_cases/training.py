"""A training with Keras in plain values, which a test sends to the processes that run it; and its data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BATCH", "FEATURES", "OUTPUTS", "STEPS", "WORKERS", "Array", "Training", "examples", "validation"]

STEPS, WORKERS, BATCH = 8, 2, 16  # steps of an epoch, and examples of all workers in a step
FEATURES, OUTPUTS = 10, 3
SPOILT = float("inf")  # no gradient of such an example is finite

Array = npt.NDArray[np.float32]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """The same lines for one process and for workers.

    Attributes:
        optimizer: a name in ``keras.optimizers``.
        settings: of the optimizer. A ``learning_rate`` may be ``[name, settings]`` of a schedule.
        excluded: what ``exclude_from_weight_decay`` is told.
        scaled: settings of a ``LossScaleOptimizer`` around it; None: there is none but Keras's own.
        model: a kind of ``keras_cases.models``.
        dtype: the policy of the model.
        compiled: more arguments of ``compile``.
        drive: who steps: ``"fit"``, ``"train_on_batch"`` or a loop of ``keras_cases.loops``.
        callbacks: names in ``keras_cases.callbacks``.
        epochs: of each fit.
        fits: how many follow each other.
        steps: of an epoch.
        validated: whether ``fit`` has validation data: each worker a part of them.
        spoilt: ranks and steps whose gradient is not finite.
        distributed: arguments of ``distribute``.
        finished: whether ``finish`` of the optimizer comes at the end.
        compiled_last: whether ``distribute`` comes before ``compile``.
    """

    optimizer: str = "SGD"
    settings: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"learning_rate": 0.1})
    excluded: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    scaled: Mapping[str, Any] | None = None
    model: str = "dense"
    dtype: str = "float32"
    compiled: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    drive: str = "fit"
    callbacks: Sequence[str] = ()
    epochs: int = 1
    fits: int = 1
    steps: int = STEPS
    validated: bool = False
    spoilt: Sequence[Sequence[int]] = ()
    distributed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    finished: bool = False
    compiled_last: bool = False

    def told(self) -> dict[str, Any]:
        """Return what JSON can hold."""
        return dataclasses.asdict(self)

    @property
    def scales(self) -> bool:
        """Whether the loss is scaled: by an optimizer around the optimizer, which Keras adds itself for float16."""
        return self.scaled is not None or self.dtype == "mixed_float16"

    @property
    def all_steps(self) -> int:
        """How many steps all fits and epochs have together."""
        return self.steps * self.epochs * self.fits


def examples(training: Training, rank: int | None) -> tuple[Array, Array]:
    """Return inputs and targets of all steps: of the whole batches, or a rank's part of each batch, in order."""
    random = np.random.default_rng(11)
    x = random.standard_normal((training.steps, BATCH, FEATURES), np.float32)
    y = random.standard_normal((training.steps, BATCH, OUTPUTS), np.float32)
    part = BATCH // WORKERS
    for spoilt_rank, step in training.spoilt:
        x[step, spoilt_rank * part] = SPOILT
    if rank is not None:
        x, y = (each[:, rank * part : (rank + 1) * part] for each in (x, y))
    return np.ascontiguousarray(x.reshape(-1, FEATURES)), np.ascontiguousarray(y.reshape(-1, OUTPUTS))


def validation(rank: int | None) -> tuple[Array, Array]:
    """Return validation data: all of them, or a rank's part."""
    random = np.random.default_rng(12)
    x = random.standard_normal((2 * BATCH, FEATURES), np.float32)
    y = random.standard_normal((2 * BATCH, OUTPUTS), np.float32)
    return (x, y) if rank is None else (x[rank::WORKERS], y[rank::WORKERS])
