"""Reads C++ and Python source for the layer tests: what a file includes or imports, and which names its code uses."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator

__all__ = ["Import", "cpp_code", "cpp_includes", "python_calls", "python_imports", "python_names"]

_CPP_TOKEN = re.compile(
    r"""
      (?P<comment>//[^\n]*|/\*.*?\*/)
    | (?P<raw>R"(?P<delimiter>[^()\s\\]{0,16})\(.*?\)(?P=delimiter)")
    | (?P<string>"(?:[^"\\\n]|\\.)*")
    | (?P<character>(?<![0-9a-fA-F])'(?:[^'\\\n]|\\.)+')
    """,
    re.DOTALL | re.VERBOSE,
)
_CPP_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"][^>"\n]+[>"])', re.MULTILINE)


def cpp_code(source: str) -> str:
    """Return C++ source without its comments and the contents of its strings."""

    def blank(token: re.Match[str]) -> str:
        return " " if token["comment"] else '""'

    return _CPP_TOKEN.sub(blank, source)


def cpp_includes(source: str) -> list[str]:
    """Return the headers that C++ source includes, each with its quotes or angle brackets."""

    def without_comment(token: re.Match[str]) -> str:
        return " " if token["comment"] else token[0]

    return _CPP_INCLUDE.findall(_CPP_TOKEN.sub(without_comment, source))


@dataclasses.dataclass(frozen=True)
class Import:
    """One imported module, absolute: ``from distnet import client`` gives ``distnet.client`` where that is a module."""

    module: str
    line: int


def python_imports(source: str, *, module: str, is_package: bool, modules: frozenset[str]) -> Iterator[Import]:
    """Yield every module that Python source imports, wherever in the file, also by ``importlib.import_module("name")``.

    Args:
        source: the text of the file.
        module: its own dotted name.
        is_package: whether it is an ``__init__.py``.
        modules: the dotted names of all modules of the project, which tell a submodule from a name.
    """
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parent = _absolute(node, module, is_package)
            names = (f"{parent}.{alias.name}" for alias in node.names)
            yield from (Import(name if name in modules else parent, node.lineno) for name in names)
        elif isinstance(node, ast.Call) and _dotted(node.func) in ("importlib.import_module", "__import__"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield Import(first.value, node.lineno)


def _absolute(node: ast.ImportFrom, module: str, is_package: bool) -> str:
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    parent = parts[: len(parts) - node.level + is_package]
    return ".".join([*parent, *([node.module] if node.module else [])])


def python_calls(source: str) -> Iterator[tuple[str, int]]:
    """Yield the dotted name and the line of every call, as far as the called thing has a name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and (name := _dotted(node.func)):
            yield name, node.lineno


def python_names(source: str) -> Iterator[tuple[str, int]]:
    """Yield every dotted name that is used, and ``module.name`` of every ``from module import name``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and (name := _dotted(node)):
            yield name, node.lineno
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (owner := _dotted(node.value)):
        return f"{owner}.{node.attr}"
    return ""
