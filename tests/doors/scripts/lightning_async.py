"""A Lightning module whose ranks never wait for each other."""

from __future__ import annotations

import sys
from typing import Any

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from rings import BATCH, network, points_of_rings, tell
from torch import nn
from torch.utils.data import DataLoader

import distnet.torch


class Rings(lightning.LightningModule):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def training_step(self, batch: Any) -> Any:
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.01)
        return distnet.torch.DistributedOptimizer(optimizer, self, semantics="async-lockfree")

    def on_train_start(self) -> None:
        self.trainer.model.register_comm_hook(None, distnet.torch.leave_unreduced)

    def on_train_end(self) -> None:
        optimizer = self.optimizers().optimizer
        optimizer.finish()
        tell(self.global_rank, self.layers, optimizer.client)


lightning.seed_everything(1)
trainer = lightning.Trainer(
    accelerator="cpu",
    devices=2,
    strategy=DDPStrategy(process_group_backend=sys.argv[1]),
    max_epochs=int(sys.argv[2]),
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(Rings(), DataLoader(points_of_rings(), batch_size=BATCH, shuffle=True))
