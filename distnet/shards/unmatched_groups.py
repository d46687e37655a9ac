"""Warns of groups of tensors that no tensor of the model is in."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Iterable, Sequence

__all__ = ["UnmatchedGroups"]

_LOG = logging.getLogger("distnet")


class UnmatchedGroups:
    """The patterns of a server's groups, until the model is known.

    Args:
        patterns: with shell wildcards.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._unchecked = tuple(patterns)

    @property
    def unchecked(self) -> bool:
        """Whether there are patterns that were not compared with the model yet."""
        return bool(self._unchecked)

    def check(self, names: Sequence[str]) -> None:
        """Warn of the patterns that match none of the model's tensors, once."""
        unchecked, self._unchecked = self._unchecked, ()
        for pattern in unchecked:
            escaped = "\\" in pattern  # which Python's matching does not know
            if not escaped and not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                shown = ", ".join(map(repr, names[:3])) + (", …" if len(names) > 3 else "")
                _LOG.warning("the group %r matches no tensor of the model (%s), and has no effect", pattern, shown)
