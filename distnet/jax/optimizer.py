"""An optimizer in the form of optax's, ``init`` and ``update``, whose steps go over a parameter server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Literal, NamedTuple

from distnet.errors import ConfigError
from distnet.frameworks.client_protocol import OptimizerClient
from distnet.frameworks.job import check_server
from distnet.jax.exchange import PushPull
from distnet.jax.job import Job, join
from distnet.jax.steps import LocalSteps, ServerSteps
from distnet.optimizers import Group, Optimizer
from distnet.schedules import Schedule
from distnet.semantics import Semantics, resolve_semantics

__all__ = ["DistributedOptimizer"]


class _Transformation(NamedTuple):
    init: Callable[[Any], Any]
    update: Callable[..., tuple[Any, Any]]


class DistributedOptimizer(_Transformation):
    """An optimizer over a parameter server, in optax's form: a pair of ``init`` and ``update``.

    ::

        optimizer = distnet.jax.DistributedOptimizer(distnet.Adam(1e-3), parameters)
        parameters = optimizer.parameters                      # rank 0's
        state = optimizer.init(parameters)

        @jax.jit
        def step(parameters, state, batch):
            gradients = jax.grad(loss_of)(parameters, batch)
            updates, state = optimizer.update(gradients, state, parameters)
            return optax.apply_updates(parameters, updates), state

    It goes where a ``GradientTransformation`` of optax goes: into ``optax.chain`` as the last, into the ``TrainState``
    of Flax. ``init(parameters)`` returns the state. ``update(gradients, state, parameters)`` returns the updates, which
    added to the parameters give the server's, and the next state; both work inside and outside ``jit``, where
    :class:`PushPull` may be called.

    With ``update="server"`` the server steps, by an optimizer of DistNet: what one of optax does is a closure, which
    nobody can read. Each update pushes the gradients with their learning rate; momenta and the like are at the server,
    and the state here is a count. ``update(None, state, parameters)``, and ``abstain=`` with a scalar of JAX that is
    true, abstain: nothing is pushed, and a synchronous round goes on with the other workers' gradients.

    With ``update="local"`` an optimizer of optax, or any with ``init`` and ``update``, steps on its worker. Every
    ``every`` updates the change of the parameters since the last exchange goes to the server, which adds it: in
    ``sync`` the mean of all workers' changes. The optimizer's state stays with each worker. What is between two
    exchanges at the end of training goes along with :meth:`finish`.

    Parameters are float32 at the server, and those of a worker may differ from them by the rounding of one addition;
    the error does not grow, as each reply replaces them. :meth:`finish` returns the server's own.

    Args:
        optimizer: with ``update="server"`` one of :data:`distnet.OPTIMIZERS` with a learning rate that is a number,
            such as ``distnet.Adam(1e-3)``; else one of optax.
        parameters: of the model, a tree of arrays of floating-point numbers. Rank 0's are used where the server has
            none yet.
        client: of :func:`distnet.connect`; it stays the caller's to close, and its server has the model already. None:
            that of the job which this process belongs to, as :func:`join` finds it or has rank 0 start it.
        update: ``"server"`` or ``"local"``: who steps.
        every: with ``update="local"``, how many updates lie between two exchanges.
        learning_rate: with ``update="server"``, sent with each push: a number, or a function from the count of updates
            so far to the rate, such as a schedule of optax. None: the optimizer's own.
        groups: settings for parameters by patterns of their names, as :class:`distnet.ParameterServer` takes them.
        semantics: of servers that rank 0 starts; None: ``"sync"``. Servers that run already must have the same.
        servers: how many of them there are; None: as many as the semantics needs at least.

    Attributes:
        client: of the server.
        parameters: the server's at the beginning, a tree of arrays of JAX: the same on every rank.

    Raises:
        ConfigError: an optimizer of the other kind; an argument that makes no sense, a leaf that is not of
            floating-point numbers, no job; or a server with another optimizer, semantics or number of shards than is
            said here.
        ManifestMismatch: the parameters are not those of the server's model.
        DistNetError: what :func:`distnet.connect` raises.

    Thread safety: none; from one thread.
    """

    client: OptimizerClient
    parameters: Any
    _job: Job | None
    _push_pull: PushPull
    _steps: ServerSteps | LocalSteps

    def __new__(
        cls,
        optimizer: Any,
        parameters: Any,
        *,
        client: OptimizerClient | None = None,
        update: Literal["server", "local"] = "server",
        every: int = 1,
        learning_rate: float | Callable[[Any], Any] | None = None,
        groups: Mapping[str, Group] | None = None,
        semantics: str | Semantics | None = None,
        servers: int | None = None,
    ) -> DistributedOptimizer:
        _check(optimizer, update, every, learning_rate, groups)
        said: dict[str, Any] = {"semantics": semantics, "servers": servers, "optimizer": None, "groups": None}
        if update == "server":
            said |= {"optimizer": optimizer, "groups": groups}
        job = None
        if client is None:
            job = join(parameters, **said)
            client, push_pull = job.client, job.push_pull
        else:
            if semantics is not None:
                resolve_semantics(semantics)
            check_server(client, **said)
            push_pull = PushPull(client, parameters)
        steps: ServerSteps | LocalSteps
        if update == "server":
            steps = ServerSteps(push_pull, optimizer.learning_rate if learning_rate is None else learning_rate)
        else:
            steps = LocalSteps(push_pull, optimizer, every=every)
        made = super().__new__(cls, steps.init, steps.update)
        made.client, made.parameters = client, push_pull.pull() if job is None else job.parameters
        made._job, made._push_pull, made._steps = job, push_pull, steps
        return made

    def pull(self) -> Any:
        """Return the server's parameters as they are now, a tree of arrays of JAX; outside ``jit``.

        Raises:
            DistNetError: what :meth:`distnet.Client.pull` raises, or a callback has raised before.
        """
        return self._push_pull.pull()

    def finish(self, state: Any = None, parameters: Any = None, *, timeout: float | None = None) -> Any:
        """Wait until all ranks are done, and return the final parameters, the same on every rank.

        Args:
            state: of the last update; with ``update="local"`` it is needed.
            parameters: after the last update; with ``update="local"`` they are needed: what changed since the last
                exchange is added to the server's before.
            timeout: seconds to wait at most. None: as long as it takes.

        Returns:
            A tree of arrays of JAX.

        Raises:
            ConfigError: with ``update="local"``, there is no state or there are no parameters.
            DistNetError: what :meth:`distnet.Client.finish` raises, or a callback has raised before.
        """
        self._steps.settle(state, parameters)
        return self._push_pull.finish(timeout=timeout)

    def close(self) -> None:
        """Leave the job in order, as the end of the program does; a client that was given stays open.

        Where this is rank 0 and it started the servers, it waits for all other ranks, and stops them.
        """
        if self._job is not None:
            self._job.close()

    def __enter__(self) -> DistributedOptimizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        (self._job or self._push_pull).__exit__(kind, error, trace)


def _check(optimizer: Any, update: object, every: object, learning_rate: object, groups: object) -> None:
    if update not in ("server", "local"):
        raise ConfigError(f"update is {update!r}; expected 'server' or 'local'")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ConfigError(f"every is {every!r}; expected a whole number of at least 1")
    is_pair = callable(getattr(optimizer, "init", None)) and callable(getattr(optimizer, "update", None))
    if update == "local":
        _check_local(optimizer, is_pair=is_pair, learning_rate=learning_rate, groups=groups)
        return
    if every != 1:
        raise ConfigError(f"every={every} goes with update='local': a server's optimizer needs each step's gradients")
    if is_pair:
        raise ConfigError(
            "optimizer is a transformation of optax, whose settings nobody can read: give one of DistNet's in its "
            "place, such as distnet.Adam(1e-3), or let it step on its worker with update='local'"
        )
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"optimizer is a {type(optimizer).__name__}; expected one of distnet.OPTIMIZERS")
    if isinstance(optimizer.learning_rate, Schedule):
        raise ConfigError(
            "the optimizer's learning rate is a schedule, and the rate comes with each push here: give the optimizer "
            "the first rate, and learning_rate= a function of the count of updates, such as a schedule of optax"
        )


def _check_local(optimizer: Any, *, is_pair: bool, learning_rate: object, groups: object) -> None:
    if not is_pair:
        what = "an optimizer of DistNet" if isinstance(optimizer, Optimizer) else f"a {type(optimizer).__name__}"
        raise ConfigError(
            f"optimizer is {what}; with update='local' it steps on its worker: give one of optax, with init and update"
        )
    for name, value in (("learning_rate", learning_rate), ("groups", groups)):
        if value is not None:
            raise ConfigError(f"{name}= goes with update='server'; with update='local' the optimizer has its own")
