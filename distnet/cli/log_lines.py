"""What the library logs, as lines of a command: warnings and errors of the logger ``distnet``."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

__all__ = ["log_lines"]


@contextlib.contextmanager
def log_lines() -> Iterator[None]:
    """Within the block, show what is logged on standard error as ``distnet: …``, unless somebody configured logging."""
    logger = logging.getLogger("distnet")
    if logger.hasHandlers():
        yield
        return
    handler = logging.StreamHandler()
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter("distnet: %(message)s"))
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
