"""A loop with accelerate whose ranks never wait for each other."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import set_seed
from rings import BATCH, network, points_of_rings, tell
from torch import nn
from torch.utils.data import DataLoader

import distnet.torch

dist.init_process_group(sys.argv[1])
accelerator = Accelerator(cpu=True)
set_seed(1)
model = network()
inner = torch.optim.Adam(model.parameters(), lr=0.01)
server_steps = distnet.torch.DistributedOptimizer(inner, model, semantics="async-lockfree")
loader = DataLoader(points_of_rings(), batch_size=BATCH, shuffle=True)
model, optimizer, loader = accelerator.prepare(model, server_steps, loader)
model.register_comm_hook(None, distnet.torch.leave_unreduced)
for _ in range(int(sys.argv[2])):
    for points, labels in loader:
        optimizer.zero_grad()
        accelerator.backward(nn.functional.cross_entropy(model(points), labels))
        accelerator.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
server_steps.finish()
tell(accelerator.process_index, accelerator.unwrap_model(model), server_steps.client)
accelerator.end_training()
