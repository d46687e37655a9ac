"""What frameworks write at every start and what harms nobody: left out of workers' output and of their last words."""

from __future__ import annotations

import re

__all__ = ["is_chatter"]

_CHATTER = re.compile(
    r"""
      WARNING:\ All\ log\ messages\ before\ absl::InitializeLog\(\)
    | [IW]0000\ 00:00:            # absl's, before its own start
    | [IWE]\d{4}\ .*(
          Unable\ to\ register\ cu\w+\ factory              # each CUDA library that is linked in twice
        | computation\ placer\ already\ registered
        | failed\ call\ to\ cuInit                          # a GPU build on a machine without a GPU
      )
    | (\d{4}-\d\d-\d\d\ [\d:.]+:\ )?[IWE]\ ?.*(
          Unable\ to\ register\ cu\w+\ factory
        | Could\ not\ find\ (cuda|TensorRT)
        | failed\ call\ to\ cuInit
        | oneDNN\ custom\ operations\ are\ on
        | This\ TensorFlow\ binary\ is\ optimized
      )
    | To\ enable\ the\ following\ instructions:
    """,
    re.VERBOSE,
)


def is_chatter(line: str) -> bool:
    """Whether a line is of that kind."""
    return _CHATTER.match(line) is not None
