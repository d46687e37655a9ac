"""What to say about a module that is missing: which extra of the package brings it."""

from __future__ import annotations

__all__ = ["missing_module_message"]

_EXTRA_OF = {
    "click": "train",
    "matplotlib": "train",
    "rich": "train",
    "safetensors": "train",
    "tensorboardX": "train",
    "tomli": "train",
    "tensorflow": "tensorflow",
    "keras": "keras",
    "torch": "torch",
    "jax": "jax",
    "jaxlib": "jax",
}


def missing_module_message(error: ModuleNotFoundError) -> str | None:
    """Return one line that says what to install; None for a module that no extra brings."""
    module = (error.name or "").partition(".")[0]
    if module not in _EXTRA_OF:
        return None
    return f"this needs the package {module}; install it with: pip install 'distnet-ps[{_EXTRA_OF[module]}]'"
