"""Hugging Face's Trainer whose ranks never wait for each other within an epoch."""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import torch
import torch.distributed as dist
from rings import BATCH, POINTS, network, points_of_rings, tell
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

import distnet.torch


class Rings(nn.Module):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.layers = network()

    def forward(self, points: Any, labels: Any) -> dict[str, Any]:
        scores = self.layers(points)
        return {"loss": nn.functional.cross_entropy(scores, labels), "logits": scores}


class LeaveUnreduced(TrainerCallback):  # type: ignore[misc]
    def on_train_begin(self, *_: Any, **__: Any) -> None:
        trainer.model_wrapped.register_comm_hook(None, distnet.torch.leave_unreduced)


dist.init_process_group(sys.argv[1])
set_seed(1)
model = Rings()
adam = torch.optim.Adam(model.parameters(), lr=0.01)
optimizer = distnet.torch.DistributedOptimizer(adam, model, semantics="async-lockfree")
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        output_dir=folder,
        use_cpu=True,
        num_train_epochs=int(sys.argv[2]),
        per_device_train_batch_size=BATCH,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
        lr_scheduler_type="constant",
    )
    examples = [{"points": points, "labels": label} for points, label in points_of_rings()]
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=examples,
        optimizers=(optimizer, None),
        callbacks=[LeaveUnreduced()],
    )
    trainer.train()
assert trainer.state.global_step == POINTS // BATCH // 2 * int(sys.argv[2])
optimizer.finish()
tell(dist.get_rank(), model.layers, optimizer.client)
dist.destroy_process_group()
