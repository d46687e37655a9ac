"""What ranks of torch.distributed do in tests: each function runs on all ranks, and checks its own results."""
