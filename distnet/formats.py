"""Wire formats by name: how gradients and parameters travel over TCP.

A server is given them as ``push_format`` and ``pull_format``; the page on wire formats has their bytes.
"""

from __future__ import annotations

from typing import Any, Final

from distnet.errors import ConfigError

__all__ = ["FORMATS", "format_spec"]

FORMATS: Final = {
    "float32": "4 bytes a value, as it is",
    "bfloat16": "2 bytes: float32's range, 8 bits of precision",
    "float16": "2 bytes: 11 bits of precision, at most 65,504",
    "int8": "1 byte, and a scale for each 256 values",
    "topk": "only the largest values of a gradient; 'topk:0.01' keeps one in a hundred",
}


def format_spec(text: str, *, what: str) -> dict[str, Any]:
    """Return a format, given as a text, in the form that the native module takes.

    Args:
        text: a name of :data:`FORMATS`; ``topk`` may have the share that it keeps behind a colon, from 1e-6 to 1:
            ``"topk:0.05"``.
        what: what it is for, ``"push"`` or ``"pull"``.

    Returns:
        A dict of ``"name"`` and ``"settings"``.

    Raises:
        ConfigError: there is no such format, or it cannot carry parameters, as ``topk`` cannot.

    Example:
        >>> distnet.formats.format_spec("topk:0.05", what="push")
        {'name': 'topk', 'settings': {'ratio': 0.05}}
    """
    name, colon, setting = str(text).partition(":")
    if name not in FORMATS:
        raise ConfigError(f"{what}_format is {text!r}; expected one of {', '.join(FORMATS)}, or 'topk:ratio'")
    if name == "topk" and what == "pull":
        raise ConfigError("pull_format cannot be 'topk': parameters that are left out would be zeros, not old values")
    if not colon:
        return {"name": name, "settings": {}}
    try:
        ratio = float(setting)
    except ValueError:
        ratio = -1.0
    if name != "topk" or not 1e-6 <= ratio <= 1:
        raise ConfigError(f"{what}_format is {text!r}; only topk takes a setting, a ratio from 1e-6 to 1")
    return {"name": name, "settings": {"ratio": ratio}}
