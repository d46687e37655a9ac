"""What was probably meant by a name that is none of those known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

__all__ = ["meant_by", "suggest"]

_MEANT: Mapping[
    str, tuple[str, ...]
] = {  # other systems' names, and DistNet 0.1's, that look too different to be found
    **dict.fromkeys(("lr", "rate"), ("learning_rate",)),
    **dict.fromkeys(("num_workers", "nproc", "nproc_per_node", "np"), ("workers",)),
    **dict.fromkeys(("average", "ema"), ("ema_decay",)),
    "deadline": ("timeout", "round_timeout"),
    "round_deadline": ("round_timeout",),
    "pictures": ("images",),
    **dict.fromkeys(("mean", "avg"), ("average",)),
    "prod": ("product",),
}


def suggest(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean …?"`` or, where nothing is near, what there is."""
    names = list(known)
    begun = [longer for longer in names if name and longer.startswith(name)]
    near = meant_by(name, names) or begun or difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {_either(near)}?" if near else f"; expected one of {', '.join(names)}"


def meant_by(name: str, known: Iterable[str]) -> list[str]:
    """Return those of the known settings that another system, or an earlier version, calls by this name."""
    names = set(known)
    return [meant for meant in _MEANT.get(name, ()) if meant in names]


def _either(names: list[str]) -> str:
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}" if others else last
