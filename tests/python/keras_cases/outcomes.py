"""What came of a training, in values that a test can be sent."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

__all__ = ["outcome"]

_OF_THE_WORKER = ("iteration", "learning_rate", "gradient_accumulator", "average", "step_counter", "dynamic_scale")


def outcome(model: Any, history: dict[str, list[float]]) -> dict[str, Any]:
    """Return what came of a training.

    Returns:
        Values of the trained variables and of the others by path, dtypes of the former, metrics by epoch, counts, the
        rate that comes next, the client's version, and names of the optimizer's own state.
    """
    optimizer = model.optimizer
    others = [each for each in model.non_trainable_variables if "float" in keras.backend.standardize_dtype(each.dtype)]
    state = [each.path for each in optimizer.variables if not any(name in each.path for name in _OF_THE_WORKER)]
    client = getattr(optimizer, "client", None)
    return {
        "weights": {variable.path: _plain(variable) for variable in model.trainable_variables},
        "others": {variable.path: _plain(variable) for variable in others},
        "dtypes": {variable.path: keras.backend.standardize_dtype(variable.dtype) for variable in model.variables},
        "history": history,
        "iterations": int(_plain(optimizer.iterations)),
        "rate": float(np.asarray(_plain(keras.ops.convert_to_tensor(optimizer.learning_rate)))),
        "version": None if client is None else client.version,
        "state": state,
    }


def _plain(value: Any) -> Any:
    return keras.ops.convert_to_numpy(keras.ops.cast(value, "float64" if _is_wide(value) else "float32")).tolist()


def _is_wide(value: Any) -> bool:
    return bool(keras.backend.standardize_dtype(value.dtype) == "float64")
