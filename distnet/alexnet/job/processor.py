"""What this machine's processor can do, as far as a training should know before it starts."""

from __future__ import annotations

from pathlib import Path

__all__ = ["SLOW_BFLOAT16", "multiplies_bfloat16"]

SLOW_BFLOAT16 = (
    "this processor has no instructions for bfloat16, whose convolutions take about ten times as long as float32's "
    "here; unless a GPU trains, give --precision float32"
)
_INSTRUCTIONS = frozenset({"avx512_bf16", "amx_bf16", "avx_ne_convert", "bf16"})  # x86's, and Arm's


def multiplies_bfloat16(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Return whether the processor has instructions for bfloat16; None where the system does not say."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        name, _, words = line.partition(":")
        if name.strip().lower() in ("flags", "features"):
            return not _INSTRUCTIONS.isdisjoint(words.split())
    return None
