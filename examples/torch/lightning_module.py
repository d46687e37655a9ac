"""A Lightning module: DistNet is the process group of Lightning's own DDP strategy.

    torchrun --nproc_per_node 2 examples/torch/lightning_module.py
    distnet run -n 2 --threads-per-worker 1 examples/torch/lightning_module.py

A network learns whether a point of the plane lies inside a ring, on it or outside. Lightning hands out the examples and
averages what it logs: each rank prints the same losses, one for each epoch. They are those of `--backend gloo`.
"""

import argparse

import lightning
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

POINTS, BATCH = 4_096, 64
SILENT = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


def rings():
    """Return points of the plane, and whether each lies inside the ring (0), on it (1) or outside (2)."""
    points = 4 * torch.rand(POINTS, 2, generator=torch.Generator().manual_seed(1)) - 2
    distance = points.norm(dim=1)
    return TensorDataset(points, (distance > 0.8).long() + (distance > 1.5).long())


class Rings(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))

    def training_step(self, batch):
        loss = nn.functional.cross_entropy(self.layers(batch[0]), batch[1])
        self.log("loss", loss, on_step=False, on_epoch=True, sync_dist=True)
        return loss

    def on_train_epoch_end(self):
        loss = self.trainer.callback_metrics["loss"]
        print(f"rank {self.global_rank}: epoch {self.current_epoch + 1}: loss {loss:.5f}", flush=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=0.005)


def main(backend, epochs):
    """Train as one rank."""
    lightning.seed_everything(1)
    strategy = DDPStrategy(process_group_backend=backend)
    trainer = lightning.Trainer(accelerator="cpu", devices=2, strategy=strategy, max_epochs=epochs, **SILENT)
    trainer.fit(Rings(), DataLoader(rings(), batch_size=BATCH, shuffle=True))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="distnet")
    parser.add_argument("--epochs", type=int, default=5)
    main(**vars(parser.parse_args()))
