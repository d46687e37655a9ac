"""What the pages of the site show works as it stands there, and nothing public lacks its place in them."""

from __future__ import annotations

import pathlib
import re
import shlex
import subprocess
import sys

import pytest
from command_lines import check_command_line

import distnet

ROOT = pathlib.Path(__file__).parents[2]
PAGES = {
    page.stem: page.read_text(encoding="utf-8") for page in [ROOT / "docs/index.md", *ROOT.glob("docs/guide/*.md")]
}
BLOCKS = {name: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for name, text in PAGES.items()}
# A block that begins with the name of a file is a worker's script; the others of a page are one program.
SCRIPTS = [(name, block) for name, blocks in BLOCKS.items() for block in blocks if re.match(r"# \w+\.py\n", block)]
PROGRAMS = {name: "\n".join(b for b in blocks if (name, b) not in SCRIPTS) for name, blocks in BLOCKS.items()}
COMMAND_LINES = [
    line for text in PAGES.values() for line in re.findall(r"^(?:host-\w)?\$ (?:\S*/)?distnet (.+)$", text, re.M)
]


@pytest.mark.parametrize("page", [name for name, program in PROGRAMS.items() if program])
def test_the_program_of_a_page_runs_as_it_stands(page: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAMS[page]], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("page", "script"), SCRIPTS, ids=[block.split()[1] for _, block in SCRIPTS])
def test_the_workers_of_a_page_run_by_its_command_line(tmp_path: pathlib.Path, page: str, script: str) -> None:
    pytest.importorskip("click")
    for framework in ("flax", "jax", "keras", "optax", "torch"):
        if re.search(rf"^(import|from) {framework}\b", script, re.MULTILINE):
            pytest.importorskip(framework)
    name = script.split()[1]
    (tmp_path / name).write_text(script)
    (line,) = re.findall(rf"^\$ distnet (run .*{re.escape(name)})$", PAGES[page], re.M)
    done = subprocess.run(
        [sys.executable, "-m", "distnet", *shlex.split(line)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(re.findall(r"rank (\d): ", done.stdout)) == ["0", "1"], done.stdout


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_the_command_lines_of_the_pages_have_options_that_there_are(line: str) -> None:
    check_command_line(line)


def test_every_public_module_has_a_page() -> None:
    modules = {path.stem for path in (ROOT / "distnet").glob("*.py") if not path.stem.startswith("_")}
    pages = {path.stem for path in (ROOT / "docs/reference/api").glob("*.md")} - {"index"}
    assert modules | {"checkpoint", "client", "data", "jax", "keras", "optimizers", "process_group", "torch"} == pages


def test_the_page_of_process_groups_lists_every_method() -> None:
    page = (ROOT / "docs/reference/api/process_group.md").read_text()
    listed = re.findall(r"^   \.\. auto(?:method|property):: (\w+)$", page, re.M)
    assert sorted(listed) == [name for name in dir(distnet.ProcessGroup) if not name.startswith("_")]
