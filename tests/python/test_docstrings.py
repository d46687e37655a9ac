"""The docstrings of the public modules: in one order, with every parameter, and with examples that run as printed."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import inspect
import pathlib
import pkgutil
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import distnet

DOORS = (
    "distnet.client",
    "distnet.process_group",
    "distnet.server",
    "distnet.semantics",
    "distnet.optimizers",
    "distnet.schedules",
    "distnet.formats",
    "distnet.tuning",
    "distnet.stores",
    "distnet.stats",
    "distnet.snapshot",
    "distnet.errors",
    "distnet.checkpoint",
    "distnet.data",
    "distnet.data.cifar10",
    "distnet.data.generated",
)
# The packages whose modules hold what they export.
PACKAGES = ("distnet.checkpoint", "distnet.client", "distnet.data", "distnet.optimizers", "distnet.process_group")

SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Warns", "Thread safety", "Example", "Source")
IN_LINE = ("Thread safety", "Source")  # a paragraph that begins so; the others are a heading and what is indented below
OTHER_HEADINGS = ("Invariants",)

EXAMPLE_WIDTH = 84  # with the prompt 88: a wider line is scrolled on the site

# Users do not call these constructors: connect() and what is called begin_… do.
MADE_BY_CALLS = {"Client", "Handle", "Work"}
# Bases and plain values, and what needs a framework or the real data set.
WITHOUT_EXAMPLE = {
    "Schedule",
    "EndedSession",
    "ServerStatistics",
    "SessionStatistics",
    "ShardStatistics",
    "StalenessStatistics",
    "TrainingData",
    "load_data",
    "load_into_keras",
    "state_meaning",
    "state_vectors",
    "torch_state_dict",
}


# ---- what there is -------------------------------------------------------------------------------------------------
def public_things() -> dict[str, Any]:
    """Return the public classes and functions of the doors, each once, by the name it was made under."""
    things = (getattr(module, name) for module in map(importlib.import_module, DOORS) for name in module.__all__)
    real = (thing for thing in things if inspect.isclass(thing) or inspect.isfunction(thing))
    return {f"{thing.__module__}.{thing.__qualname__}": thing for thing in real}


def public_methods() -> dict[str, Any]:
    """Return the public methods and properties of those classes, also those that a private base brings."""
    found = {}
    for thing in filter(inspect.isclass, public_things().values()):
        for owner in (base for base in thing.__mro__ if base.__module__.startswith("distnet.")):
            for name, value in vars(owner).items():
                member = value.__func__ if isinstance(value, classmethod | staticmethod) else value
                if not name.startswith("_") and (inspect.isfunction(member) or isinstance(member, property)):
                    found[f"{owner.__module__}.{owner.__qualname__}.{name}"] = member
    return found


THINGS = public_things()
METHODS = public_methods()
FUNCTIONS = {name: thing for name, thing in (THINGS | METHODS).items() if inspect.isfunction(thing)}
CLASSES = {
    name: thing
    for name, thing in THINGS.items()
    if inspect.isclass(thing) and not issubclass(thing, Exception) and thing.__name__ not in MADE_BY_CALLS
}


def examples() -> dict[str, doctest.DocTest]:
    """Return every docstring with an example, of the doors and the modules behind them."""
    inner = [f"{name}.{module.name}" for name in PACKAGES for module in pkgutil.iter_modules(_paths_of(name))]
    found: dict[str, doctest.DocTest] = {}
    for name in ("distnet", *DOORS, *inner):
        for test in doctest.DocTestFinder().find(importlib.import_module(name), name):
            if test.examples:
                found[test.name] = test
    return found


def _paths_of(package: str) -> list[str]:
    return list(importlib.import_module(package).__path__)


EXAMPLES = examples()


# ---- how a docstring is read ---------------------------------------------------------------------------------------
def sections_of(docstring: str) -> dict[str, list[str]]:
    """Return the lines of each section, in the order in which they stand; those before the first have the name ``""``.

    A name that stands twice has a number behind it, so that it is seen as out of order.
    """
    found: dict[str, list[str]] = {"": []}
    lines = found[""]
    for line in inspect.cleandoc(docstring).splitlines():
        named = re.match(rf"({'|'.join(SECTIONS)}):(?= |$)", line)
        if named:
            name = named[1] if named[1] not in found else f"{named[1]} {len(found)}"
            lines = found[name] = []
        lines.append(line)
    return found


def described_in(docstring: str, *names: str) -> list[str]:
    """Return what the items of these sections are about."""
    sections = sections_of(docstring)
    lines = [line for name in names for line in sections.get(name, ())]
    return [item[1] for line in lines if (item := re.match(r"    (\w+): \S", line))]


def form_faults(docstring: str | None) -> Iterator[str]:
    """Yield what is wrong with the form of a docstring."""
    if not docstring:
        yield "has no docstring"
        return
    lines = inspect.cleandoc(docstring).splitlines()
    if not lines[0].endswith((".", "::")) or re.search(r"[.!?] [A-Z]", lines[0]) or (len(lines) > 1 and lines[1]):
        yield f"does not begin with one sentence in a line by itself: {lines[0]!r}"
    headings = [name for name in sections_of(docstring) if name]
    if headings != sorted(headings, key=lambda name: SECTIONS.index(name) if name in SECTIONS else -1):
        yield f"has its sections in the order {headings}; expected that of {SECTIONS}"
    for line in lines:
        heading = re.fullmatch(r"([A-Z][\w -]*):", line)
        if heading and heading[1] not in {*SECTIONS, *OTHER_HEADINGS} - {*IN_LINE}:
            yield f"has a heading {heading[1]!r}; expected one of {(*SECTIONS, *OTHER_HEADINGS)}"
        if "`" in _without_code(line):
            yield f"has a backtick that is no part of ``code`` or :role:`name`: {line.strip()!r}"


def type_faults(name: str, thing: Any) -> Iterator[str]:
    """Yield a line that Napoleon would take for a type and its meaning, because it has a colon."""
    docstring = inspect.cleandoc(thing.__doc__ or "")
    lines = [] if inspect.isclass(thing) or inspect.isfunction(thing) else docstring.splitlines()[:1]
    sections = sections_of(docstring)
    lines += [line for section in ("Returns", "Yields") for line in sections.get(section, [])[1:2]]
    for line in lines:
        if ":" in _without_code(line):
            yield f"{name} has a colon in {line.strip()!r}"


def _without_code(line: str) -> str:
    return re.sub(r"``[^`]+``|:[a-z:]+:`[^`]+`", "", line)


def parameter_faults(function: Callable[..., Any]) -> Iterator[str]:
    """Yield what is wrong with the parameters and the result that a function's docstring describes."""
    signature = inspect.signature(function)
    expected = [name for name in signature.parameters if name not in ("self", "cls")]
    docstring = inspect.getdoc(function) or ""
    described = described_in(docstring, "Args")
    if described != expected:
        yield f"describes the parameters {described}; it has {expected}"
    returns = signature.return_annotation not in (None, "None")
    if returns != bool({"Returns", "Yields"} & set(sections_of(docstring))):
        yield f"returns {signature.return_annotation}, and has {'no' if returns else 'a'} section Returns"


def constructor_faults(kind: type) -> Iterator[str]:
    """Yield what is wrong with the parameters of a constructor, or the fields of a value, in a class's docstring."""
    given = list(inspect.signature(kind).parameters)
    own = described_in(kind.__doc__ or "", "Args")
    values = described_in(kind.__doc__ or "", "Attributes") if dataclasses.is_dataclass(kind) and not own else []
    inherited = [name for base in kind.__mro__[1:] for name in described_in(base.__doc__ or "", "Args", "Attributes")]
    missing = [name for name in given if name not in {*own, *values, *inherited}]
    if missing:
        yield f"does not describe {missing}"
    unknown = [name for name in own if name not in given]
    if unknown:
        yield f"describes {unknown}, which it does not take"


# ---- the real ones -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", THINGS | METHODS)
def test_a_docstring_has_its_sections_in_order(name: str) -> None:
    assert list(form_faults(inspect.getdoc((THINGS | METHODS)[name]))) == []  # a method may have that of its base


def test_no_sentence_is_taken_for_a_type() -> None:
    assert [fault for name, thing in (THINGS | METHODS).items() for fault in type_faults(name, thing)] == []


@pytest.mark.parametrize("name", DOORS)
def test_a_module_says_what_it_is(name: str) -> None:
    assert list(form_faults(importlib.import_module(name).__doc__)) == []


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_and_result_is_described(name: str) -> None:
    assert list(parameter_faults(FUNCTIONS[name])) == []


@pytest.mark.parametrize("name", CLASSES)
def test_every_parameter_of_a_constructor_is_described(name: str) -> None:
    assert list(constructor_faults(CLASSES[name])) == []


def test_classes_and_functions_show_an_example() -> None:
    shown = {name for name, thing in THINGS.items() if "Example" in sections_of(thing.__doc__ or "")}
    errors = {name for name, thing in THINGS.items() if inspect.isclass(thing) and issubclass(thing, Exception)}
    assert {name.rpartition(".")[2] for name in THINGS.keys() - errors - shown} == WITHOUT_EXAMPLE


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs_as_printed(name: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    test, said = EXAMPLES[name], list[str]()
    test.globs = {"distnet": distnet, "np": np}
    result = doctest.DocTestRunner(verbose=False).run(test, out=said.append)
    assert result.failed == 0, "".join(said)


def test_examples_fit_the_width_of_a_page() -> None:
    lines = [line for test in EXAMPLES.values() for example in test.examples for line in example.source.splitlines()]
    assert [line for line in lines if len(line) > EXAMPLE_WIDTH] == []


def test_examples_print_what_every_numpy_prints_alike() -> None:
    wanted = [example.want for test in EXAMPLES.values() for example in test.examples]
    assert [want for want in wanted if re.search(r"array\(|np\.|float32", want)] == []


# ---- the rules can fail --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("docstring", "fault"),
    [
        (None, "has no docstring"),
        ("Do one thing. Do another.", "does not begin with one sentence"),
        ("Do a thing,\nat length.", "does not begin with one sentence"),
        ("Do a thing.\n\nRaises:\n    ConfigError: never.\n\nArgs:\n    a: it.", "in the order ['Raises', 'Args']"),
        ("Do a thing.\n\nSource: a.\n\nThread safety: any thread.", "in the order ['Source', 'Thread safety']"),
        ("Do a thing.\n\nArgs:\n    a: it.\n\nArgs:\n    b: it.", "in the order ['Args', 'Args 2']"),
        ("Do a thing.\n\nParameters:\n    a: it.", "has a heading 'Parameters'"),
        ("Do a thing with `a`.", "has a backtick"),
    ],
)
def test_a_fault_of_form_is_seen(docstring: str | None, fault: str) -> None:
    assert any(fault in seen for seen in form_faults(docstring))


def test_a_missing_parameter_and_a_missing_result_are_seen() -> None:
    def function(a: int, b: int) -> int:
        """Add.

        Args:
            a: a number.
        """
        return a + b

    assert list(parameter_faults(function)) == [
        "describes the parameters ['a']; it has ['a', 'b']",
        "returns int, and has no section Returns",
    ]


def test_a_field_without_a_line_is_seen() -> None:
    @dataclasses.dataclass
    class Pair:
        """Two numbers.

        Args:
            a: the first.
            c: the third.
        """

        a: int
        b: int

    assert list(constructor_faults(Pair)) == [
        "does not describe ['b']",
        "describes ['c'], which it does not take",
    ]
