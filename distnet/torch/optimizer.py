"""An optimizer of PyTorch whose steps go over a parameter server."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch

from distnet.errors import ConfigError
from distnet.frameworks.client_protocol import OptimizerClient
from distnet.frameworks.exchange import Exchange
from distnet.frameworks.job import Job, check_server, join_job
from distnet.frameworks.replica import ClientReplica, Replica
from distnet.semantics import Semantics, resolve_semantics
from distnet.torch.parameters import Parameters
from distnet.torch.steps import LocalSteps, ServerSteps
from distnet.torch.store import store_of_job
from distnet.torch.translation import Translation, translated

__all__ = ["DistributedOptimizer"]


class DistributedOptimizer(torch.optim.Optimizer):  # type: ignore[misc]
    """Makes an optimizer of PyTorch step over a parameter server, and returns it.

    ::

        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        optimizer = distnet.torch.DistributedOptimizer(optimizer, model)

    It stays the same object and an instance of its own class. Schedulers, parameter groups, ``zero_grad``, closures,
    hooks, gradient scalers and clipping do what they did; a step exchanges instead of computing. The model's
    parameters are rank 0's from here on.

    With ``update="server"`` the optimizer is translated to one of :data:`distnet.OPTIMIZERS` and runs at the server.
    Each step pushes the gradients together with the learning rates of that moment, and the reply lands in the
    parameters: those that are float32, contiguous and on the CPU share the memory that it is written to. The state,
    such as momenta, is at the server; its checkpoints keep it, and :meth:`state_dict` has the parameter groups alone.
    A step without any gradient, or one that a gradient scaler skips, abstains: it pushes nothing, and a synchronous
    round goes on with the others' gradients. A parameter without a gradient, beside others that have one, is pushed
    zeros: another rank may have a gradient for it. Where no rank has one, momenta and weight decay move it all the
    same, which PyTorch's own step does not.

    With ``update="local"`` the optimizer steps on its worker as ever, whatever optimizer it is. Every ``every`` steps
    the change of the parameters since the last exchange goes to the server, which adds it: in ``sync`` the mean of
    all ranks' changes. State stays with each worker.

    What is computed from one rank's batch, such as the norm that gradients are clipped to, is so on each rank by
    itself, before gradients are joined.

    Buffers stay with each worker. Parameters are float32 at the server; float16, bfloat16 and float64 are cast on
    their way, once. Whatever a program writes into the parameters itself is lost with the next step.

    Args:
        optimizer: one of PyTorch's, whose class is among those of ``distnet.torch.translation`` for
            ``update="server"``.
        model: whose parameters it trains; the names in it are those at the server. One in a wrapper, such as
            ``DistributedDataParallel``, is taken out of that.
        client: of :func:`distnet.connect`; it stays the caller's to close, and its server has the model already. None:
            that of the job which this process belongs to: the servers of ``distnet run``, those that
            ``DISTNET_ADDRESS`` names, or else ones that rank 0 starts here, as processes of its own.
        update: ``"server"`` or ``"local"``: who steps.
        every: with ``update="local"``, how many steps lie between two exchanges.
        semantics: of servers that rank 0 starts; None: ``"sync"``. By a name, or None, a rank that is lost ends all
            rounds (``on_loss="abort"``). Servers that run already must have the same, but for that.
        servers: how many of them there are; None: as many as the semantics needs at least.

    Attributes:
        client: that the steps use.

    Raises:
        ConfigError: an optimizer, or an attribute of it, without an equal; one that holds state, such as momenta, of
            steps before, with ``update="server"``; a parameter that no server can hold; a server with another
            optimizer, semantics or number of shards than is said here; or no job.
        ManifestMismatch: the model is not the server's: a rank has another model than rank 0.
        DistNetError: what :func:`distnet.connect` raises.

    Warns:
        DistNetWarning: once, where a parameter without a gradient is pushed zeros and that is not the same.

    Thread safety: none; from one thread, like the model.
    """

    client: Any
    _step_supports_amp_scaling = True  # a scaler calls step() also where it skips: the other ranks wait for this one
    _distnet: _Attached

    def __new__(
        cls,
        optimizer: Any = None,
        model: Any = None,
        *,
        client: OptimizerClient | None = None,
        update: Literal["server", "local"] = "server",
        every: int = 1,
        semantics: str | Semantics | None = None,
        servers: int | None = None,
    ) -> Any:
        if optimizer is None and model is None:  # copy.deepcopy() makes one, of a class that is made already
            return super().__new__(cls)
        _check(optimizer, update, every)
        if semantics is not None:
            resolve_semantics(semantics)  # a name that is none is told before a job or a server is looked for
        parameters = Parameters(optimizer, model)
        translation = translated(optimizer, parameters.names) if update == "server" else None
        if translation is not None:
            _check_stateless(optimizer)
        attached = _attach(parameters, translation, client, semantics, servers)
        own = type(optimizer)
        name = {"__module__": own.__module__, "__doc__": own.__doc__}
        optimizer.__class__ = type(own.__name__, (DistributedOptimizer, own), name)
        attached.steps = _steps(attached, parameters, translation, own, every)
        optimizer._distnet = attached
        optimizer.client = attached.client
        # A scheduler that was there before has put a step of its own, which is the former class's, before this one.
        optimizer.__dict__.pop("step", None)
        optimizer._patch_step_function()
        return optimizer

    def __init__(self, *arguments: Any, **named: Any) -> None:
        """Leave the optimizer as it is: it was made, and has been wrapped."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make a step, as the optimizer's own class does, over the server.

        Args:
            closure: computes the loss and its gradients anew, and returns the loss.

        Returns:
            What the closure returned; None without one.

        Raises:
            ConfigError: an attribute other than the learning rate has changed since the server was told of it.
            NonFiniteGradient: a gradient holds NaN or infinity, and no gradient scaler was there to skip the step.
            DistNetError: what the client's push_pull raises.
        """
        self._opt_called = True  # for schedulers, which warn where they come before the first step
        return self._attached().steps.step(self, closure)

    step._wrapped_by_lr_sched = True  # type: ignore[attr-defined]  # it tells schedulers, so they need not wrap it

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load parameter groups, such as learning rates; with ``update="local"`` also the state.

        Args:
            state_dict: what :meth:`state_dict` returned.

        Raises:
            ConfigError: it holds state, such as momenta, and that is at the server.
        """
        if self._attached().at_server and state_dict.get("state"):
            raise ConfigError(
                "the state dict holds state, such as momenta, which the server keeps here: load it before "
                "DistributedOptimizer() with update='local', or go on from the server's own checkpoint (--resume)"
            )
        super().load_state_dict(state_dict)

    def finish(self, *, timeout: float | None = None) -> None:
        """Wait until all ranks are done, and have the final parameters in the model: the same on every rank.

        Without it, a rank's model ends as its last step left it.

        Args:
            timeout: seconds to wait at most. None: as long as it takes.

        Raises:
            DistNetError: what :meth:`distnet.Client.finish` raises.
        """
        attached = self._attached()
        attached.steps.settle()
        attached.exchange.finish(timeout=timeout)

    def close(self) -> None:
        """Leave the job in order, as the end of the program does; a client that was given stays open.

        Where this is rank 0 and it started the servers, it waits for all other ranks, and stops them.
        """
        job = self._attached().job
        if job is not None:
            job.end()

    def _attached(self) -> _Attached:
        attached = self.__dict__.get("_distnet")
        if attached is None:
            raise ConfigError("this is a copy of a DistributedOptimizer, which has no client; use the one it is of")
        found: _Attached = attached
        return found


class _Attached:
    """What a DistributedOptimizer has beside the optimizer."""

    def __init__(self, client: OptimizerClient, job: Job | None, exchange: Exchange, *, at_server: bool) -> None:
        self.client, self.job, self.exchange = client, job, exchange
        self.at_server = at_server
        self.steps: Any = None


def _check(optimizer: Any, update: object, every: object) -> None:
    if isinstance(optimizer, DistributedOptimizer):
        raise ConfigError("the optimizer is a DistributedOptimizer already")
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(f"optimizer is a {type(optimizer).__name__}; expected a torch.optim.Optimizer")
    if update not in ("server", "local"):
        raise ConfigError(f"update is {update!r}; expected 'server' or 'local'")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ConfigError(f"every is {every!r}; expected a whole number of at least 1")
    if every != 1 and update == "server":
        raise ConfigError(f"every={every} goes with update='local': a server's optimizer needs each step's gradients")


def _check_stateless(optimizer: Any) -> None:
    """Refuse state of steps before: it would be dropped, as the server begins with none."""
    if any(_has_stepped(state) for state in optimizer.state.values()):
        raise ConfigError(
            "the optimizer holds state, such as momenta, of steps that it has made or of a state dict, and the server "
            "keeps the state here: give DistributedOptimizer() one that was just made, use update='local', or go on "
            "from the server's own checkpoint (--resume)"
        )


def _has_stepped(state: dict[str, Any]) -> bool:
    if "step" in state:
        return float(state["step"]) > 0  # Adagrad has its state, of no step, from the beginning
    return any(value is not None for value in state.values())


def _attach(
    parameters: Parameters,
    translation: Translation | None,
    client: Any,
    semantics: str | Semantics | None,
    servers: int | None,
) -> _Attached:
    said: dict[str, Any] = {"optimizer": None, "groups": None}
    if translation is not None:
        said = {"optimizer": translation.optimizer, "groups": translation.groups}
    job = None
    if client is None:
        job = join_job(
            parameters.initial(),
            **said,
            semantics=semantics,
            servers=servers,
            store=store_of_job,
        )
        client = job.client
    try:
        started = job is not None and job.placement.address is None
        check_server(client, **said, semantics=semantics, servers=servers, started=started)
        parameters.match(client.pull())
    except BaseException:
        if job is not None:
            job.end()
        raise
    replica = Replica(client.replica_arrays(), page_locked=True) if parameters.on_gpu else ClientReplica(client)
    parameters.live_in(replica)
    exchange = Exchange(client, replica, arrived=parameters.take)
    return _Attached(client, job, exchange, at_server=translation is not None)


def _steps(attached: _Attached, parameters: Parameters, translation: Translation | None, own: type, every: int) -> Any:
    if translation is not None:
        return ServerSteps(attached.exchange, parameters, translation)
    inner: Any = own.step  # type: ignore[attr-defined]
    if getattr(inner, "hooked", False):  # the step of this class calls the hooks; they are called once
        inner = inner.__wrapped__
    return LocalSteps(attached.exchange, parameters, inner=inner, every=every)
