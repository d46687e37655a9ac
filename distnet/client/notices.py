"""Warnings of what the server noticed."""

from __future__ import annotations

import warnings

from distnet import _native
from distnet.errors import DistNetWarning

__all__ = ["warn_of_notices"]


def warn_of_notices(native: _native.Client, depth: int = 1) -> None:
    """Warn of what the server noticed, in the name of the code that is `depth` calls above the one that calls this."""
    for notice in native.notices():
        warnings.warn(notice, DistNetWarning, stacklevel=2 + depth)
