"""What an optimizer holds of steps that it made before its model was distributed."""

from __future__ import annotations

from typing import Any

from distnet.errors import ConfigError
from distnet.keras.variables import number

__all__ = ["check_or_drop_state"]


def check_or_drop_state(optimizer: Any) -> None:
    """Drop state that no step has changed yet, and refuse any other: the server begins with none.

    An optimizer that has none but its counters, such as SGD without momentum, is taken over as it is.

    Args:
        optimizer: of Keras, of its own class.

    Raises:
        ConfigError: it holds state, which is named.
    """
    if not optimizer.built:
        return
    kept = {id(optimizer._iterations), id(optimizer._learning_rate)}
    for name in ("_model_variables_moving_average", "_accumulated_gradients"):
        kept |= {id(variable) for variable in getattr(optimizer, name, ())}
    state = [variable for variable in optimizer._variables if id(variable) not in kept]
    if not state:
        return
    steps = int(number(optimizer._iterations))
    if steps > 0:
        raise ConfigError(
            f"the optimizer holds state of {steps} steps that it has made, such as {state[0].path!r}, and the server "
            "begins with none: compile the model with an optimizer that was just made, use update='local', or go on "
            "from the server's own checkpoint (--resume)"
        )
    for variable in list(optimizer._variables):
        if variable is not optimizer._iterations and variable is not optimizer._learning_rate:
            optimizer._untrack_variable(variable)
    optimizer.built = False
