"""Hugging Face's Trainer: DistNet's process group is made first, and transformers takes what is there.

    torchrun --nproc_per_node 2 examples/torch/trainer.py
    distnet run -n 2 --threads-per-worker 1 examples/torch/trainer.py

A tiny GPT-2 with random weights learns to count: each text goes up from its first number in steps of its own. Nothing
is downloaded. The trainer prints the loss, which falls. With `--backend gloo` the same script runs on PyTorch's own
backend and prints the same losses.
"""

import argparse
import tempfile

import torch
import torch.distributed as dist
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments, set_seed

NUMBERS, LENGTH, TEXTS, BATCH = 32, 16, 2_048, 16


def texts():
    """Return texts of numbers that count up, each with a start and a step of its own."""
    random = torch.Generator().manual_seed(1)
    starts, steps = (
        torch.randint(NUMBERS, (TEXTS, 1), generator=random),
        torch.randint(1, 4, (TEXTS, 1), generator=random),
    )
    return [{"input_ids": ids, "labels": ids} for ids in (starts + steps * torch.arange(LENGTH)) % NUMBERS]


def main(backend, steps):
    """Train as one rank."""
    dist.init_process_group(backend)
    set_seed(1)
    size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": LENGTH, "vocab_size": NUMBERS}
    config = GPT2Config(**size, bos_token_id=0, eos_token_id=0)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            use_cpu=True,
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=0.005,
            logging_steps=10,
            ddp_find_unused_parameters=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(model=GPT2LMHeadModel(config), args=arguments, train_dataset=texts())
        trainer.train()
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="distnet")
    parser.add_argument("--steps", type=int, default=50)
    main(**vars(parser.parse_args()))
