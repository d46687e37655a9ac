"""Patterns of names, as few as will do, for the tensors of a group."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Sequence

__all__ = ["patterns_of"]


def patterns_of(names: Sequence[str], others: Sequence[str], *, separator: str = ".") -> list[str]:
    """Return shell patterns that match all of these names and none of the others.

    A pattern is what the names have in common up to a point in them, such as ``"head.*"``, or from one on, such as
    ``"*.bias"``; where neither tells them from the others, it is the name itself.

    Args:
        names: of the group's tensors.
        others: of all other tensors.
        separator: what stands between the parts of a name.

    Returns:
        The patterns, those that match most first.
    """
    patterns: list[str] = []
    left = list(names)
    while left:
        candidates = {candidate for candidate in _candidates(left[0], separator) if not _matching(candidate, others)}
        best = max(sorted(candidates), key=lambda candidate: len(_matching(candidate, left)), default=_escaped(left[0]))
        patterns.append(best if len(_matching(best, left)) > 1 else _escaped(left[0]))
        left = left[1:] if patterns[-1] == _escaped(left[0]) else [n for n in left if not fnmatch.fnmatchcase(n, best)]
    return patterns


def _candidates(name: str, separator: str) -> Iterator[str]:
    parts = name.split(separator)
    for count in range(1, len(parts)):
        yield _escaped(separator.join(parts[:count]) + separator) + "*"
        yield "*" + _escaped(separator + separator.join(parts[count:]))


def _matching(pattern: str, names: Sequence[str]) -> list[str]:
    matches = re.compile(fnmatch.translate(pattern)).match
    return [name for name in names if matches(name)]


def _escaped(name: str) -> str:
    """Return the pattern that matches this name alone."""
    return re.sub(r"([*?\[])", r"[\1]", name).replace("\\", "?")
