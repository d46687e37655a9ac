"""Without Keras, with one that is too old, or with a backend that has no way to a server: one clear error."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


def said_by(script: str, **variables: str) -> str:
    """Return what a script that fails writes to its stderr."""
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **variables}
    ended = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=100, check=False
    )
    assert ended.returncode == 1, ended.stderr
    return ended.stderr


def test_a_missing_keras_is_said_with_what_installs_it() -> None:
    said = said_by("import sys; sys.modules['keras'] = None; import distnet.keras")
    assert "ModuleNotFoundError" in said
    assert "pip install" in said


@pytest.mark.parametrize("version", ["2.15.0", "3.4.1"])
def test_a_keras_that_is_too_old_is_said_with_both_versions(tmp_path: Path, version: str) -> None:
    (tmp_path / "keras.py").write_text(f"__version__ = {version!r}\n")
    said = said_by("import distnet.keras", PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert f"needs Keras 3.5 or newer, and this is Keras {version}" in said


@pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="Keras is missing")
@pytest.mark.slow
def test_a_backend_that_has_no_way_to_a_server_is_said_with_those_that_have() -> None:
    script = """
import keras, distnet, distnet.keras
model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
model.compile("sgd", "mse")
with distnet.ParameterServer(semantics="sync", workers=1) as server:
    import os
    os.environ.update(DISTNET_ADDRESS=server.local_address, DISTNET_RANK="0", DISTNET_WORKERS="1")
    distnet.keras.distribute(model)
"""
    said = said_by(script, KERAS_BACKEND="numpy")
    assert "ConfigError" in said
    assert "the backend 'numpy'; expected tensorflow, torch or jax" in said
