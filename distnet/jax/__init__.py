"""DistNet behind JAX: gradients out and parameters in as one function, inside and outside ``jit``.

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

- :func:`join`: the job that this process belongs to, with a tree of arrays as the model.
- :func:`push_pull`: the function alone, over a client of :func:`distnet.connect`.
- :class:`DistributedOptimizer`: the same in the form of optax's optimizers, and steps on each worker with an exchange
  now and then.

On CPUs a compiled step calls DistNet by ``jax.experimental.buffer_callback``, on XLA's own memory; where that is
missing (before JAX 0.6) and on accelerators by ordered ``io_callback``. Which one was taken, and why, is written to
stderr once. Everything here has run on CPUs; it has not run on a GPU yet.
"""

from __future__ import annotations

from distnet._private.extras import missing_module_message

try:
    import jax as _jax
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(missing_module_message(error) or str(error), name=error.name) from error

from distnet.jax.versions import check_version

check_version(str(_jax.__version__))

from distnet.jax.exchange import PushPull, push_pull  # noqa: E402 - these may fail on a JAX that is too old
from distnet.jax.job import Job, join  # noqa: E402
from distnet.jax.optimizer import DistributedOptimizer  # noqa: E402

__all__ = ["DistributedOptimizer", "Job", "PushPull", "join", "push_pull"]
