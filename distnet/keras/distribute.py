"""A model of Keras whose training goes over a parameter server."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Literal

import keras

from distnet.errors import ConfigError
from distnet.frameworks.client_protocol import OptimizerClient
from distnet.keras import fitting
from distnet.keras.attached import Attached, Options
from distnet.semantics import Semantics, resolve_semantics

__all__ = ["distribute"]


def distribute(
    model: Any,
    *,
    client: OptimizerClient | None = None,
    update: Literal["server", "local"] = "server",
    every: int = 1,
    state: Literal["average", "rank0"] = "average",
    semantics: str | Semantics | None = None,
    servers: int | None = None,
) -> Any:
    """Make a model of Keras train over a parameter server, and return it.

    ::

        model.compile("adam", "sparse_categorical_crossentropy")
        distnet.keras.distribute(model)
        model.fit(x, y, epochs=3)

    It stays the same object, and so does its optimizer. Call it before or after ``compile``, on every worker.

    Args:
        model: of Keras.
        client: of :func:`distnet.connect`; it stays the caller's to close, and its server has the model already. None:
            that of the job which this process belongs to: the servers of ``distnet run``, those that
            ``DISTNET_ADDRESS`` names, or else ones that rank 0 starts here, as processes of its own.
        update: ``"server"`` or ``"local"``: who steps.
        every: with ``update="local"``, how many steps lie between two exchanges.
        state: what the model's state that is not trained, such as moving statistics of batch normalisation, becomes:
            ``"average"`` of all workers, or that of ``"rank0"``.
        semantics: of servers that rank 0 starts; None: ``"sync"``. By a name, or None, a rank that is lost ends all
            rounds (``on_loss="abort"``). Servers that run already must have the same, but for that.
        servers: how many of them there are; None: as many as the semantics needs at least.

    Returns:
        The model.

    Raises:
        ConfigError: an optimizer, or an attribute of it, without an equal; or another argument that does not fit.
        ManifestMismatch: the model is not the server's: a rank has another model than rank 0.
        DistNetError: what :func:`distnet.connect` raises.

    Thread safety: none; from one thread, like the model.
    """
    options = Options(client=client, update=update, every=every, state=state, semantics=semantics, servers=servers)
    _check(model, options)
    attached = Attached(model, options)
    if model.compiled:
        try:
            attached.adopt()
        except BaseException:
            attached.release()
            raise
    _hook(model, attached)
    return model


def _check(model: Any, options: Options) -> None:
    if not isinstance(model, keras.Model):
        kind = type(model)
        raise ConfigError(f"model is a {kind.__module__}.{kind.__name__}; expected a model of Keras 3")
    if getattr(model, "_distnet", None) is not None:
        raise ConfigError("the model is distributed already")
    if options.update not in ("server", "local"):
        raise ConfigError(f"update is {options.update!r}; expected 'server' or 'local'")
    every: object = options.every
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ConfigError(f"every is {every!r}; expected a whole number of at least 1")
    if every != 1 and options.update == "server":
        raise ConfigError(f"every={every} goes with update='local': a server's optimizer needs each step's gradients")
    if options.state not in ("average", "rank0"):
        raise ConfigError(f"state is {options.state!r}; expected 'average' or 'rank0'")
    if options.semantics is not None:
        resolve_semantics(options.semantics)


def _hook(model: Any, attached: Attached) -> None:
    """Put what this worker does around methods of the model, on this object alone."""
    model._distnet = attached
    own_compile, own_make = model.compile, model.make_train_function

    @functools.wraps(own_compile)
    def compile_and_adopt(*arguments: Any, **named: Any) -> Any:
        result = own_compile(*arguments, **named)
        attached.adopt()
        return result

    @functools.wraps(own_make)
    def make_train_function(force: bool = False) -> Any:
        attached.connect()
        attached.check()
        if model.train_function is None or force:
            attached.route.make_train_function(model, lambda: own_make(force=True))
            model.train_function = _checked(attached, model.train_function)
            attached.say_route()
        return model.train_function

    model.compile, model.make_train_function = compile_and_adopt, make_train_function
    if hasattr(model, "_maybe_symbolic_build"):
        model._maybe_symbolic_build = functools.partial(_build, model, model._maybe_symbolic_build)
    fitting.put_around(model, attached)
    own_fit = model.fit

    @functools.wraps(own_fit)
    def fit(*arguments: Any, **named: Any) -> Any:
        with _steps_of_the_optimizer(attached):
            return own_fit(*arguments, **named)

    model.fit = fit
    for name in ("set_weights", "load_weights"):
        setattr(model, name, _noted(attached, getattr(model, name)))


def _build(model: Any, own: Callable[..., Any], /, **named: Any) -> None:
    """Build a model before its training function is made; on TensorFlow Keras would do so while it is traced."""
    if model.built:
        own(**named)
    else:
        model._symbolic_build(**named)


def _noted(attached: Attached, own: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method that gives the model other values, which takes note that it has."""

    @functools.wraps(own)
    def give(*arguments: Any, **named: Any) -> Any:
        result = own(*arguments, **named)
        attached.holds_others = attached.connected
        return result

    return give


def _checked(attached: Attached, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the training function; one that raises what a backend wrapped, and sees a replaced optimizer."""

    @functools.wraps(function)
    def train_function(*arguments: Any) -> Any:
        if attached.model.optimizer is not attached.optimizer:
            attached.check()
        attached.calls += 1
        attached.ends_a_fit = False
        attached.tell_of_others()
        try:
            return function(*arguments)
        except Exception:
            attached.raise_failure()
            raise

    return train_function


@contextlib.contextmanager
def _steps_of_the_optimizer(attached: Attached) -> Iterator[None]:
    """Raise ConfigError after a fit whose steps were none of the compiled optimizer."""
    calls, steps = attached.calls, attached.steps_made
    yield
    if attached.calls > calls and attached.steps_made == steps:
        raise ConfigError(
            "the fit has ended, and the compiled optimizer has not made a step: the model's train_step uses another "
            "one, whose steps no other worker hears of. Give compile() the optimizer that train_step uses, as "
            "self.optimizer"
        )
