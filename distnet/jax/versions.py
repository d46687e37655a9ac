"""Which JAX is new enough."""

from __future__ import annotations

import re

from distnet.errors import ConfigError

__all__ = ["OLDEST_JAX", "check_version"]

OLDEST_JAX = (0, 4, 38)


def check_version(version: str) -> None:
    """Raise ConfigError where a JAX of this version, such as ``"0.10.2"``, is too old."""
    numbers = re.match(r"(\d+)\.(\d+)\.(\d+)", version)
    if numbers is not None and tuple(map(int, numbers.groups())) < OLDEST_JAX:
        oldest = ".".join(map(str, OLDEST_JAX))
        raise ConfigError(f"this is JAX {version}; distnet.jax needs {oldest} or later: pip install --upgrade jax")
