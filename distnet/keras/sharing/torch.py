"""Shares of PyTorch's ``DataLoader`` and ``Dataset``. Imported only where a program has one."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Subset
from torch.utils.data.distributed import DistributedSampler

from distnet.errors import ConfigError
from distnet.keras.sharing.share import Share

__all__ = ["share_of_torch"]

_SEED = 0  # of what is drawn without a seed of the program's own: the same on all workers


def share_of_torch(data: Any, share: Share) -> Any:
    """Return a ``DataLoader``, ``Dataset`` or ``IterableDataset`` with this worker's examples; None for all else.

    Raises:
        ConfigError: what is a share already, a loader of a class of its own, or fewer examples than workers.
    """
    if isinstance(data, DataLoader):
        return _share_of_loader(data, share)
    if isinstance(data, IterableDataset):
        return _SharedStream(data, share)
    if isinstance(data, Dataset):
        return Subset(data, range(len(data))[share.span(len(data), "examples in the Dataset")])
    return None


def _share_of_loader(loader: Any, share: Share) -> Any:
    if type(loader) is not DataLoader:
        raise ConfigError(
            f"the loader is a {type(loader).__name__}, a class of its own, which shard() cannot make anew: share its "
            "dataset, and make the loader of that"
        )
    sampler = getattr(loader.batch_sampler, "sampler", loader.sampler)
    if isinstance(sampler, DistributedSampler):
        raise ConfigError(
            "the loader has a DistributedSampler, so it reads a share already: give it to fit() as it is, or a loader "
            "without that sampler to shard()"
        )
    as_before = {
        "num_workers": loader.num_workers,
        "collate_fn": loader.collate_fn,
        "pin_memory": loader.pin_memory,
        "timeout": loader.timeout,
        "worker_init_fn": loader.worker_init_fn,
        "multiprocessing_context": loader.multiprocessing_context,
        "generator": loader.generator,
        "prefetch_factor": loader.prefetch_factor,
        "persistent_workers": loader.persistent_workers,
    }
    if isinstance(loader.dataset, IterableDataset):
        dealt_out = {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
        return DataLoader(_SharedStream(loader.dataset, share), **dealt_out, **as_before)
    if loader.batch_sampler is None or type(loader.batch_sampler) is BatchSampler:
        own: dict[str, Any] = {"sampler": _SharedSampler(_seeded(sampler), share, "examples")}
        own |= {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
        return DataLoader(loader.dataset, **own, **as_before)
    batches = _SharedSampler(_seeded(loader.batch_sampler), share, "batches")
    return DataLoader(loader.dataset, batch_sampler=batches, **as_before)


def _seeded(sampler: Any) -> Any:
    """Return a sampler that draws the same on all workers: one of PyTorch's that has no generator is given one."""
    seeded = sampler
    if getattr(sampler, "generator", sampler) is None:
        seeded = copy.copy(sampler)
        seeded.generator = torch.Generator().manual_seed(_SEED)
    inner = getattr(sampler, "sampler", None)
    if inner is not None and (inner_seeded := _seeded(inner)) is not inner:
        seeded = copy.copy(seeded)
        seeded.sampler = inner_seeded
    return seeded


class _SharedSampler:
    """This worker's of the indices, or of the batches of indices, that a sampler gives."""

    def __init__(self, sampler: Any, share: Share, what: str) -> None:
        self._sampler, self._share, self._what = sampler, share, what
        if hasattr(sampler, "__len__"):
            len(self)

    def __iter__(self) -> Iterator[Any]:
        return self._share.of_each_round(self._sampler)

    def __len__(self) -> int:
        return self._share.size(len(self._sampler), f"{self._what} in the DataLoader")


class _SharedStream(IterableDataset):  # type: ignore[misc]
    """This worker's examples of a dataset that is read in order."""

    def __init__(self, dataset: Iterable[Any], share: Share) -> None:
        self._dataset, self._share = dataset, share

    def __iter__(self) -> Iterator[Any]:
        return self._share.of_each_round(self._dataset)
