"""What a distributed model has beside Keras: its client, its variables' places, and the way to them."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Sequence
from typing import Any, Literal

import keras

from distnet._private.arrays import Array
from distnet.errors import ConfigError, DistNetWarning
from distnet.frameworks.client_protocol import OptimizerClient
from distnet.frameworks.exchange import Exchange
from distnet.frameworks.job import Job, check_server, join_job
from distnet.frameworks.keras_variables import FixedTrainables
from distnet.frameworks.rendezvous import store_at_master
from distnet.frameworks.replica import AlternatingReplica, Replica
from distnet.keras.optimizer import inner_optimizer, owner_of, put_behind, take_back
from distnet.keras.routes import Route, is_tracing, replica_for, route_for
from distnet.keras.state_before import check_or_drop_state
from distnet.keras.steps import LocalSteps, ServerSteps, Steps
from distnet.keras.translation import Translation, check_unchanged, translated
from distnet.keras.variables import Variables, number
from distnet.optimizers import SGD, Adagrad
from distnet.semantics import Semantics

__all__ = ["Attached", "Options"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """The arguments of :func:`distnet.keras.distribute`, as it describes them."""

    client: OptimizerClient | None
    update: Literal["server", "local"]
    every: int
    state: Literal["average", "rank0"]
    semantics: str | Semantics | None
    servers: int | None


class Attached:
    """A model's part of a job.

    It connects when model and optimizer are there: in ``distribute``, in ``compile``, or when the first ``fit`` has
    built the model.

    Attributes:
        model: of Keras.
        options: that ``distribute`` was given.
        optimizer: the compiled one; None before there is one.
        at_server: whether the server steps.
        every: with a local update, how many steps lie between two exchanges.
        client: None before it is connected.
        job: that was joined; None where a client was given.
        steps: what is done on the host; None before it is connected.
        calls: how often the training function was called.
        ends_a_fit: whether the optimizer has ended a fit, and no step came since: moving averages are in the model.
        holds_others: whether the model was given other values than the server's since the last fit began.

    Thread safety: none.
    """

    def __init__(self, model: Any, options: Options) -> None:
        self.model, self.options = model, options
        self.at_server, self.every = options.update == "server", options.every
        self.optimizer: Any = None
        self.client: Any = None
        self.job: Job | None = None
        self.steps: Steps | None = None
        self.calls = 0
        self.holds_others = False
        self.ends_a_fit = False
        self._settled = 0
        self._exchange: Exchange | None = None
        self._replica: Replica | None = None
        self._variables: Variables | None = None
        self._route: Route | None = None
        self._trainables: FixedTrainables | None = None
        self._config: dict[str, Any] = {}
        self._said: str | None = None
        self._settled = 0  # updates

    @property
    def connected(self) -> bool:
        """Whether there is a client."""
        return self._route is not None

    @property
    def in_rounds(self) -> bool:
        """Whether exchanges wait for those of other ranks."""
        semantics = self.client.server_semantics
        return self.client.workers > 1 and (semantics is None or semantics.joins == "all")

    @property
    def steps_made(self) -> tuple[int, int]:
        """How many steps the optimizer has counted, and how many exchanges there were."""
        if self.optimizer is None:
            return 0, 0
        counted = inner_optimizer(self.optimizer)._iterations
        return int(number(counted)), self.steps.count if self.steps else 0

    @property
    def variables(self) -> Variables:
        """Those of the model, in the server's order."""
        self.connect()
        assert self._variables is not None
        return self._variables

    @property
    def route(self) -> Route:
        """The way to the host."""
        self.connect()
        assert self._route is not None
        return self._route

    def adopt(self) -> None:
        """Take over the optimizer that the model is compiled with, and connect where the model is built.

        Raises:
            ConfigError: it has no equal, holds state, or is another than the one that the server knows.
        """
        optimizer = self.model.optimizer
        if optimizer is self.optimizer:
            return
        if self.optimizer is not None and self.at_server:
            raise ConfigError(self._replaced())
        self._check_optimizer(optimizer)
        put_behind(optimizer, self)
        self.optimizer = optimizer
        self.model.train_function = None
        if self.model.built:
            self.connect()

    def release(self) -> None:
        """Leave model and optimizer as they were before :meth:`adopt`."""
        if self.optimizer is not None:
            take_back(self.optimizer)
            self.optimizer = None

    def _check_optimizer(self, optimizer: Any) -> None:
        if optimizer is None:
            raise ConfigError("the model is compiled without an optimizer; give compile() one")
        if owner_of(optimizer) is not None:
            raise ConfigError("the optimizer is that of another distributed model; give each model one of its own")
        if self.at_server:
            inner = inner_optimizer(optimizer)
            translated(inner, {})
            check_or_drop_state(inner)
            self._config = dict(inner.get_config())

    def check(self) -> None:
        """Raise ConfigError where the optimizer or what is trained is not what the server was told of."""
        if self.model.optimizer is not self.optimizer:
            raise ConfigError(self._replaced())
        if self._trainables is not None:
            self._trainables.check()
        if self.at_server:
            check_unchanged(self._config, inner_optimizer(self.optimizer).get_config())

    def _replaced(self) -> str:
        return (
            f"the model has another optimizer, {type(self.model.optimizer).__name__}, by compile() or by a callback, "
            "and the server keeps the one that the model was connected with: change optimizer.learning_rate instead, "
            "give the first compile() the optimizer that is to stay, or take update='local'"
        )

    def connect(self) -> None:
        """Join the job, and have the server's parameters in the model; a second call does nothing.

        Raises:
            ConfigError: the model is yet to be compiled or built, or anything that ``distribute`` says.
            ManifestMismatch: the model is not the server's.
            DistNetError: what :func:`distnet.connect` raises.
        """
        if self.connected:
            return
        if is_tracing():
            raise ConfigError(
                "the model is built for the first time while a graph is traced, so it has no values yet: call "
                "model.build(input_shape), or the model on a batch, before distribute()"
            )
        if self.optimizer is None:
            raise ConfigError("the model is not compiled: call model.compile() before it is trained")
        if not self.model.built:
            raise ConfigError(
                "the model is not built, so it has no variables yet: call model.build(input_shape), or the model on a "
                "batch, before it is trained"
            )
        _check_strategy(self.model)
        variables = Variables(self.model)
        if self.at_server:
            _check_constraints(variables)
        translation = self._translation(variables)
        said: dict[str, Any] = {
            "optimizer": translation and translation.optimizer,
            "groups": translation and translation.groups,
        }
        self._join(variables, said)
        try:
            self._check_and_match(variables, said)
        except BaseException:
            self.close()
            raise
        self._attach(variables, translation)

    def finish(self, *, timeout: float | None = None) -> None:
        """Wait until all ranks are done, and have the final parameters in the model: the same on every rank."""
        self.settle()
        assert self._exchange is not None
        self._exchange.finish(timeout=timeout)
        self._take()
        if self.ends_a_fit:
            self.optimizer.finalize_variable_values(self.model.trainable_variables)

    def wait_for_steps(self) -> None:
        """Wait until the steps that were begun have exchanged; outside any graph.

        Raises:
            DistNetError: what ended an exchange, where nobody has looked at its step yet.
        """
        self.route.settle()
        self.raise_failure()

    def settle(self) -> None:
        """Wait for steps; with a local update, add what they changed since the last exchange; outside any graph."""
        self.wait_for_steps()
        if self.at_server or self.steps is None:
            return
        updates = int(number(inner_optimizer(self.optimizer).iterations))
        if updates % self.every == 0 or updates == self._settled:
            return
        self._settled = updates
        values: list[Any] = list(self.variables.values())
        self.steps.exchange(values, 0.0)
        self._take()

    def pull(self) -> None:
        """Have the server's parameters in the model as they are now; outside any graph."""
        self.wait_for_steps()
        assert self._exchange is not None
        assert self.steps is not None
        self._exchange.pull()
        self.steps.rebase()
        self._take()

    def bring(self, values: Sequence[Array] | None) -> None:
        """Have the server hold these values, by a change that is added; outside any graph, and after :meth:`pull`.

        Args:
            values: float32, in the server's order. None: another rank brings them in this round.
        """
        self.connect()
        assert self._exchange is not None
        assert self._replica is not None
        assert self.steps is not None
        if values is None:
            self._exchange.push_pull(None)
        else:
            held = self._replica.tensors
            self._exchange.add_pull([value - before for value, before in zip(values, held, strict=True)])
        self.steps.rebase()
        self._take()

    def close(self) -> None:
        """Leave the job in order, as the end of the program does; a client that was given stays open."""
        if self.job is None:
            return
        if self._route is not None and sys.exc_info()[0] is None:
            self._route.settle()
        self.job.end()

    def raise_failure(self) -> None:
        """Raise what ended the last exchange, if anything did: a backend has wrapped that in an error of its own."""
        if self.steps is not None and self.steps.failure is not None:
            failure, self.steps.failure = self.steps.failure, None
            raise failure

    def tell_of_others(self) -> None:
        """Warn before a step that drops what ``set_weights`` or ``load_weights`` has put into the model."""
        if not self.holds_others:
            return
        self.holds_others = False
        if self.at_server:
            warnings.warn(
                "values were put into the model by set_weights() or load_weights() after training had begun: the "
                "server does not hear of them, and this step has its own in their place. Only fit() brings them to "
                "the server, when it begins",
                DistNetWarning,
                stacklevel=3,
            )

    def say_route(self) -> None:
        """Say which way the exchanges go, and why, in one line to stderr as joining a job does; once for each way."""
        said = self.route.said
        if said != self._said:
            self._said = said
            what = "gradients" if self.at_server else "changes"
            sys.stderr.write(f"distnet: rank {self.client.rank}: {what} leave {said}\n")

    def _translation(self, variables: Variables) -> Translation | None:
        if not self.at_server:
            return None
        optimizer = inner_optimizer(self.optimizer)
        named = zip(variables.names, variables, strict=True)
        return translated(optimizer, {name: _is_decayed(optimizer, variable) for name, variable in named})

    def _join(self, variables: Variables, said: dict[str, Any]) -> None:
        options = self.options
        if options.client is not None:
            self.client = options.client
            return
        self.job = join_job(
            variables.initial(),
            **said,
            semantics=options.semantics,
            servers=options.servers,
            store=store_at_master,
        )
        self.client = self.job.client

    def _check_and_match(self, variables: Variables, said: dict[str, Any]) -> None:
        started = self.job is not None and self.job.placement.address is None
        check_server(
            self.client, **said, semantics=self.options.semantics, servers=self.options.servers, started=started
        )
        held = self.client.pull()
        variables.match(held)

    def _attach(self, variables: Variables, translation: Translation | None) -> None:
        replica = replica_for(self.client)
        variables.take(replica.tensors)
        turn = replica.turn if isinstance(replica, AlternatingReplica) else _stay
        self._exchange = Exchange(self.client, replica, arrived=turn)
        self.steps = (
            LocalSteps(self._exchange, replica)
            if translation is None
            else ServerSteps(self._exchange, replica, variables.names, moves_on_zeros=_moves_on_zeros(translation))
        )
        self._replica, self._variables = replica, variables
        self._route = route_for(variables, replica, self.steps)
        self._trainables = FixedTrainables(self.model)
        self._build_optimizer()

    def _build_optimizer(self) -> None:
        """Have its variables made now: within a graph there may be no making any."""
        for optimizer in (self.optimizer, inner_optimizer(self.optimizer)):
            if not optimizer.built:
                optimizer.build(self.model.trainable_variables)

    def _take(self) -> None:
        assert self._replica is not None
        self.variables.take(self._replica.tensors)


def _stay() -> None:
    """Do nothing: replies go to one piece of memory."""


def _is_decayed(optimizer: Any, variable: Any) -> bool:
    """Return whether the optimizer's weight decay is for a variable; asked as each backend's own step asks it."""
    asked = variable.value if keras.backend.backend() == "tensorflow" else variable
    return bool(optimizer._use_weight_decay(asked))


def _check_strategy(model: Any) -> None:
    if getattr(model, "_distribute_strategy", None) is not None or keras.distribution.distribution() is not None:
        raise ConfigError(
            "the model is within a strategy of tf.distribute or a keras.distribution, which would exchange gradients "
            "as well; make it outside: each worker of DistNet is a process with a model of its own"
        )


def _check_constraints(variables: Variables) -> None:
    for name, variable in zip(variables.names, variables, strict=True):
        if variable.constraint is not None:
            raise ConfigError(
                f"variable {name!r} has the constraint {type(variable.constraint).__name__}, which has no equal on a "
                "server; make the layer without it, or take update='local'"
            )


def _moves_on_zeros(translation: Translation) -> bool:
    """Return whether a gradient of zeros is another thing than none, which Keras passes over."""
    made = translation.optimizer
    return bool(getattr(made, "weight_decay", 0.0)) or not isinstance(made, SGD | Adagrad)
