"""Shares of a Keras ``PyDataset``."""

from __future__ import annotations

from typing import Any

import keras

from distnet.keras.sharing.share import Share

__all__ = ["SharedPyDataset"]


class SharedPyDataset(keras.utils.PyDataset):  # type: ignore[misc]
    """This worker's batches of a ``PyDataset``; the dataset makes no others.

    What an epoch's begin and end do to the dataset, such as a shuffle, is done on every worker, and must come out
    alike on all.

    Args:
        dataset: whose batches are dealt out.
        share: this worker's.

    Raises:
        ConfigError: there are fewer batches than workers.

    Thread safety: that of the dataset.
    """

    def __init__(self, dataset: Any, share: Share) -> None:
        super().__init__(
            workers=dataset.workers,
            use_multiprocessing=dataset.use_multiprocessing,
            max_queue_size=dataset.max_queue_size,
        )
        self._dataset, self._share = dataset, share
        _ = self.num_batches

    @property
    def num_batches(self) -> int | None:
        """How many batches are this worker's; None where there is no end."""
        count = self._dataset.num_batches
        return None if count is None else self._share.size(count, "batches in the PyDataset")

    def __getitem__(self, index: int) -> Any:
        """Return this worker's batch of a number."""
        return self._dataset[index * self._share.workers + self._share.rank]

    def on_epoch_begin(self) -> None:
        """Tell the dataset that an epoch begins."""
        self._dataset.on_epoch_begin()

    def on_epoch_end(self) -> None:
        """Tell the dataset that an epoch has ended."""
        self._dataset.on_epoch_end()
