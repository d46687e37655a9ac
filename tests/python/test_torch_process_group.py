"""DistNet as a backend of torch.distributed: every collective, DDP, FSDP2 and ZeRO, and what goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from worker_processes import TRANSPORTS, WorkerError

torch = pytest.importorskip("torch")

from torch_ranks import Ranks, mortal_ranks, rank_pool, ranks  # noqa: E402

import distnet  # noqa: E402
import distnet.torch  # noqa: E402
from distnet.torch.registration import check_torch, create  # noqa: E402

__all__ = ["mortal_ranks", "rank_pool", "ranks"]  # fixtures

ROOT = Path(__file__).parents[2]
over_transports = pytest.mark.parametrize("transport", TRANSPORTS)

COLLECTIVES = [
    "reductions",
    "moves",
    "moves_without_gloo",
    "awkward_tensors",
    "point_to_point",
    "objects",
    "subgroups",
    "coalesced",
    "works",
]
TRAINING = ["ddp_no_sync", "ddp_unused", "ddp_join", "ddp_buffers", "zero"]


# ---- what works ----------------------------------------------------------------------------------------------------
@over_transports
@pytest.mark.parametrize("case", COLLECTIVES)
def test_collectives_give_what_gloo_gives(ranks: Ranks, case: str, transport: str) -> None:
    ranks.run(f"collectives.{case}", transport)


@over_transports
@pytest.mark.parametrize("case", TRAINING)
def test_training_equals_one_process_on_the_whole_batch(ranks: Ranks, case: str, transport: str) -> None:
    ranks.run(f"training.{case}", transport, size=2)


@over_transports
@pytest.mark.parametrize(
    "settings", [{}, {"gradient_as_bucket_view": True}, {"static_graph": True}], ids=["plain", "views", "static"]
)
def test_ddp_equals_one_process_on_the_whole_batch(ranks: Ranks, settings: dict[str, Any], transport: str) -> None:
    ranks.run("training.ddp", transport, size=2, settings=settings)


def test_hooks_of_ddp_that_communicate_in_callbacks(ranks: Ranks) -> None:
    ranks.run("training.ddp_hooks", "shm", size=2)


def test_fully_sharded_parameters_equal_one_process(ranks: Ranks) -> None:
    ranks.run("training.fsdp2", "shm", size=2)


def test_meshes_and_functional_collectives(ranks: Ranks) -> None:
    ranks.run("collectives.mesh", "shm", size=2)


def test_names_are_those_that_pytorch_asks_for(ranks: Ranks) -> None:
    assert ranks.run("collectives.names", "shm") == [["distnet", "0", "distnet", "3"]] * 3


@over_transports
def test_a_rank_may_leave_before_others_have_heard_that_the_group_is_there(ranks: Ranks, transport: str) -> None:
    for _ in range(20):
        ranks.run("collectives.names", transport)


def test_a_group_forms_again_in_the_same_store(ranks: Ranks, tmp_path: Path) -> None:
    for _ in range(3):
        ranks.run("collectives.objects", "shm", size=2, store=str(tmp_path / "store"))


# ---- what goes wrong -----------------------------------------------------------------------------------------------
def test_what_cannot_be_reduced_is_refused_before_anything_is_sent(ranks: Ranks) -> None:
    for seen in ranks.run("collectives.refused_reductions", "shm"):
        assert [line.partition(":")[0] for line in seen] == ["ConfigError"] * 5
        assert "ReduceOp.BAND combines the bits of integers; the tensor is torch.float32" in seen[0]
        assert "float8" in seen[2]
        assert "use .to_dense()" in seen[4]


@over_transports
def test_a_mismatch_is_the_same_error_on_all_ranks(ranks: Ranks, transport: str) -> None:
    first, *others = ranks.run("failures.mismatches", transport)
    assert others == [first, first]
    assert [name for name, _ in first] == ["CollectiveMismatch"] * len(first)
    assert "rank 1" in first[0][1]


@pytest.mark.parametrize(("transport", "who"), [("shm", 2), ("tcp", 2), ("shm", 0)])
def test_a_rank_that_dies_is_named_by_all_others(mortal_ranks: Ranks, transport: str, who: int) -> None:
    workers = mortal_ranks.begin("failures.dies", transport, who=who)
    with pytest.raises(EOFError):
        workers[who].result()
    for rank, worker in enumerate(workers):
        if rank != who:
            for name, text in worker.result():
                assert name == "PeerClosed"
                assert f"rank {who}" in text


@over_transports
@pytest.mark.parametrize("hook", [False, True], ids=["no hook", "hook"])
def test_a_rank_that_leaves_ddp_is_named_by_the_others_step(ranks: Ranks, transport: str, hook: bool) -> None:
    left, (name, text) = ranks.run("failures.leaves_ddp", transport, size=2, who=0, hook=hook)
    assert left == []
    assert name in ("PeerClosed", "RuntimeError")  # C++ code of PyTorch raises it anew
    assert "rank 0" in text
    assert "PeerClosed" in f"{name}: {text}"


@over_transports
def test_a_rank_that_does_not_come_is_named(ranks: Ranks, transport: str) -> None:
    *others, late = ranks.run("failures.absent", transport, late=2)
    assert {name for name, _ in [*others, late]} <= {"DeadlineExceeded", "PeerClosed"}
    assert any(name == "DeadlineExceeded" and "rank 2" in text for name, text in others)


def test_ranks_that_are_missing_at_the_start_are_named(ranks: Ranks) -> None:
    (worker,) = ranks.begin("collectives.names", "shm", size=1, timeout_s=0.5, of=3)
    with pytest.raises(WorkerError, match=r"DeadlineExceeded: .*waited .* for rank 1, 2 of its 3"):
        worker.result()


def test_a_pytorch_that_is_too_old_is_refused_by_name() -> None:
    with pytest.raises(distnet.ConfigError, match=r"this is PyTorch 2\.5\.1; .* needs 2\.6 or later: pip install"):
        check_torch("2.5.1")
    check_torch("2.6.0+cpu")
    check_torch("3.0.0.dev2027")


def test_options_of_another_backend_are_refused() -> None:
    with pytest.raises(distnet.ConfigError, match="expected one of auto, shm, tcp"):
        distnet.torch.ProcessGroupOptions(transport="ib")
    with pytest.raises(distnet.ConfigError, match=r"takes distnet\.torch\.ProcessGroupOptions"):
        create(SimpleNamespace(), {"transport": "shm"})


# ---- known without an import ---------------------------------------------------------------------------------------
def _python(source: str, *paths: Path) -> str:
    """Run a script with these folders before all others that Python looks in, and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        cwd=paths[0],  # which Python looks in first
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """Return a folder with the entry point of pyproject.toml, as an installation has it."""
    lines = (ROOT / "pyproject.toml").read_text().partition('[project.entry-points."torch.backends"]\n')[2]
    folder = tmp_path / "distnet_here-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: distnet-here\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[torch.backends]\n{lines.splitlines()[0].replace(chr(34), '')}\n")
    return tmp_path


def test_the_backend_is_known_without_an_import_and_costs_import_torch_nothing(installed: Path) -> None:
    seen = _python(
        """
        import sys
        import torch
        import torch.distributed as dist
        print("distnet" in dist.Backend.backend_list, "distnet" in sys.modules)
        dist.init_process_group("distnet", store=dist.HashStore(), rank=0, world_size=1)
        tensor = torch.ones(3)
        dist.all_reduce(tensor)
        dist.destroy_process_group()
        print(tensor.tolist())
        """,
        installed,
        ROOT,
    )
    assert seen.splitlines() == ["True False", "[1.0, 1.0, 1.0]"]


def test_import_torch_goes_on_where_distnet_is_broken(installed: Path) -> None:
    seen = _python(
        """
        import sys
        sys.modules["distnet"] = None
        import torch
        import torch.distributed as dist
        try:
            dist.init_process_group("distnet", store=dist.HashStore(), rank=0, world_size=1)
        except ImportError as error:
            print(type(error).__name__)
        """,
        installed,
        ROOT,
    )
    assert seen == "ModuleNotFoundError"


def test_a_missing_torch_is_said_in_one_line() -> None:
    seen = _python(
        """
        import sys
        sys.modules["torch"] = None
        try:
            import distnet.torch
        except ModuleNotFoundError as error:
            print(error)
        """,
        ROOT,
    )
    assert seen == "this needs the package torch; install it with: pip install 'distnet-ps[torch]'"
