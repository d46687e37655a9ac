"""AlexNet of :mod:`distnet.alexnet.network` as a model of Keras, which computes what TensorFlow's does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import keras
import tensorflow as tf

from distnet._private.arrays import Array
from distnet.alexnet.network import DECAYED, initial_parameters
from distnet.alexnet.network_tensorflow import Precision, forward
from distnet.errors import ConfigError

__all__ = ["AlexNet"]

BACKEND: Final = "tensorflow"


class AlexNet(keras.Model):  # type: ignore[misc]  # mypy sees no types of Keras
    """The network, whose weights have the names and the order of :data:`distnet.alexnet.network.TENSORS`.

    Args:
        seed: of the initial weights.
        weight_decay: how much of each decayed weight its gradient has added: the L2 penalty is not in the loss.
        precision: of the convolutions.

    Raises:
        ConfigError: Keras computes with another backend than TensorFlow, whose operations the network is made of.
    """

    def __init__(self, *, seed: int, weight_decay: float, precision: Precision = "float32") -> None:
        if keras.backend.backend() != BACKEND:
            raise ConfigError(
                f"Keras computes with {keras.backend.backend()} here, and AlexNet is made of TensorFlow's operations: "
                f"set KERAS_BACKEND={BACKEND}, or leave it out"
            )
        super().__init__(name="alexnet")
        self._precision, self._weight_decay = precision, weight_decay
        by_layer: dict[str, dict[str, Array]] = {}
        for name, values in initial_parameters(seed).items():
            layer, _, own = name.partition("/")
            by_layer.setdefault(layer, {})[own] = values
        self._held = [_Weights(layer, arrays) for layer, arrays in by_layer.items()]
        self.built = True

    def call(self, images: Any) -> Any:
        """Return logits ``[B, 10]`` of standardised float32 images ``[B, 24, 24, 3]``."""
        variables = [weight.value for weight in self.trainable_variables]
        for index in DECAYED:
            variables[index] = _decayed(tf.convert_to_tensor(variables[index]), self._weight_decay)
        return forward(variables, images, precision=self._precision)


class _Weights(keras.layers.Layer):  # type: ignore[misc]
    """The weights of one layer, and their names; the network computes with them."""

    def __init__(self, name: str, arrays: Mapping[str, Array]) -> None:
        super().__init__(name=name)
        for own, values in arrays.items():
            self.add_weight(name=own, shape=values.shape, initializer=_being(values))
        self.built = True


def _being(values: Array) -> Any:
    return lambda shape, dtype: tf.constant(values, dtype)


def _decayed(weight: Any, weight_decay: float) -> Any:
    """Return a weight whose gradient has so much of the weight added."""

    @tf.custom_gradient  # type: ignore[untyped-decorator]
    def identity(value: Any) -> Any:
        return value, lambda upstream: upstream + weight_decay * value

    return identity(weight)
