"""What is known of the variables of a Keras 3 model whatever its backend is; Keras itself is not imported."""

from __future__ import annotations

from typing import Any

from distnet.errors import ConfigError

__all__ = ["FixedTrainables", "is_keras_variable"]


def is_keras_variable(variable: object) -> bool:
    """Return whether it is a variable of Keras 3, which wraps one of a backend in its ``value``."""
    return hasattr(variable, "path") and hasattr(variable, "value")


class FixedTrainables:
    """Which of a model's variables were trainable when a worker was made: exactly these have places at the server.

    Args:
        model: of Keras; with any other there is nothing to check.
    """

    def __init__(self, model: Any) -> None:
        self._variables = [variable for variable in getattr(model, "variables", model) if is_keras_variable(variable)]
        self._trainable = [variable.trainable for variable in self._variables]

    def check(self) -> None:
        """Raise ConfigError where others are trainable now."""
        if [variable.trainable for variable in self._variables] == self._trainable:
            return
        changed = [
            variable.path
            for variable, trainable in zip(self._variables, self._trainable, strict=True)
            if variable.trainable != trainable
        ]
        raise ConfigError(
            f"layers were frozen or unfrozen after this worker was made: {', '.join(changed[:3])}"
            f"{' and others' if len(changed) > 3 else ''}; the tensors of a job are fixed: set layer.trainable before "
            "the worker is made, alike in every worker, or start a new server and new workers with the model as it is"
        )
