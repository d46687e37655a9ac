"""Gradients, a custom ``train_step`` and plain loops, as each backend has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from keras_cases.training import Array

__all__ = ["LOOPS", "OwnStep", "gradients_of"]

BACKEND = keras.backend.backend()
Loop = Callable[[Any], Callable[[Array, Array], None]]

if BACKEND == "tensorflow":
    import tensorflow as tf

    class OwnStep(keras.Model):  # type: ignore[misc]  # Keras is Any here
        """Has a step of its own: the loss is halved."""

        def train_step(self, data: Any) -> dict[str, Any]:
            """Make one step."""
            x, y = data
            with tf.GradientTape() as tape:
                loss = 0.5 * self.compute_loss(y=y, y_pred=self(x, training=True))
            gradients = tape.gradient(loss, self.trainable_variables)
            self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
            return {"half": loss}

    def gradients_of(model: Any, *, compiled: bool = False, scaled: bool = False) -> Any:
        """Return a function of inputs, targets and a loss scale that returns loss and gradients as arrays."""

        def compute(x: Any, y: Any, scale: Any) -> Any:
            with tf.GradientTape() as tape:
                loss = model.compute_loss(x=x, y=y, y_pred=model(x, training=True))
                whole = loss * scale if scaled else loss
            return loss, tape.gradient(whole, model.trainable_variables)

        made = tf.function(compute, jit_compile=compiled)

        def gradients(x: Array, y: Array, scale: float = 1.0) -> tuple[float, list[Array]]:
            loss, found = made(tf.constant(x), tf.constant(y), tf.constant(scale))
            return float(loss), [each.numpy() for each in found]

        return gradients

    def _tape(model: Any) -> Callable[[Array, Array], None]:
        def step(x: Any, y: Any) -> None:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean(tf.square(model(x, training=True) - y))
            gradients = tape.gradient(loss, model.trainable_variables)
            model.optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))

        return step

    def _traced(model: Any) -> Callable[[Array, Array], None]:
        step = tf.function(_tape(model))
        return lambda x, y: step(tf.constant(x), tf.constant(y)) and None

    LOOPS: dict[str, Loop] = {"loop": _tape, "loop in a graph": _traced}

elif BACKEND == "torch":
    import torch

    class OwnStep(keras.Model):  # type: ignore[misc, no-redef]  # Keras is Any here
        """Has a step of its own: the loss is halved."""

        def train_step(self, data: Any) -> dict[str, Any]:
            """Make one step."""
            x, y = data
            self.zero_grad()
            loss = 0.5 * self.compute_loss(y=y, y_pred=self(x, training=True))
            loss.backward()
            variables = self.trainable_weights[:]
            with torch.no_grad():
                self.optimizer.apply([variable.value.grad for variable in variables], variables)
            return {"half": loss}

    def gradients_of(model: Any, *, compiled: bool = False, scaled: bool = False) -> Any:
        """Return a function of inputs, targets and a loss scale that returns loss and gradients as arrays."""

        def gradients(x: Array, y: Array, scale: float = 1.0) -> tuple[float, list[Array]]:
            model.zero_grad()
            x, y = keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(y)
            loss = model.compute_loss(x=x, y=y, y_pred=model(x, training=True))
            (loss * scale if scaled else loss).backward()
            return float(loss.detach()), [np.array(each.value.grad) for each in model.trainable_weights]

        return gradients

    def _loop(model: Any) -> Callable[[Array, Array], None]:
        def step(x: Array, y: Array) -> None:
            model.zero_grad()
            loss = torch.nn.functional.mse_loss(model(torch.from_numpy(x), training=True), torch.from_numpy(y))
            loss.backward()
            variables = model.trainable_weights
            with torch.no_grad():
                model.optimizer.apply([variable.value.grad for variable in variables], variables)

        return step

    LOOPS = {"loop": _loop}

else:
    import jax

    class OwnStep(keras.Model):  # type: ignore[misc, no-redef]  # Keras is Any here
        """Has a step of its own: the loss is halved."""

        def _own_loss(self, trainable: Any, other: Any, x: Any, y: Any) -> Any:
            predicted, other = self.stateless_call(trainable, other, x, training=True)
            return 0.5 * self.compute_loss(y=y, y_pred=predicted), other

        def train_step(self, state: Any, data: Any) -> Any:
            """Make one step."""
            trainable, other, optimizer, metrics = state
            x, y = data
            (loss, other), gradients = jax.value_and_grad(self._own_loss, has_aux=True)(trainable, other, x, y)
            trainable, optimizer = self.optimizer.stateless_apply(optimizer, gradients, trainable)
            return {"half": loss}, (trainable, other, optimizer, metrics)

    def gradients_of(model: Any, *, compiled: bool = False, scaled: bool = False) -> Any:
        """Return a function of inputs, targets and a loss scale that returns loss and gradients as arrays."""

        def loss_of(trainable: Any, other: Any, x: Any, y: Any, scale: Any) -> Any:
            predicted, other = model.stateless_call(trainable, other, x, training=True)
            loss = model.compute_loss(x=x, y=y, y_pred=predicted)
            return loss * scale if scaled else loss, (loss, other)

        made = jax.jit(jax.value_and_grad(loss_of, has_aux=True))

        def gradients(x: Array, y: Array, scale: float = 1.0) -> tuple[float, list[Array]]:
            trainable = [variable.value for variable in model.trainable_variables]
            other = [variable.value for variable in model.non_trainable_variables]
            (_, (loss, other)), found = made(trainable, other, x, y, scale)
            for variable, value in zip(model.non_trainable_variables, other, strict=True):
                variable.assign(value)
            return float(loss), [np.array(each) for each in found]

        return gradients

    def _stateless(model: Any, wrapped: Callable[[Any], Any]) -> Callable[[Array, Array], None]:
        optimizer = model.optimizer
        optimizer.build(model.trainable_variables)

        def loss_of(trainable: Any, other: Any, x: Any, y: Any) -> Any:
            predicted, other = model.stateless_call(trainable, other, x, training=True)
            return jax.numpy.mean(jax.numpy.square(predicted - y)), other

        @wrapped
        def compute(trainable: Any, other: Any, state: Any, x: Any, y: Any) -> Any:
            (_, other), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable, other, x, y)
            return *optimizer.stateless_apply(state, gradients, trainable), other

        def step(x: Array, y: Array) -> None:
            parts = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
            trainable, other, state = ([variable.value for variable in part] for part in parts)
            trainable, state, other = compute(trainable, other, state, x, y)
            for part, values in zip(parts, (trainable, other, state), strict=True):
                for variable, value in zip(part, values, strict=True):
                    variable.assign(value)

        return step

    LOOPS = {
        "loop": lambda model: _stateless(model, lambda function: function),
        "loop in a graph": lambda model: _stateless(model, jax.jit),
    }
