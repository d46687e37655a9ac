"""What a training does about processors without the instructions that TensorFlow hopes for."""

from __future__ import annotations

from pathlib import Path

import pytest

from distnet._private import launcher_env
from distnet.alexnet.job.processor import multiplies_bfloat16


def test_a_worker_takes_onednns_convolutions_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TF_ENABLE_ONEDNN_OPTS", raising=False)
    assert launcher_env.worker_environment(threads=1, scratch=tmp_path)["TF_ENABLE_ONEDNN_OPTS"] == "1"
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")
    assert launcher_env.worker_environment(threads=1, scratch=tmp_path)["TF_ENABLE_ONEDNN_OPTS"] == "0"


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor: 0\nflags\t\t: fpu avx2 avx512_bf16 avx512f\n", True),
        ("processor: 0\nflags\t\t: fpu avx avx2\n", False),
        ("processor: 0\nFeatures\t: fp asimd bf16\n", True),
        ("processor: 0\nhart: 0\n", None),
    ],
)
def test_a_processor_tells_whether_it_multiplies_bfloat16(tmp_path: Path, cpuinfo: str, expected: bool | None) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert multiplies_bfloat16(tmp_path / "cpuinfo") is expected
    assert multiplies_bfloat16(tmp_path / "none") is None
