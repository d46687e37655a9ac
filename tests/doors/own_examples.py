"""The scripts of examples/keras/ and examples/jax/: what is known of each, and what holds for all."""

from __future__ import annotations

import ast
import dataclasses
import re
import shlex
from pathlib import Path

from launchers import RANKS, Finished

__all__ = ["Example", "check_example"]

EXAMPLES = Path(__file__).parents[2] / "examples"
MOST_LINES = 60


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """A script.

    Attributes:
        script: its path in examples/.
        ends: what stands before the percentage that each rank prints at its end.
        short: its argument for a few steps.
        semantics: that it is started with; None: the default.
        needs: packages beside those that all scripts of its folder need.
        reaches: what the percentage has to be at least, after the few steps.
    """

    script: str
    ends: str
    short: str = "2"
    semantics: str | None = None
    needs: tuple[str, ...] = ()
    reaches: float = 80.0

    @property
    def path(self) -> Path:
        """Where it lies."""
        return EXAMPLES / self.script

    @property
    def options(self) -> list[str]:
        """Those of `distnet run`, beside the number of ranks."""
        semantics = [] if self.semantics is None else ["--semantics", self.semantics]
        return [*semantics, "--threads-per-worker", "1"]

    @property
    def command(self) -> str:
        """How it is started."""
        return shlex.join(["distnet", "run", "-n", str(RANKS), *self.options, f"examples/{self.script}"])

    def found_in(self, job: Finished) -> list[float]:
        """Return the percentages that the ranks printed at their ends."""
        return [float(found) for found in re.findall(rf"{self.ends}: (.+)%", job.text)]


def check_example(example: Example, *more: str) -> None:
    """Fail unless a script is short, in the list of examples, and says how it is started: so, and by these commands."""
    text = example.path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= MOST_LINES
    assert f"[{example.script}]({example.script})" in (EXAMPLES / "README.md").read_text(encoding="utf-8")
    docstring = ast.get_docstring(ast.parse(text)) or ""
    assert re.findall(r"^    (\S.+)$", docstring, re.MULTILINE) == [example.command, *more]
