"""Keeps ``torch.compile`` out of methods that PyTorch's C++ code calls while it traces what is around the call."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import torch

__all__ = ["untraced"]

Method = TypeVar("Method", bound=Callable[..., Any])


def untraced(method: Method) -> Method:
    """Return the method, which the compiler does not look into.

    ``torch.compiler.disable`` does that, and takes a second to import the compiler. So it is asked only once something
    else has imported that.
    """

    @functools.cache
    def disabled() -> Callable[..., Any]:
        kept_out: Callable[..., Any] = torch.compiler.disable(method)
        return kept_out

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return method(*args, **kwargs)
        return disabled()(*args, **kwargs)

    return call  # type: ignore[return-value]
