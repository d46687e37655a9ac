"""Values as text, for the command line and for files, and the way back: :func:`as_text`.

::

    momentum(0.05, momentum=0.9, nesterov=true)          an optimizer; what is left out has its default
    adam(cosine(0.001, updates=10000, warmup=500))       with a schedule in the place of its learning rate
    cosine(updates=10000, warmup=500, final=0)           a schedule, from a learning rate that is said elsewhere
    group(learning_rate_multiplier=2, weight_decay=0)    the settings of a group of tensors

Names and settings are those of the Python values: ``cosine`` is :class:`~distnet.CosineDecay`, ``exponential``
:class:`~distnet.ExponentialDecay`, ``piecewise`` :class:`~distnet.PiecewiseConstant`; ``constant`` is one learning rate
for ever. Every schedule takes ``warmup``, the updates of a :class:`~distnet.Warmup` that comes before it, and
``warmup_start``, where that begins.

Python's own parser reads the text into a tree, nothing in it is ever run, and it is short: 4,096 characters.
"""

from __future__ import annotations

import ast
import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, TypeAlias

from distnet.errors import ConfigError
from distnet.optimizers import OPTIMIZERS, Group, Optimizer
from distnet.schedules import CosineDecay, ExponentialDecay, LearningRate, PiecewiseConstant, Schedule, Warmup
from distnet.suggestions import suggest
from distnet.tuning import Tuning

__all__ = [
    "Call",
    "Every",
    "as_text",
    "call_of",
    "optimizer_of",
    "parse_every",
    "parse_group",
    "parse_optimizer",
    "parse_schedule",
    "parse_tuning",
    "read_optimizer",
    "read_schedule",
]

_MOST_CHARACTERS: Final = 4096
_SHOWN_CHARACTERS: Final = 160
_NOT_OURS: Final = re.compile(r"[^A-Za-z0-9_.,=+\-()\[\]\s]", re.ASCII)
_WORDS: Final[Mapping[str, Any]] = {"true": True, "false": False, "none": None}
_LISTS: Final = {"betas": "[0.9, 0.999]", "boundaries": "[100, 200]", "learning_rates": "[0.1, 0.01, 0.001]"}
_EXAMPLES: Final = {
    "optimizer": "momentum(0.05, momentum=0.9)",
    "schedule": "cosine(updates=10000, warmup=500)",
    "group": "group(learning_rate_multiplier=2, weight_decay=0)",
    "tuning": "tuning(spin=0)",
}


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
        first = [_value_text(settings.pop("learning_rate"))] if "learning_rate" in settings else []
        others = [f"{name}={_value_text(value)}" for name, value in settings.items()]
        return f"{self.name}({', '.join(first + others)})"

    def without(self, *names: str) -> Call:
        """Return the same call without some of its settings."""
        return Call(self.name, {name: value for name, value in self.settings.items() if name not in names})


@dataclasses.dataclass(frozen=True)
class Every:
    """How often something is done: each so many updates, or each so many seconds; the other is None."""

    updates: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if (self.updates is None) == (self.seconds is None) or not (self.updates or self.seconds or 0) > 0:
            raise ConfigError(f"{self!r}; expected either updates or seconds, above 0")


Value: TypeAlias = "Optimizer | LearningRate | Group | Tuning | Every"


# ---- what there is ---------------------------------------------------------------------------------------------------
_SCHEDULES: Final[Mapping[str, type[Any] | None]] = {
    "constant": None,
    "cosine": CosineDecay,
    "exponential": ExponentialDecay,
    "piecewise": PiecewiseConstant,
}
_WARMUP: Final = ("warmup", "warmup_start")
_NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "optimizer": tuple(OPTIMIZERS),
    "schedule": tuple(_SCHEDULES),
    "group": ("group",),
    "tuning": ("tuning",),
}


def _kind_of(what: str, name: str) -> Any:
    """Return the dataclass behind a name; ``constant`` has none."""
    kinds: dict[str, Mapping[str, Any]] = {"optimizer": OPTIMIZERS, "schedule": _SCHEDULES}
    return kinds[what][name] if what in kinds else {"group": Group, "tuning": Tuning}[what]


def _settings_of(what: str, name: str) -> tuple[str, ...]:
    kind = _kind_of(what, name)
    own = ("learning_rate",) if kind is None else tuple(field.name for field in dataclasses.fields(kind))
    return own + (_WARMUP if what == "schedule" else ())


def _positional_of(what: str, name: str) -> tuple[str, ...]:
    """Return the settings that may stand without their names: those of the Python value; of a schedule its rate."""
    if what == "schedule":
        return tuple(setting for setting in _settings_of(what, name) if setting == "learning_rate")
    return tuple(field.name for field in dataclasses.fields(_kind_of(what, name)) if not field.kw_only)


# ---- text to values --------------------------------------------------------------------------------------------------
def parse_optimizer(text: str) -> Optimizer:
    """Return the optimizer that a text such as ``"momentum(0.05, momentum=0.9, nesterov=true)"`` says.

    Raises:
        ConfigError: what cannot be read, with its place; an unknown name, with the nearest known one; a value out of
            range.
    """
    call = read_optimizer(text)
    return _made(lambda: optimizer_of(call), "optimizer", text)


def parse_schedule(text: str, learning_rate: float | None = None) -> LearningRate:
    """Return the learning rate that a text such as ``"cosine(updates=10000, warmup=500)"`` says.

    Args:
        text: a schedule, or a number.
        learning_rate: where the schedule starts from; None: the text says it, ``"cosine(0.1, updates=10000)"``.
            ``piecewise`` says all its learning rates by itself.

    Raises:
        ConfigError: as :func:`parse_optimizer`; also a learning rate in both places, or in none.
    """
    call = read_schedule(text)
    if not isinstance(call, Call):
        call = Call("constant", {"learning_rate": call})
    if learning_rate is not None and call.name != "piecewise":
        if "learning_rate" in call.settings:
            own = _value_text(call.settings["learning_rate"])
            raise ConfigError(
                f"schedule {_shown(text)} says the learning rate {own} where {_value_text(learning_rate)} is given "
                "already; give it once, and other settings by name, such as updates=10000"
            )
        call = Call(call.name, {"learning_rate": learning_rate, **call.settings})
    return _made(lambda: _schedule_of(call), "schedule", text)


def parse_group(text: str) -> tuple[str, Group]:
    """Return the pattern of names and the settings that ``"*bias*=group(learning_rate_multiplier=2)"`` says.

    Raises:
        ConfigError: as :func:`parse_optimizer`.
    """
    names = list(re.finditer(r"=(?=\s*\w+\s*(\(|$))", _bounded("group", text)))
    pattern = text[: names[-1].start()].strip() if names else ""
    if not pattern:
        raise ConfigError(
            f"group {_shown(text)} is not PATTERN=group(…); expected one such as *bias*={_EXAMPLES['group']}"
        )
    call = _Text("group", text[names[-1].end() :]).read()
    return pattern, _made(lambda: Group(**call.settings), "group", text)


def parse_tuning(text: str) -> Tuning:
    """Return the fast paths that ``"tuning(spin=0, deliver=false)"`` says.

    Raises:
        ConfigError: as :func:`parse_optimizer`.
    """
    call = _Text("tuning", text).read()
    return _made(lambda: Tuning(**call.settings), "tuning", text)


def parse_every(text: str) -> Every:
    """Return how often ``"500updates"``, ``"90s"``, ``"10min"`` or ``"2h"`` is; blanks do not matter.

    Raises:
        ConfigError: anything else, or 0.
    """
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,20})?)\s*([a-z]{1,10})", str(text)[:80].strip().lower(), re.ASCII)
    number, unit = (float(found[1]), found[2]) if found else (0.0, "")
    if number > 0 and unit in ("update", "updates") and number.is_integer():
        return Every(updates=int(number))
    seconds = next((unit_s for names, unit_s in _UNITS_S.items() if unit in names), 0)
    if number > 0 and seconds:
        return Every(seconds=number * seconds)
    raise ConfigError(f"{_shown(text)} says not how often; expected a text such as 500updates, 90s, 10min or 2h")


_UNITS_S: Final = {  # the largest first, each by the name that is written first
    ("h", "hour", "hours"): 3600,
    ("min", "minute", "minutes"): 60,
    ("s", "sec", "second", "seconds"): 1,
}


def read_optimizer(text: str) -> Call:
    """Return what a text says of an optimizer, as :func:`parse_optimizer` reads it, without its defaults."""
    return _Text("optimizer", text).read()


def read_schedule(text: str) -> Call | float:
    """Return what a text says of a learning rate: a schedule's settings, or a number."""
    return _Text("schedule", text).read_learning_rate()


def optimizer_of(call: Call) -> Optimizer:
    """Return the optimizer of a call that :func:`read_optimizer` returned.

    Raises:
        ConfigError: a value out of range.
    """
    settings = dict(call.settings)
    if isinstance(settings.get("learning_rate"), Call):
        settings["learning_rate"] = _schedule_of(settings["learning_rate"])
    return OPTIMIZERS[call.name](**settings)


def _schedule_of(call: Call) -> LearningRate:
    settings = dict(call.settings)
    warmup, start = settings.pop("warmup", None), settings.pop("warmup_start", None)
    kind = _SCHEDULES[call.name]
    needed = (
        ["learning_rate"] if kind is None else [f.name for f in dataclasses.fields(kind) if f.default is _NO_DEFAULT]
    )
    if missing := [name for name in needed if name not in settings]:
        raise ConfigError(f"{call.name} needs {' and '.join(missing)}")
    then: LearningRate = settings["learning_rate"] if kind is None else kind(**settings)
    if warmup is None:
        if start is not None:
            raise ConfigError("warmup_start was given without warmup, the number of updates that it takes")
        return then
    return Warmup(warmup, then, 0.0 if start is None else start)


_NO_DEFAULT: Final = dataclasses.MISSING


def _made(make: Callable[[], Any], what: str, text: str) -> Any:
    try:
        return make()
    except ConfigError as error:
        raise ConfigError(f"{what} {_shown(text)}: {error}") from error


def _bounded(what: str, text: object) -> str:
    if not isinstance(text, str):
        raise ConfigError(f"{what} is {text!r}; expected a text such as {_EXAMPLES[what]!r}")
    if len(text) > _MOST_CHARACTERS:
        raise ConfigError(f"{what} {_shown(text)} has {len(text):,} characters; at most {_MOST_CHARACTERS:,} are read")
    return text


def _shown(text: object) -> str:
    whole = str(text)
    return repr(whole if len(whole) <= _SHOWN_CHARACTERS else whole[:_SHOWN_CHARACTERS] + "…")


class _Text:
    """One text, and what is wrong with it where."""

    def __init__(self, what: str, text: str) -> None:
        self._what = what
        self._text = re.sub(r"\s", " ", _bounded(what, text)).strip()

    def read(self) -> Call:
        """Return the call that the text is."""
        return self._call(self._tree(), self._what)

    def read_learning_rate(self) -> Call | float:
        """Return the schedule or the number that the text is."""
        tree = self._tree()
        return (
            self._call(tree, "schedule")
            if isinstance(tree, (ast.Call, ast.Name))
            else self._number("a schedule or a number", tree)
        )

    def _tree(self) -> ast.expr:
        if other := _NOT_OURS.search(self._text):
            self._refuse(other.start(), f"{other[0]!r} has no meaning here; expected text such as {self._example}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what Python will refuse one day, such as "1or", is refused below
                return ast.parse(self._text, mode="eval").body
        except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
            place = (getattr(error, "offset", None) or 1) - 1
            said = getattr(error, "msg", None) or "too deep or too large"
            self._refuse(place, f"{said}; expected text such as {self._example}")

    def _call(self, node: ast.expr, what: str) -> Call:
        called = node.func if isinstance(node, ast.Call) else node
        if not isinstance(called, ast.Name):
            self._refuse(node.col_offset, f"expected {_article(what)}, such as {_EXAMPLES[what]}")
        if called.id not in _NAMES[what]:
            self._refuse(called.col_offset, f"no {what} is named {called.id!r}{suggest(called.id, _NAMES[what])}")
        settings: dict[str, Any] = {}
        if isinstance(node, ast.Call):
            for name, value in self._named_arguments(node, what, called.id):
                if name in settings:
                    self._refuse(value.col_offset, f"{name} was given before")
                settings[name] = self._value(name, value)
        return Call(called.id, settings)

    def _named_arguments(self, node: ast.Call, what: str, name: str) -> list[tuple[str, ast.expr]]:
        positional, known = _positional_of(what, name), _settings_of(what, name)
        if len(node.args) > len(positional):
            names = ", ".join(f"{setting}=" for setting in known if setting not in positional)
            self._refuse(node.args[len(positional)].col_offset, f"a value without a name; {name} takes {names}")
        for keyword in node.keywords:
            if keyword.arg not in known:
                near = suggest(str(keyword.arg), known)
                self._refuse(keyword.col_offset, f"{name} has no setting {keyword.arg!r}{near}")
        named = [(str(keyword.arg), keyword.value) for keyword in node.keywords]
        return [*zip(positional, node.args, strict=False), *named]

    def _value(self, setting: str, node: ast.expr) -> Any:
        if setting in _LISTS:
            if not isinstance(node, (ast.List, ast.Tuple)):
                self._refuse(node.col_offset, f"{setting} is a list, such as {_LISTS[setting]}")
            return tuple(self._number("a number", element) for element in node.elts)
        if setting == "learning_rate" and isinstance(node, (ast.Call, ast.Name)):
            return self._call(node, "schedule")
        if isinstance(node, ast.Name) and node.id.lower() in _WORDS:
            return _WORDS[node.id.lower()]
        if isinstance(node, ast.Name) and setting == "congestion_control":
            return node.id
        if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, bool)):
            return node.value
        return self._number(f"a number, true, false or none for {setting}", node)

    def _number(self, expected: str, node: ast.expr) -> float:
        sign, digits = 1, node
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            sign, digits = -1 if isinstance(node.op, ast.USub) else 1, node.operand
        if not isinstance(digits, ast.Constant) or type(digits.value) not in (int, float):
            self._refuse(node.col_offset, f"expected {expected}")
        value: float = digits.value
        try:
            float(value)
        except OverflowError:
            self._refuse(node.col_offset, "the number is too large")
        return sign * value

    @property
    def _example(self) -> str:
        return _EXAMPLES[self._what]

    def _refuse(self, place: int, message: str) -> NoReturn:
        """Raise, with the place, unless the text is one word."""
        if self._text.isidentifier():
            raise ConfigError(message)
        raise ConfigError(f"{self._what} {_shown(self._text)}, at character {place + 1}: {message}")


def _article(what: str) -> str:
    return f"an {what}" if what[0] in "aeiou" else f"a {what}"


# ---- values to text --------------------------------------------------------------------------------------------------
def as_text(value: Value, *, complete: bool = False) -> str:
    """Return the text that says a value; parsing it gives an equal one.

    Args:
        value: an optimizer, a learning rate, a group, fast paths, or an interval.
        complete: also what has its default.

    Raises:
        ConfigError: a value of another kind.
    """
    if isinstance(value, Every):
        return _every_text(value)
    described = call_of(value, complete=complete) if _has_name(value) else value
    return _value_text(described)


def call_of(value: Any, *, complete: bool = False) -> Call:
    """Return a value's name and settings: those that are not their defaults, or all that are not None."""
    if isinstance(value, Warmup):
        constant = Call("constant", {"learning_rate": value.then})
        then = call_of(value.then, complete=complete) if isinstance(value.then, Schedule) else constant
        start = {"warmup_start": value.start} if complete or value.start != 0 else {}
        return Call(then.name, {**then.settings, "warmup": value.updates, **start})
    names: dict[Any, str] = {Group: "group", Tuning: "tuning"}
    names |= {kind: name for kinds in (OPTIMIZERS, _SCHEDULES) for name, kind in kinds.items()}
    name = names.get(type(value))
    if name is None:
        raise ConfigError(f"{value!r} has no text; expected one of {', '.join(names.values())}")
    settings: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        setting = getattr(value, field.name)
        wanted = setting is not None if complete else setting != field.default
        if wanted or field.name == "learning_rate":
            settings[field.name] = call_of(setting, complete=complete) if isinstance(setting, Schedule) else setting
    return Call(name, settings)


def _has_name(value: object) -> bool:
    return isinstance(value, (Optimizer, Schedule, Group, Tuning))


def _every_text(every: Every) -> str:
    if every.updates is not None:
        return f"{every.updates}updates"
    seconds = every.seconds or 0.0
    unit, unit_s = next(
        (names[0], unit_s) for names, unit_s in _UNITS_S.items() if seconds % unit_s == 0 or unit_s == 1
    )
    return f"{_value_text(seconds / unit_s)}{unit}"


def _value_text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, Call)):
        return str(value)
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(_value_text(element) for element in value)}]"
    if hasattr(value, "__index__"):
        return str(value.__index__())
    if not hasattr(value, "__float__"):
        raise ConfigError(f"{value!r} has no text; expected a number")
    return repr(float(value)).removesuffix(".0")
