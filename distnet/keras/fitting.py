"""What a ``fit`` over a server is beside its steps: begun alike, with epochs that end together, and metrics of all."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from distnet._private import launcher_env
from distnet.errors import ConfigError, RoundAborted
from distnet.frameworks.ranks import Departed, Ranks
from distnet.keras.attached import Attached
from distnet.keras.backup import Beginning, epoch_of, with_epoch
from distnet.keras.metrics import averaged_logs, join_metrics
from distnet.keras.optimizer import inner_optimizer
from distnet.keras.state import State

__all__ = ["put_around"]

_WRITERS = ("ModelCheckpoint", "CSVLogger", "TensorBoard", "BackupAndRestore", "RemoteMonitor", "ProgbarLogger")
_Own = Callable[..., Any]


def put_around(model: Any, attached: Attached) -> None:
    """Put what a worker does beside steps around ``fit`` and ``evaluate`` of a model, on this object alone."""
    fitting = _Fitting(model, attached)
    for name, around in (
        ("fit", fitting.fit),
        ("evaluate", fitting.evaluate),
        ("_get_metrics_result_or_logs", fitting.results),
    ):
        own = getattr(model, name)
        setattr(model, name, functools.wraps(own)(functools.partial(around, own)))


class _Fitting:
    """The fits and evaluations of a distributed model.

    Thread safety: none.
    """

    def __init__(self, model: Any, attached: Attached) -> None:
        self._model, self._attached = model, attached
        self._ranks: Ranks | None = None  # while there is a fit, or an evaluation by itself
        self._state: State | None = None
        self._fits = 0
        self._fitting = self._backs_up = False
        self._alone = launcher_env.start_number() > 0  # the others have lost the process that was there before
        self._evaluations = 0
        self._epoch = 0

    def fit(self, own: _Own, /, *arguments: Any, **named: Any) -> Any:
        """Run the model's own ``fit``, with what goes on around its steps."""
        call = _Call(own, arguments, named)
        rank = _rank_of(self._attached)
        callbacks = call.take("callbacks")
        self._backs_up = any(isinstance(each, keras.callbacks.BackupAndRestore) for each in _listed(callbacks))
        call.put("callbacks", _callbacks_of(rank, callbacks, _Together(self, call), self._model))
        if rank:
            call.put("verbose", 0)
        self._fitting = True
        with self._settled_before_the_end():
            return self._with_others(call)

    def evaluate(self, own: _Own, /, *arguments: Any, **named: Any) -> Any:
        """Run the model's own ``evaluate``; its results are of all workers' data."""
        call = _Call(own, arguments, named)
        if not self._attached.connected:
            return call.run()
        if self._ranks is None:
            self._ranks = self._new_ranks()
        if self._ranks.rank:
            call.put("verbose", 0)
        self._evaluations += 1
        try:
            return call.run() if self._fitting else self._with_others(call)
        finally:
            self._evaluations -= 1

    def results(self, own: _Own, logs: Any) -> Any:
        """Return the results of an epoch or an evaluation, of all workers; after an epoch, have their state too."""
        ranks = self._ranks
        if ranks is None:
            return own(logs)
        self._attached.wait_for_steps()
        try:
            if self._evaluations:
                ranks.meet(f"evaluate() after epoch {self._epoch + 1}" if self._fitting else "evaluate()")
            else:
                self._end_epoch(ranks)
        except Departed as error:
            if self._fitting:
                raise
            _say(ranks.rank, f"{error}: these results are of this rank's data alone")
            return own(logs)
        join_metrics(self._model, ranks)
        found = own(logs)
        return averaged_logs(found, ranks) if found is logs else found

    def begin(self, call: _Call, steps: int | None) -> None:
        """Begin at the same parameters, state and epoch on all workers."""
        attached = self._attached
        attached.connect()
        ranks = self._ranks = self._new_ranks()
        plan = call.plan(steps if self._in_rounds else None)
        values = attached.variables.values()
        attached.pull()
        beginning = self._beginning(values) if ranks.rank == 0 or ranks.alone else {}
        heard = ranks.meet("the beginning of fit()", plan=plan, **beginning)
        wrong = heard[0].get("error") or _difference_of([each["plan"] for each in heard])
        if wrong:
            ranks.close()  # in order: all ranks raise this
            raise ConfigError(wrong)
        if attached.holds_others and ranks.rank and not heard[0].get("brings"):
            _say(ranks.rank, "what was put into this rank's model is dropped: all ranks begin at rank 0's values")
        self._follow(heard[0], values, ranks)
        attached.holds_others = False
        self._state = self._state or State(self._model, attached.options.state, functools.partial(_say, ranks.rank))
        self._state.begin(ranks)
        self._fits += 1

    def begin_epoch(self, epoch: int) -> None:
        """Let the server keep at which epoch this worker is: for a resumed job, or this rank started again."""
        self._epoch = epoch
        if self._backs_up:
            self._attached.client.save_with(with_epoch(epoch))

    def _with_others(self, call: _Call) -> Any:
        """Run a call, and leave the other ranks in order after it, or as one that is lost where it raises."""
        try:
            result = call.run()
        except BaseException as error:
            if self._ranks is not None:
                self._ranks.abandon(error)
            if isinstance(error, RoundAborted) and "at a barrier" in str(error) and "equally many" not in str(error):
                raise RoundAborted(f"{error}. {_HOW_TO_SHARE}") from error
            raise
        else:
            if self._ranks is not None:
                self._ranks.close()
            return result
        finally:
            self._alone = self._alone or (self._ranks is not None and self._ranks.alone)
            self._ranks, self._fitting = None, False

    @contextlib.contextmanager
    def _settled_before_the_end(self) -> Iterator[None]:
        """With a local update, have what is left of the last steps added before Keras takes moving averages."""
        if self._attached.at_server:
            yield
            return
        optimizer = inner_optimizer(self._model.optimizer)
        own = optimizer.finalize_variable_values

        def finalize(variables: Any) -> None:
            if sys.exc_info()[0] is None:  # on JAX Keras comes here after an error, too
                self._settle()
            own(variables)

        optimizer.__dict__["finalize_variable_values"] = finalize
        try:
            yield
        finally:
            del optimizer.__dict__["finalize_variable_values"]

    def _settle(self) -> None:
        ranks = self._ranks
        if ranks is None:
            return
        self._attached.settle()
        if not self._in_rounds and ranks.size > 1:
            ranks.meet("the end of fit()")
            self._attached.pull()

    def _new_ranks(self) -> Ranks:
        return Ranks(self._attached.client, "distnet.keras", alone=self._alone)

    @property
    def _in_rounds(self) -> bool:
        semantics = self._attached.client.server_semantics
        return semantics is None or semantics.joins == "all"

    def _beginning(self, values: Sequence[Any]) -> dict[str, Any]:
        """Return the word of rank 0, or of one by itself, on where the fit begins, or what is wrong."""
        client = self._attached.client
        held = self._attached.variables.values()
        same = all(np.array_equal(one, other, equal_nan=True) for one, other in zip(values, held, strict=True))
        try:
            beginning = Beginning.of(
                trained=self._fits == 0 and client.version > 0,
                differs=not same,
                backs_up=self._backs_up,
                restored=self._model._initial_epoch,
                saved=epoch_of(client.saved) if self._fits == 0 else None,
            )
        except ConfigError as error:
            return {"error": str(error)}
        if beginning.said:
            _say(client.rank or 0, beginning.said)
        return {"brings": beginning.brings, "epoch": beginning.epoch}

    def _follow(self, word: Mapping[str, Any], values: Sequence[Any], ranks: Ranks) -> None:
        self._model._initial_epoch = word.get("epoch", self._model._initial_epoch)
        if not word.get("brings"):
            return
        if ranks.rank == 0:
            self._attached.bring(values)
        elif self._in_rounds:
            self._attached.bring(None)
        if not self._in_rounds:
            ranks.meet("the beginning of fit(), with rank 0's values at the server")
            self._attached.pull()

    def _end_epoch(self, ranks: Ranks) -> None:
        """Wait for all, and have the same state on each; with a server's update the same parameters, too."""
        where = f"the end of epoch {self._epoch + 1}"
        ranks.meet(where)
        if self._attached.at_server and not self._in_rounds and ranks.size > 1:
            self._attached.pull()
            ranks.meet(f"{where}, with fresh parameters")  # before that, nobody pushes
        if self._state is not None:
            self._state.join(ranks)


_HOW_TO_SHARE = (
    "Give every worker equally many steps: distnet.keras.shard() does, or steps_per_epoch=, with the same batch_size"
)


class _Together(keras.callbacks.Callback):  # type: ignore[misc]
    """Tells of the beginning of a fit and of its epochs; the last of its callbacks, so that others have loaded."""

    def __init__(self, fitting: _Fitting, call: _Call) -> None:
        super().__init__()
        self._fitting, self._call = fitting, call

    def on_train_begin(self, logs: Any = None) -> None:
        self._fitting.begin(self._call, (self.params or {}).get("steps"))

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._fitting.begin_epoch(epoch)


class _Call:
    """A call of a method of the model, whose arguments can be seen and changed by name."""

    def __init__(self, own: _Own, arguments: Sequence[Any], named: Mapping[str, Any]) -> None:
        self._own = own
        signature = inspect.signature(own)
        self._bound = signature.bind(*arguments, **named)
        self._rest = next((each.name for each in signature.parameters.values() if each.kind is each.VAR_KEYWORD), None)
        self._known = set(signature.parameters)

    def take(self, name: str, default: Any = None) -> Any:
        """Return an argument as it was given."""
        if name in self._bound.arguments:
            return self._bound.arguments[name]
        return self._bound.arguments.get(self._rest or "", {}).get(name, default)

    def put(self, name: str, value: Any) -> None:
        """Replace an argument."""
        if name in self._known or self._rest is None:
            self._bound.arguments[name] = value
        else:
            self._bound.arguments.setdefault(self._rest, {})[name] = value

    def run(self) -> Any:
        """Call the method."""
        return self._own(*self._bound.args, **self._bound.kwargs)

    def plan(self, steps: int | None) -> dict[str, Any]:
        """Return what must be the same on all workers for their epochs to end together."""
        return {
            "epochs": int(self.take("epochs", 1)),  # which may be a number of NumPy's
            "initial_epoch": int(self.take("initial_epoch", 0)),
            "steps in an epoch": None if steps is None else int(steps),
            "validation data": self.take("validation_data") is not None or bool(self.take("validation_split", 0.0)),
            "validation_freq": str(self.take("validation_freq", 1)),
        }


def _difference_of(plans: Sequence[Mapping[str, Any]]) -> str:
    """Return what workers mean to do differently, so that some would wait for ever; empty where all do the same."""
    for name in plans[0]:
        said = [plan[name] for plan in plans]
        if any(each != said[0] for each in said):
            by_rank = "; ".join(f"rank {rank} has {each}" for rank, each in enumerate(said))
            return f"workers differ in their {name}: {by_rank}. {_HOW_TO_SHARE}; and call fit() alike"
    return ""


def _rank_of(attached: Attached) -> int:
    client = attached.client or attached.options.client
    if client is not None:
        return client.rank or 0
    return launcher_env.placement().rank


def _listed(callbacks: Any) -> list[Any]:
    if callbacks is None:
        return []
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return list(callbacks.callbacks)
    return list(keras.tree.flatten(callbacks))


def _callbacks_of(rank: int, callbacks: Any, together: _Together, model: Any) -> Any:
    """Return the callbacks of a rank: rank 0's alone write files and logs."""
    writers = tuple(getattr(keras.callbacks, name) for name in _WRITERS if hasattr(keras.callbacks, name))
    before = [each for each in _listed(callbacks) if not isinstance(each, _Together)]  # a list that a fit had already
    own = [each for each in before if rank == 0 or not isinstance(each, writers)]
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        return [*own, together]
    together.set_model(model)
    together.set_params(callbacks.params)
    callbacks.callbacks[:] = [*own, together]
    return callbacks


def _say(rank: int, what: str) -> None:
    """Write one line to stderr, as joining a job does."""
    sys.stderr.write(f"distnet: rank {rank}: {what}\n")
