"""What of the process group takes long to test: compiled models, checkpoints, four ranks, scripts under torchrun."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from launchers import LAUNCHERS, require, run_job, succeeded
from torch_ranks import Ranks

TRANSPORTS = ["shm", "tcp"]
over_transports = pytest.mark.parametrize("transport", TRANSPORTS)
SLOW_S = 240.0  # the compiler's time, on few processors

# Uses what a user's script uses: the environment of the launcher, groups, objects, and no goodbye.
SCRIPT = """
import torch
import torch.distributed as dist

dist.init_process_group("distnet")
rank, size = dist.get_rank(), dist.get_world_size()
assert dist.get_backend() == "distnet"
for turn in range(2):
    total = torch.full((3,), float(rank + 1))
    dist.all_reduce(total)
    assert total.tolist() == [3.0] * 3, total
    group = dist.new_group([0, 1])
    everyone = [None] * size
    dist.all_gather_object(everyone, rank, group=group)
    assert everyone == [0, 1]
    if turn == 0:
        dist.destroy_process_group()
        dist.init_process_group("distnet")
print(f"rank {rank} is done, over {dist.group.WORLD.transport}")
"""


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    """Four ranks that the tests use one after another."""
    require()
    ranks = Ranks(4, tmp_path_factory.mktemp("ranks"))
    yield ranks
    ranks.end()


@pytest.fixture
def ranks(pool: Ranks) -> Iterator[Ranks]:
    """Four ranks."""
    yield pool
    pool.mend()


@pytest.mark.timeout(600)
@over_transports
@pytest.mark.parametrize("case", ["ddp_compiled", "functional_in_graph"])
def test_compiled_code_with_collectives(ranks: Ranks, case: str, transport: str) -> None:
    ranks.run(f"training.{case}", transport, size=2, within_s=SLOW_S)


@pytest.mark.timeout(600)
@over_transports
@pytest.mark.parametrize("case", ["checkpoint", "fsdp2", "ddp_hooks", "ddp_join", "ddp_unused", "zero"])
@pytest.mark.parametrize("size", [2, 3, 4])
def test_training_equals_one_process_with_any_number_of_ranks(
    ranks: Ranks, case: str, size: int, transport: str
) -> None:
    ranks.run(f"training.{case}", transport, size=size, within_s=SLOW_S)


@pytest.mark.timeout(600)
@over_transports
@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("case", ["reductions", "objects", "mesh", "coalesced", "works", "awkward_tensors"])
def test_collectives_with_one_rank_and_with_four(ranks: Ranks, case: str, size: int, transport: str) -> None:
    if size == 1 and transport == "tcp":
        pytest.skip("one rank moves nothing")
    ranks.run(f"collectives.{case}", transport, size=size, within_s=SLOW_S)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_script_initialises_twice_under_a_launcher_and_may_end_without_a_goodbye(
    launcher: str, tmp_path: Path
) -> None:
    require()
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    job = succeeded(run_job(launcher, script, folder=tmp_path))
    for rank in range(2):
        assert f"rank {rank} is done, over shm" in job.text
