"""DistributedDataParallel without its averaging."""

# Without postponed annotations: DDP compares a hook's annotations with these very types.
import torch
import torch.distributed

__all__ = ["leave_unreduced"]


def leave_unreduced(state: object, bucket: torch.distributed.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Leave each rank's gradients as they are: a communication hook for ``DistributedDataParallel``.

    With :class:`distnet.torch.DistributedOptimizer`, whose server joins the gradients, it keeps what a trainer does
    around a wrapped model (ranks, samplers, checkpoints) and turns the averaging off, so that ranks need not wait for
    each other::

        model = DistributedDataParallel(model, broadcast_buffers=False)
        model.register_comm_hook(None, distnet.torch.leave_unreduced)
        optimizer = distnet.torch.DistributedOptimizer(optimizer, model, semantics="async-lockfree")

    Give the wrapper ``broadcast_buffers=False``, and leave ``find_unused_parameters`` off: with either of them the
    ranks exchange something in each step, and wait for each other.

    Args:
        state: of the hook; not used.
        bucket: gradients that are ready.

    Returns:
        A future that is complete, and holds the gradients.
    """
    future: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future
