"""Which frameworks a script imports and what it names, read from its source: nothing of it is run or imported."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

__all__ = ["frameworks_of", "names_any"]

_MOST_FILES = 30
_MOST_BYTES = 1 << 20
_SOUGHT = ("keras", "tensorflow", "torch", "jax")


def frameworks_of(script: Sequence[str], folder: Path) -> set[str]:
    """Return which of ``keras``, ``tensorflow``, ``torch`` and ``jax`` a script imports, itself or by its own modules.

    Its modules are those beside it. At most 30 files are read, each of at most 1 MiB; one that cannot be read, or is
    no Python, counts as importing nothing. Keras is found as ``tensorflow.keras`` as well.

    Args:
        script: a Python file and its arguments, or ``-m`` with a module and its arguments; any other program imports
            nothing.
        folder: that the script is started in.

    Returns:
        The names.

    Thread safety: any thread.
    """
    found: set[str] = set()
    for tree in _sources(script, folder):
        for name in _imports(tree):
            first, _, rest = name.partition(".")
            if first in _SOUGHT:
                found |= {first, "keras"} if rest.partition(".")[0] == "keras" else {first}
    return found


def names_any(script: Sequence[str], folder: Path, names: Collection[str]) -> bool:
    """Return whether a script, or one of the modules that :func:`frameworks_of` reads, has any of these names.

    Args:
        script: as that takes it.
        folder: as that takes it.
        names: of variables, functions or attributes; ``from module import name`` counts, too.

    Thread safety: any thread.
    """
    for tree in _sources(script, folder):
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id in names:
                return True
            if isinstance(node, ast.Attribute) and node.attr in names:
                return True
            if isinstance(node, ast.ImportFrom) and any(alias.name in names for alias in node.names):
                return True
    return False


def _sources(script: Sequence[str], folder: Path) -> Iterator[ast.Module]:
    """Yield a script and its own modules, as far as they are read."""
    root, waiting = _first_file(script, folder)
    seen: set[Path] = set()
    while waiting and len(seen) < _MOST_FILES:
        path = waiting.pop(0)
        if path in seen:
            continue
        seen.add(path)
        tree = _parsed(path)
        yield tree
        for name in _imports(tree):
            if name.partition(".")[0] not in _SOUGHT:
                waiting += _files_of(root, name)


def _first_file(script: Sequence[str], folder: Path) -> tuple[Path, list[Path]]:
    """Return where a script's own modules are, and its file."""
    if script[0] != "-m":
        path = folder / script[0]
        return path.parent, [path] if path.suffix == ".py" else []
    return folder, _files_of(folder, f"{script[1]}.__main__") or _files_of(folder, script[1])


def _files_of(root: Path, module: str) -> list[Path]:
    """Return the file of a module below a folder, or of the package that a name was imported from."""
    parts = module.split(".")
    if not all(part.isidentifier() for part in parts):
        return []
    for length in (len(parts), len(parts) - 1):
        place = root.joinpath(*parts[:length]) if length else root
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if length and path.is_file():
                return [path]
    return []


def _parsed(path: Path) -> ast.Module:
    try:
        with path.open("rb") as file:
            return ast.parse(file.read(_MOST_BYTES))
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module(body=[], type_ignores=[])


def _imports(tree: ast.Module) -> Iterator[str]:
    """Yield the names of modules that are imported, and of what is imported from them or used as their attributes."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
                aliases[alias.asname or alias.name.partition(".")[0]] = alias.name
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            for alias in node.names:
                yield f"{module}.{alias.name}".lstrip(".")
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            yield f"{aliases[node.value.id]}.{node.attr}"
