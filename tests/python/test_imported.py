"""What a script imports, as `distnet run` reads it from the source to name the remedy where no copy connects."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distnet.launch.imported import frameworks_of, names_any


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import keras", {"keras"}),
        ("import keras.layers as layers", {"keras"}),
        ("def f():\n    from keras import ops", {"keras"}),
        ("import tensorflow.keras as k", {"keras", "tensorflow"}),
        ("from tensorflow import keras", {"keras", "tensorflow"}),
        ("import tensorflow as tf\nmodel = tf.keras.Sequential()", {"keras", "tensorflow"}),
        ("import tensorflow as tf\ntf.constant(1)", {"tensorflow"}),
        ("import os, torch.nn, jax", {"torch", "jax"}),
        ("text = 'import keras'  # import torch", set()),
        ("import keras_tuner", set()),
        ("import keras\nthis is no Python", set()),
        ("import keras\n" + "(" * 100_000, set()),
        ("\0", set()),
    ],
)
def test_frameworks_are_found_in_the_source(source: str, expected: set[str], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(source)
    assert frameworks_of(["script.py", "--epochs", "3"], tmp_path) == expected


def test_modules_beside_the_script_are_read_too_and_circles_end(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("from parts import model\nimport other\nfrom . import more")
    (tmp_path / "other.py").write_text("import script, parts.model")
    package = tmp_path / "parts"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "model.py").write_text("import keras")
    assert frameworks_of(["script.py"], tmp_path) == {"keras"}
    assert frameworks_of(["-m", "parts.model"], tmp_path) == {"keras"}
    (package / "__main__.py").write_text("import torch")
    assert frameworks_of(["-m", "parts"], tmp_path) == {"torch"}


def test_what_cannot_be_read_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "script.py").mkdir()
    for script in (["script.py"], ["absent.py"], ["-m", "absent"], ["-m", "../odd"], ["program", "keras"]):
        assert frameworks_of(script, tmp_path) == set()


def test_long_chains_of_modules_and_long_files_have_an_end(tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / f"part{number}.py").write_text(f"import part{number + 1}")
    (tmp_path / "part40.py").write_text("import keras")
    assert frameworks_of(["part0.py"], tmp_path) == set()
    assert frameworks_of(["part20.py"], tmp_path) == {"keras"}
    (tmp_path / "long.py").write_text("#" * (1 << 20) + "\nimport keras")
    assert frameworks_of(["long.py"], tmp_path) == set()


@pytest.mark.parametrize(
    ("source", "remedy"),
    [
        ("if 0: import keras", "call distnet.keras.distribute(model) before fit() on every rank"),
        ("if 0: import torch", "DistributedOptimizer(optimizer, model)"),
        ("print('no framework')", "call client = distnet.connect(parameters=...) on every rank"),
    ],
)
def test_distnet_run_names_the_remedy_of_the_scripts_framework(source: str, remedy: str, tmp_path: Path) -> None:
    pytest.importorskip("click")
    (tmp_path / "script.py").write_text(source)
    command = [sys.executable, "-m", "distnet", "run", "-n", "2", "script.py"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, env=dict(os.environ))
    last = (run.stdout + run.stderr).strip().splitlines()[-1]
    assert run.returncode == 1, last
    assert last.startswith("distnet: NeverConnected: no worker connected"), last
    assert remedy in last


@pytest.mark.parametrize(
    ("source", "named"),
    [
        ("model.fit(x)", False),
        ("import distnet.keras\ndistnet.keras.distribute(model)", True),
        ("from distnet.keras import distribute as d", True),
        ("'distribute'  # distribute", False),
        ("import part", True),
    ],
)
def test_what_a_script_names_is_found_in_it_and_in_its_own_modules(source: str, named: bool, tmp_path: Path) -> None:
    (tmp_path / "part.py").write_text("def go(model): return distribute(model)")
    (tmp_path / "script.py").write_text(source)
    assert names_any(["script.py"], tmp_path, {"distribute"}) is named


@pytest.mark.parametrize("forgot", [True, False])
def test_a_script_that_fails_for_want_of_distribute_is_told_of_it(forgot: bool, tmp_path: Path) -> None:
    pytest.importorskip("click")
    source = "if 0: import keras\nclass Optimizer: pass\nOptimizer().finish()\n"
    (tmp_path / "script.py").write_text(source if forgot else f"{source}distribute(model)\n")
    command = [sys.executable, "-m", "distnet", "run", "-n", "2", "script.py"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100, env=dict(os.environ))
    last = (run.stdout + run.stderr).strip().splitlines()[-1]
    assert run.returncode == 1, last
    assert "AttributeError" in last
    assert ("never calls distnet.keras.distribute(model)" in last) is forgot, last
