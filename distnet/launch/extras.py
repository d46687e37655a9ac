"""What to say about a module that is missing, and how a child tells its launcher about an error."""

from __future__ import annotations

from typing import Any

__all__ = ["error_record", "missing_module_message"]

_EXTRA_OF = {
    "click": "train",
    "matplotlib": "train",
    "rich": "train",
    "safetensors": "train",
    "tensorboardX": "train",
    "tomli": "train",
    "tensorflow": "tensorflow",
    "keras": "tensorflow",
}


def missing_module_message(error: ModuleNotFoundError) -> str | None:
    """Return one line that says what to install; None for a module that no extra brings."""
    module = (error.name or "").partition(".")[0]
    if module not in _EXTRA_OF:
        return None
    return f"this needs the package {module}; install it with: pip install 'distnet-ps[{_EXTRA_OF[module]}]'"


def error_record(error: Exception) -> dict[str, Any]:
    """Return an error as the record that a child says before it ends; a missing module counts as configuration."""
    if isinstance(error, ModuleNotFoundError):
        message = missing_module_message(error)
        if message is None:
            raise error
        return {"kind": "error", "error": "ConfigError", "message": message}
    return {"kind": "error", "error": type(error).__name__, "message": str(error)}
