"""The compiled optimizer as one whose steps go over a parameter server: the same object, of a class made for it.

Every backend's step ends in ``_backend_update_step``, after gradients were unscaled, accumulated and clipped, and
before moving averages of the parameters are updated. That is the seam: the classes made here replace it, and what goes
with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import keras

from distnet.errors import ConfigError
from distnet.keras.routes import Route
from distnet.keras.variables import Variables

__all__ = ["Owner", "inner_optimizer", "owner_of", "put_behind", "take_back"]


class Owner(Protocol):
    """What stands behind a distributed optimizer, and connects when the model is there.

    Attributes:
        at_server: whether the server steps; else the worker does.
        every: with a local update, how many steps lie between two exchanges.
        ends_a_fit: whether the optimizer has ended a fit, and no step came since.
    """

    at_server: bool
    every: int
    ends_a_fit: bool

    @property
    def connected(self) -> bool:
        """Whether the server has been told of the optimizer."""

    @property
    def in_rounds(self) -> bool:
        """Whether exchanges wait for those of other ranks."""

    @property
    def variables(self) -> Variables:
        """Those of the model, in the server's order."""

    @property
    def route(self) -> Route:
        """The way to the host; connects first, where that is yet to be done."""

    def finish(self, *, timeout: float | None = None) -> None:
        """Wait until all ranks are done."""

    def close(self) -> None:
        """Leave the job."""

    def raise_failure(self) -> None:
        """Raise what ended the last exchange, where anything did."""


def put_behind(optimizer: Any, owner: Owner) -> None:
    """Make an optimizer, and the one inside it, step over a server from now on.

    Args:
        optimizer: of Keras; a ``LossScaleOptimizer`` keeps its own work.
        owner: what stands behind.
    """
    inner = inner_optimizer(optimizer)
    _become(inner, ServerStepped if owner.at_server else LocallyStepped, owner)
    if inner is not optimizer:
        _become(optimizer, LossScaled, owner)
        inner.__dict__["_distnet_within"] = True


def inner_optimizer(optimizer: Any) -> Any:
    """Return the optimizer that steps: that inside a ``LossScaleOptimizer``, or the optimizer itself."""
    return optimizer.inner_optimizer if isinstance(optimizer, keras.optimizers.LossScaleOptimizer) else optimizer


def owner_of(optimizer: Any) -> Owner | None:
    """Return what stands behind an optimizer; None where it steps as Keras made it."""
    owner: Owner | None = optimizer.__dict__.get("_distnet") if isinstance(optimizer, Distributed) else None
    return owner


def take_back(optimizer: Any) -> None:
    """Undo :func:`put_behind`."""
    for each in (optimizer, inner_optimizer(optimizer)):
        if isinstance(each, Distributed):
            each.__dict__.pop("_distnet", None)
            each.__dict__.pop("_distnet_places", None)
            each.__dict__.pop("_distnet_within", None)
            _CLASS.__set__(each, each.__class__)


_CLASS: Any = object.__dict__["__class__"]  # what sets the class of an object whose class hides it


def _become(optimizer: Any, kind: type[Distributed], owner: Owner) -> None:
    own = optimizer.__class__
    # What Keras writes into files is optimizer.__class__, and that stays the class which needs no DistNet to be loaded.
    names = {"__module__": own.__module__, "__doc__": own.__doc__, "__class__": property(lambda self: own)}
    made = type(own.__name__, (kind, own), names)
    _CLASS.__set__(optimizer, made)
    optimizer.__dict__["_distnet"] = owner  # not by setattr: Keras and TensorFlow look into what they are given


class Distributed:
    """What distributed optimizers have in common; a base beside the optimizer's own class."""

    @property
    def client(self) -> Any:
        """The client that the steps use; None before the model and the server are connected."""
        return getattr(self._owner, "client", None)

    def finish(self, *, timeout: float | None = None) -> None:
        """Wait until all ranks are done, and have the final parameters in the model: the same on every rank.

        Args:
            timeout: seconds to wait at most. None: as long as it takes.

        Raises:
            DistNetError: what :meth:`distnet.Client.finish` raises.
        """
        self._owner.finish(timeout=timeout)

    def close(self) -> None:
        """Leave the job in order, as the end of the program does; a client that was given stays open."""
        self._owner.close()

    def apply(self, *arguments: Any, **named: Any) -> Any:
        """Apply gradients as the optimizer's own class does; outside graphs an error is the client's own."""
        try:
            return super().apply(*arguments, **named)  # type: ignore[misc]
        except Exception:
            if "_distnet_within" not in self.__dict__:  # Keras makes errors anew on their way to the one around it
                self._owner.raise_failure()
            raise

    @property
    def _owner(self) -> Owner:
        owner: Owner = self.__dict__["_distnet"]
        return owner


class Stepped(Distributed):
    """What the optimizer that steps has, whoever computes the step."""

    def _update_model_variables_moving_average(self, trainable_variables: Sequence[Any]) -> None:
        own = super()._update_model_variables_moving_average  # type: ignore[misc]
        self._after_exchange("moving averages", lambda: own(trainable_variables))

    def _overwrite_model_variables_with_average_value(self, trainable_variables: Sequence[Any]) -> None:
        own = super()._overwrite_model_variables_with_average_value  # type: ignore[misc]
        self._after_exchange("overwriting by averages", lambda: own(trainable_variables))

    def finalize_variable_values(self, var_list: Sequence[Any]) -> None:
        """End a fit as the optimizer's own class does: moving averages, where there are any, replace the parameters."""
        super().finalize_variable_values(var_list)  # type: ignore[misc]
        self._owner.ends_a_fit = True

    def _after_exchange(self, name: str, work: Callable[[], None]) -> None:
        inside = True

        def with_this_count() -> None:
            with contextlib.nullcontext() if inside else _count_of_last_step(self):
                work()

        self._owner.route.after_exchange(name, with_this_count)
        inside = False


class ServerStepped(Stepped):
    """Steps that the server makes: there is no state here but counters, accumulators and moving averages."""

    def build(self, variables: Sequence[Any]) -> None:
        """Make what is needed here, and none of the state that the server keeps."""
        if not self.built:  # type: ignore[attr-defined]
            keras.optimizers.Optimizer.build(self, variables)

    def exclude_from_weight_decay(self, *arguments: Any, **named: Any) -> None:
        """Leave variables out of the weight decay, before the server is told which.

        Raises:
            ConfigError: the server has been told.
        """
        if self._owner.connected:
            raise ConfigError(
                "the server was told already which variables the optimizer's weight decay leaves out: call "
                "exclude_from_weight_decay() before distribute()"
            )
        super().exclude_from_weight_decay(*arguments, **named)  # type: ignore[misc]

    def _apply_weight_decay(self, variables: Sequence[Any]) -> None:
        """Leave it to the server."""

    def _backend_update_step(
        self, gradients: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        route, variables = self._owner.route, self._owner.variables
        places = _places(self, variables)
        tensors: list[Any | None] = [None] * len(places)
        for gradient, variable in zip(gradients, trainable_variables, strict=True):
            tensors[_place(self, places, variable)] = gradient
        route.exchange(tensors, learning_rate, when=_when_computed_each_time(self))


class LocallyStepped(Stepped):
    """Steps of the worker itself, and an exchange after every so many."""

    def _backend_update_step(
        self, gradients: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
    ) -> None:
        super()._backend_update_step(gradients, trainable_variables, learning_rate)  # type: ignore[misc]
        self.exchange_when_due(learning_rate)

    def exchange_when_due(self, learning_rate: Any) -> None:
        """Exchange in this step if it is one that does."""
        owner = self._owner
        when = _when_computed_each_time(self)
        if owner.every > 1:
            is_time = (self.iterations + 1) % owner.every == 0  # type: ignore[attr-defined]
            when = is_time if when is None else keras.ops.logical_and(when, is_time)
        owner.route.exchange([variable.value for variable in owner.variables], learning_rate, when=when)


class LossScaled(Distributed):
    """A ``LossScaleOptimizer`` around one that is distributed: a step that it skips keeps no other rank waiting.

    Each rank has a scale and skips steps of its own. Where ranks exchange in rounds, a step that is skipped counts all
    the same: in an accumulation as one of zeros, with a local update as one without a change.
    """

    def _stateful_handle_non_finite_grads(self) -> None:
        super()._stateful_handle_non_finite_grads()  # type: ignore[misc]
        self._stay_in_step()

    def _stateless_handle_non_finite_grads(
        self, optimizer_variables: Sequence[Any], trainable_variables: Sequence[Any]
    ) -> tuple[Sequence[Any], Sequence[Any]]:
        kept: tuple[Sequence[Any], Sequence[Any]]
        kept = super()._stateless_handle_non_finite_grads(  # type: ignore[misc]
            optimizer_variables, trainable_variables
        )
        trained: Sequence[Any] = self._trainable_variables  # type: ignore[attr-defined]
        own: Sequence[Any] = self.variables  # type: ignore[attr-defined]
        values = [*zip(trained, kept[0], strict=True), *zip(own, kept[1], strict=True)]
        with keras.StatelessScope(state_mapping=values) as scope:
            self._stay_in_step()
        return [scope.get_current_value(each) for each in trained], [scope.get_current_value(each) for each in own]

    def _stay_in_step(self) -> None:
        """Have a step that is skipped here be one that the other ranks need not wait for: they may have taken it."""
        owner, inner = self._owner, self.inner_optimizer  # type: ignore[attr-defined]
        if owner.at_server and not inner.gradient_accumulation_steps:
            owner.route.abstain()
        elif not owner.in_rounds:
            return  # the accumulation is a step longer, and the next exchange a step later
        elif inner.gradient_accumulation_steps:
            inner.apply([_zeros_like(variable) for variable in inner._trainable_variables])
        else:
            inner.exchange_when_due(inner.learning_rate)
            inner._iterations.assign_add(1)


@contextlib.contextmanager
def _count_of_last_step(optimizer: Any) -> Iterator[None]:
    """Have the optimizer count one step less: what is done after a step is done as within it."""
    counted = optimizer._iterations
    optimizer.__dict__["_iterations"] = counted - 1
    try:
        yield
    finally:
        optimizer.__dict__["_iterations"] = counted


def _zeros_like(variable: Any) -> Any:
    return keras.ops.zeros_like(keras.ops.convert_to_tensor(variable))  # JAX's takes none of Keras's variables


def _when_computed_each_time(optimizer: Any) -> Any | None:
    """Return whether this is a step that counts, where Keras computes a step and selects afterwards; else None.

    JAX's does so with accumulated gradients.
    """
    steps = optimizer.gradient_accumulation_steps
    if keras.backend.backend() != "jax" or not steps:
        return None
    return (optimizer._iterations + 1) % steps == 0


def _places(optimizer: Any, variables: Variables) -> dict[Any, int]:
    """Return the variables' places by the keys that the optimizer has for them."""
    known: dict[Any, int] | None = optimizer.__dict__.get("_distnet_places")
    if known is None:
        key: Callable[[Any], Any] = optimizer._var_key
        known = optimizer.__dict__["_distnet_places"] = {key(each): place for place, each in enumerate(variables)}
    return known


def _place(optimizer: Any, places: dict[Any, int], variable: Any) -> int:
    place = places.get(optimizer._var_key(variable))
    if place is None:
        name = getattr(variable, "path", None) or getattr(variable, "name", "of no name")
        raise ConfigError(
            f"the optimizer is given variable {name!r}, which is none of those that the model trained when it was "
            "connected to the server: set layer.trainable before distribute(), alike in every worker"
        )
    return place
