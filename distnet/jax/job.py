"""Joining the job that this process belongs to, with a tree of JAX as the model."""

from __future__ import annotations

import atexit
import contextlib
import sys
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from distnet.client import Client
from distnet.errors import DistNetError
from distnet.frameworks.job import Job as FrameworksJob
from distnet.frameworks.job import check_server, join_job
from distnet.frameworks.rendezvous import store_at_master
from distnet.jax.exchange import PushPull
from distnet.jax.trees import Layout
from distnet.optimizers import Group, Optimizer
from distnet.semantics import Semantics, resolve_semantics

__all__ = ["Job", "join"]


def join(
    parameters: Any,
    *,
    optimizer: Optimizer | None = None,
    groups: Mapping[str, Group] | None = None,
    semantics: str | Semantics | None = None,
    servers: int | None = None,
) -> Job:
    """Join the job that this process belongs to: connect to its servers, or have rank 0 start some.

    ::

        with distnet.jax.join(parameters, optimizer=distnet.Adam(1e-3)) as job:
            parameters = job.parameters

            @jax.jit
            def step(parameters, batch):
                loss, gradients = jax.value_and_grad(loss_of)(parameters, batch)
                return job.push_pull(gradients), loss

            for batch in batches:
                parameters, loss = step(parameters, batch)
            parameters = job.finish()

    The servers are those of ``distnet run``, or those that ``DISTNET_ADDRESS`` names, or else ones that rank 0 starts,
    as processes of its own, and stops when all ranks have left. What a process went by is written to its stderr.

    Args:
        parameters: the model's, a tree of arrays of floating-point numbers. Rank 0's are used where the servers have
            none yet.
        optimizer: that steps at the server, its learning rate a number; rank 0 brings it where the servers have none.
            None: whichever the servers have.
        groups: settings for parameters by patterns of their names, as :class:`distnet.ParameterServer` takes them.
        semantics: of servers that rank 0 starts; None: ``"sync"``. By a name, or None, a rank that is lost ends all
            rounds (``on_loss="abort"``). Servers that run already must have the same, but for that.
        servers: how many of them there are; None: as many as the semantics needs at least.

    Returns:
        This process's part of the job.

    Raises:
        ConfigError: a leaf is not of floating-point numbers; no job; or a server with another optimizer, semantics or
            number of shards than is said here.
        ManifestMismatch: the parameters are not those of the server's model: a rank has another tree than rank 0.
        DistNetError: what :func:`distnet.connect` raises.
    """
    if semantics is not None:
        resolve_semantics(semantics)  # a name that is none is told before a job or a server is looked for
    layout = Layout.of(parameters)
    joined = join_job(
        layout.initial(parameters),
        optimizer=optimizer,
        groups=groups,
        semantics=semantics,
        servers=servers,
        store=store_at_master,
    )
    try:
        started = joined.placement.address is None
        check_server(
            joined.client, optimizer=optimizer, groups=groups, semantics=semantics, servers=servers, started=started
        )
        return Job(joined, PushPull(joined.client, parameters))
    except BaseException:
        joined.end()
        raise


class Job:
    """This process's part of a job; :func:`join` makes it.

    It ends with its ``with`` block, by :meth:`close`, or with the program. Where an exception ends the block, the
    servers count this rank as lost; an error of a callback within ``jit`` is then raised as what it is, in place of the
    ``jax.errors.JaxRuntimeError`` that JAX ends a step by.

    Attributes:
        push_pull: pushes gradients and returns fresh parameters, inside and outside ``jit``.
        parameters: the server's at the beginning, a tree of arrays of JAX: the same on every rank.

    Thread safety: one thread.
    """

    def __init__(self, joined: FrameworksJob, push_pull: PushPull) -> None:
        self._joined = joined
        self.push_pull = push_pull
        self.parameters = push_pull.pull()
        atexit.register(self._end_with_program)  # before the end of `joined`: what was registered last comes first

    @property
    def client(self) -> Client:
        """This process's client of the job's servers."""
        return self._joined.client

    @property
    def rank(self) -> int:
        """This process's number in the job, from 0."""
        return self._joined.placement.rank

    @property
    def size(self) -> int:
        """How many processes the job has."""
        return self._joined.placement.size

    def pull(self) -> Any:
        """Return the server's parameters as they are now, a tree of arrays of JAX.

        Raises:
            DistNetError: what :meth:`distnet.Client.pull` raises, or a callback has raised before.
        """
        return self.push_pull.pull()

    def finish(self, *, timeout: float | None = None) -> Any:
        """Wait until all ranks are done, and return the final parameters, the same on every rank.

        Args:
            timeout: seconds to wait at most. None: as long as it takes.

        Returns:
            A tree of arrays of JAX.

        Raises:
            DistNetError: what :meth:`distnet.Client.finish` raises, or a callback has raised before.
        """
        return self.push_pull.finish(timeout=timeout)

    def close(self) -> None:
        """Leave the job in order, as the end of the program does; a second call does nothing.

        Where this is rank 0 and it started the servers, it waits for all other ranks, and stops them.
        """
        self._end(None)

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        told = self.push_pull.cause_of(error)
        self._end(told)
        if told is not None and told is not error:
            raise told from None

    def _end_with_program(self) -> None:
        self._end(self.push_pull.cause_of(getattr(sys, "last_value", None)))

    def _end(self, error: BaseException | None) -> None:
        atexit.unregister(self._end_with_program)
        if error is None:  # pushes of steps that still run reach the servers before
            with contextlib.suppress(DistNetError):  # told where the step's results are looked at
                self.push_pull.settle()
        self._joined.end(error)
