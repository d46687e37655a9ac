"""Children import what their parents import, whatever lies in the current folder."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

from distnet._private.spawn import python_command


def test_a_copy_of_the_package_in_the_current_folder_is_not_taken(tmp_path: pathlib.Path) -> None:
    (tmp_path / "distnet").mkdir()
    (tmp_path / "distnet" / "__init__.py").write_text("raise ImportError('the wrong one')", encoding="utf-8")
    done = subprocess.run(
        python_command("distnet.shards.main", str(os.getpid())),
        cwd=tmp_path,
        input="",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_module_gets_its_arguments_and_is_the_main_one(tmp_path: pathlib.Path) -> None:
    (tmp_path / "shown.py").write_text("import sys; print(__name__, sys.argv[1:])", encoding="utf-8")
    command = python_command("shown", "a", "--b=c d")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); from distnet._private.spawn import python_command; "
    code += "import subprocess; sys.exit(subprocess.call(python_command('shown', 'a', '--b=c d')))"
    assert command[-3:] == ["shown", "a", "--b=c d"]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "__main__ ['a', '--b=c d']\n", done.stderr
