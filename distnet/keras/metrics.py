"""Metrics and logs of all workers."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from distnet.frameworks.ranks import Ranks
from distnet.keras.state import host_array, set_values

__all__ = ["averaged_logs", "join_metrics"]


def join_metrics(model: Any, ranks: Ranks) -> None:
    """Make the state of the model's metrics that of all workers: totals and counts are summed.

    So a mean is weighted by each worker's examples, and counts behind an AUC or a confusion matrix are exact. A
    metric's variable says itself how it is joined: by the sum, the mean, or not at all, where rank 0's counts.

    Raises:
        CollectiveMismatch: the workers have different metrics.
        DistNetError: what :meth:`Ranks.meet` raises.
    """
    variables = list(model.metrics_variables)
    if ranks.size == 1 or not variables:
        return
    values = [host_array(variable) for variable in variables]
    factors = [_factor(variable, ranks) for variable in variables]
    packed = np.concatenate(
        [np.ravel(value.astype(np.float64) * factor) for value, factor in zip(values, factors, strict=True)]
    )
    joined = ranks.sum(packed)
    begins = np.cumsum([0, *(value.size for value in values)])
    for place, (variable, value) in enumerate(zip(variables, values, strict=True)):
        own = joined[begins[place] : begins[place + 1]].reshape(value.shape)
        set_values([variable], [own.astype(value.dtype)])


def averaged_logs(logs: Any, ranks: Ranks) -> Any:
    """Return the mean over all workers of logs that a training step of the program's own returns; each counts alike."""
    if ranks.size == 1 or not isinstance(logs, dict):
        return logs
    found = {name: _number(value) for name, value in sorted(logs.items())}
    numbers = {name: value for name, value in found.items() if value is not None}
    if not numbers:
        return logs
    joined = ranks.average([np.array(list(numbers.values()))])[0]
    return {**logs, **{name: float(value) for name, value in zip(numbers, joined, strict=True)}}


def _factor(variable: Any, ranks: Ranks) -> float:
    how = getattr(variable, "aggregation", "sum")
    if how == "mean":
        return 1.0 / ranks.size
    if how == "only_first_replica":
        return 1.0 if ranks.rank == 0 else 0.0
    return 1.0


def _number(value: Any) -> float | None:
    """Return a log's value; None where it is no number."""
    if isinstance(value, str):
        return None
    try:
        array = np.asarray(keras.ops.convert_to_numpy(value))
        return float(array) if array.ndim == 0 else None
    except (TypeError, ValueError):
        return None
