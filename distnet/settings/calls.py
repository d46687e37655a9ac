"""A name with settings in parentheses, as text: ``momentum(0.05, momentum=0.9)``. Read, checked against what there is,
and written; what is made of it is :mod:`distnet.settings.grammar`'s matter.

Python's own parser reads the text into a tree, and nothing in it is ever run. Text is at most 4,096 characters long.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import warnings
from collections.abc import Mapping
from typing import Any, Final, NoReturn, TypeAlias

from distnet._private.suggestions import suggest
from distnet.errors import ConfigError

__all__ = ["Call", "CallText", "Kind", "Vocabulary", "bounded", "shown", "value_text"]

_MOST_CHARACTERS: Final = 4096
_SHOWN_CHARACTERS: Final = 160
_NOT_OURS: Final = re.compile(r"[^A-Za-z0-9_.,=+\-()\[\]\s]", re.ASCII)
_WORDS: Final[Mapping[str, Any]] = {"true": True, "false": False, "none": None}


@dataclasses.dataclass(frozen=True)
class Call:
    """A name with settings, as it was read, before a value is made of it.

    Attributes:
        name: such as ``"momentum"``.
        settings: by name; numbers, booleans, None, words, tuples of numbers, and a `Call` for a schedule.
    """

    name: str
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        """Return the text of which this is read."""
        settings = dict(self.settings)
        first = [value_text(settings.pop("learning_rate"))] if "learning_rate" in settings else []
        others = [f"{name}={value_text(value)}" for name, value in settings.items()]
        return f"{self.name}({', '.join(first + others)})"

    def without(self, *names: str) -> Call:
        """Return the same call without some of its settings."""
        return Call(self.name, {name: value for name, value in self.settings.items() if name not in names})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """What a name takes.

    Attributes:
        settings: the names of all settings.
        positional: those that may stand without their names, in order.
        lists: those that are lists of numbers, with an example each.
        words: those that may be a word.
        nested: those that may be a call, with what that is, such as ``"schedule"``.
    """

    settings: tuple[str, ...]
    positional: tuple[str, ...] = ()
    lists: Mapping[str, str] = dataclasses.field(default_factory=dict)
    words: tuple[str, ...] = ()
    nested: Mapping[str, str] = dataclasses.field(default_factory=dict)


Vocabulary: TypeAlias = Mapping[str, Mapping[str, Kind]]
"""What there is, such as ``"optimizer"``, with the names of each and what these take."""


class CallText:
    """One text, and what is wrong with it where.

    Args:
        what: the text is: a key of the vocabulary.
        text: to read.
        vocabulary: what there is.
        examples: a text for each key of the vocabulary, for messages.

    Raises:
        ConfigError: it is no text, or too long. The methods raise it for what they cannot read, with the place, and the
            nearest known name where a name is unknown.
    """

    def __init__(self, what: str, text: object, vocabulary: Vocabulary, examples: Mapping[str, str]) -> None:
        self._what, self._vocabulary, self._examples = what, vocabulary, examples
        self._text = re.sub(r"\s", " ", bounded(what, text, examples[what])).strip()

    def read(self) -> Call:
        """Return the call that the text is."""
        return self._call(self._tree(), self._what)

    def read_number_or_call(self) -> Call | float:
        """Return the number or the call that the text is."""
        tree = self._tree()
        if isinstance(tree, (ast.Call, ast.Name)):
            return self._call(tree, self._what)
        return self._number(tree, f"{_article(self._what)} or a number")

    def _tree(self) -> ast.expr:
        expected = f"expected text such as {self._examples[self._what]}"
        if other := _NOT_OURS.search(self._text):
            self._refuse(other.start(), f"{other[0]!r} has no meaning here; {expected}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what Python will refuse one day, such as "1or", is refused below
                return ast.parse(self._text, mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            place = (getattr(error, "offset", None) or 1) - 1
            self._refuse(place, f"{getattr(error, 'msg', None) or 'too deep or too large'}; {expected}")

    def _call(self, node: ast.expr, what: str) -> Call:
        called = node.func if isinstance(node, ast.Call) else node
        if not isinstance(called, ast.Name):
            self._refuse(node.col_offset, f"expected {_article(what)}, such as {self._examples[what]}")
        name, known = called.id, self._vocabulary[what]
        if name not in known:
            self._refuse(called.col_offset, f"no {what} is named {name!r}{suggest(name, known)}")
        settings: dict[str, Any] = {}
        for setting, value in self._arguments(node, name, known[name]) if isinstance(node, ast.Call) else ():
            if setting in settings:
                self._refuse(value.col_offset, f"{setting} was given before")
            settings[setting] = self._value(value, setting, known[name])
        return Call(name, settings)

    def _arguments(self, node: ast.Call, name: str, kind: Kind) -> list[tuple[str, ast.expr]]:
        if len(node.args) > len(kind.positional):
            names = ", ".join(f"{setting}=" for setting in kind.settings if setting not in kind.positional)
            self._refuse(node.args[len(kind.positional)].col_offset, f"a value without a name; {name} takes {names}")
        for keyword in node.keywords:
            if keyword.arg not in kind.settings:
                near = suggest(str(keyword.arg), kind.settings)
                self._refuse(keyword.col_offset, f"{name} has no setting {keyword.arg!r}{near}")
        named = [(str(keyword.arg), keyword.value) for keyword in node.keywords]
        return [*zip(kind.positional, node.args, strict=False), *named]

    def _value(self, node: ast.expr, setting: str, kind: Kind) -> Any:
        if setting in kind.lists:
            if not isinstance(node, (ast.List, ast.Tuple)):
                self._refuse(node.col_offset, f"{setting} is a list, such as {kind.lists[setting]}")
            return tuple(self._number(element, "a number") for element in node.elts)
        if setting in kind.nested and isinstance(node, (ast.Call, ast.Name)):
            return self._call(node, kind.nested[setting])
        if isinstance(node, ast.Name) and node.id.lower() in _WORDS:
            return _WORDS[node.id.lower()]
        if isinstance(node, ast.Name) and setting in kind.words:
            return node.id
        if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, bool)):
            return node.value
        return self._number(node, f"a number, true, false or none for {setting}")

    def _number(self, node: ast.expr, expected: str) -> float:
        sign, digits = 1, node
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            sign, digits = -1 if isinstance(node.op, ast.USub) else 1, node.operand
        value = digits.value if isinstance(digits, ast.Constant) else None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._refuse(node.col_offset, f"expected {expected}")
        try:
            float(value)
        except OverflowError:
            self._refuse(node.col_offset, "the number is too large")
        return sign * value

    def _refuse(self, place: int, message: str) -> NoReturn:
        """Raise, with the place, unless the text is one word."""
        if self._text.isidentifier():
            raise ConfigError(message)
        raise ConfigError(f"{self._what} {shown(self._text)}, at character {place + 1}: {message}")


def bounded(what: str, text: object, example: str) -> str:
    """Return a text.

    Raises:
        ConfigError: it is none, or longer than 4,096 characters.
    """
    if not isinstance(text, str):
        raise ConfigError(f"{what} is {text!r}; expected a text such as {example!r}")
    if len(text) > _MOST_CHARACTERS:
        raise ConfigError(f"{what} {shown(text)} has {len(text):,} characters; at most {_MOST_CHARACTERS:,} are read")
    return text


def shown(text: object) -> str:
    """Return a text in quotes, cut off where it is long."""
    whole = str(text)
    return repr(whole if len(whole) <= _SHOWN_CHARACTERS else whole[:_SHOWN_CHARACTERS] + "…")


def value_text(value: Any) -> str:
    """Return the text of a setting's value; reading it gives an equal one.

    Raises:
        ConfigError: a value of another kind.
    """
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, Call)):
        return str(value)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(value_text(element) for element in value)}]"
    if hasattr(value, "__index__"):
        return str(value.__index__())
    if not hasattr(value, "__float__"):
        raise ConfigError(f"{value!r} has no text; expected a number")
    return repr(float(value)).removesuffix(".0")


def _article(what: str) -> str:
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"
