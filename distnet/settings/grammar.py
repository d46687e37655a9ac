"""Values as text, for the command line and for files, and the way back: :func:`as_text`.

::

    momentum(0.05, momentum=0.9, nesterov=true)          an optimizer; what is left out has its default
    adam(cosine(0.001, updates=10000, warmup=500))       with a schedule in the place of its learning rate
    cosine(updates=10000, warmup=500, final=0)           a schedule, from a learning rate that is said elsewhere
    group(learning_rate_multiplier=2, weight_decay=0)    the settings of a group of tensors
    group(momentum=0.8)                                  any other setting of the optimizer, for the group

Names and settings are those of the Python values: ``cosine`` is :class:`~distnet.CosineDecay`, ``exponential``
:class:`~distnet.ExponentialDecay`, ``piecewise`` :class:`~distnet.PiecewiseConstant`; ``constant`` is one learning rate
for ever. Every schedule takes ``warmup``, the updates of a :class:`~distnet.Warmup` that comes before it, and
``warmup_start``, where that begins.

:mod:`distnet.settings.calls` reads the text, of at most 4,096 characters, and never runs it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias, TypeVar

from distnet.errors import ConfigError
from distnet.optimizers import OPTIMIZERS, Group, Optimizer
from distnet.schedules import (
    CosineDecay,
    ExponentialDecay,
    LearningRate,
    PiecewiseConstant,
    Schedule,
    Warmup,
    check_number,
)
from distnet.settings.calls import Call, CallText, Kind, Vocabulary, bounded, shown, value_text
from distnet.tuning import Tuning

__all__ = [
    "as_text",
    "call_of",
    "optimizer_of",
    "parse_group",
    "parse_optimizer",
    "parse_schedule",
    "parse_tuning",
    "read_optimizer",
    "read_schedule",
]

_EXAMPLES: Final = {
    "optimizer": "momentum(0.05, momentum=0.9)",
    "schedule": "cosine(updates=10000, warmup=500)",
    "group": "group(learning_rate_multiplier=2, weight_decay=0)",
    "tuning": "tuning(spin=0)",
}


Made = TypeVar("Made")
Value: TypeAlias = "Optimizer | LearningRate | Group | Tuning"


# ---- what there is ---------------------------------------------------------------------------------------------------
_SCHEDULES: Final[Mapping[str, type[Any] | None]] = {
    "constant": None,
    "cosine": CosineDecay,
    "exponential": ExponentialDecay,
    "piecewise": PiecewiseConstant,
}
_WARMUP: Final = ("warmup", "warmup_start")
_NEEDED: Final[Mapping[str, Any]] = {  # values for messages
    "learning_rate": 0.1,
    "updates": 10_000,
    "factor": 0.1,
    "boundaries": [100, 200],
    "learning_rates": [0.1, 0.01, 0.001],
}
_LISTS: Final = {"betas": "[0.9, 0.999]", "boundaries": "[100, 200]", "learning_rates": "[0.1, 0.01, 0.001]"}


def _kind(value: type[Any]) -> Kind:
    """Return what the text of a dataclass takes: its fields, the first ones also without their names."""
    fields = dataclasses.fields(value)
    return Kind(
        settings=tuple(field.name for field in fields),
        positional=tuple(field.name for field in fields if not field.kw_only),
        lists=_LISTS,
        words=("congestion_control",),
        nested={"learning_rate": "schedule"},
    )


def _schedule_kind(value: type[Any] | None) -> Kind:
    """Return what the text of a schedule takes: all but the learning rate by name, since that may stand elsewhere."""
    own = ("learning_rate",) if value is None else tuple(field.name for field in dataclasses.fields(value))
    first = tuple(name for name in own if name == "learning_rate")
    return Kind(settings=own + _WARMUP, positional=first, lists=_LISTS)


_OF_GROUP: Final = ("learning_rate_multiplier", "weight_decay")


def _group_kind() -> Kind:
    """Return what the text of a group takes: what is its own, and all settings of optimizers that it may have."""
    settings = dict.fromkeys(_OF_GROUP)
    for optimizer in OPTIMIZERS.values():
        settings |= dict.fromkeys(field.name for field in dataclasses.fields(optimizer))
    for name in ("learning_rate", "clip_value", "clip_norm"):
        del settings[name]
    return Kind(settings=tuple(settings), positional=_OF_GROUP, lists=_LISTS)


_VOCABULARY: Final[Vocabulary] = {
    "optimizer": {name: _kind(value) for name, value in OPTIMIZERS.items()},
    "schedule": {name: _schedule_kind(value) for name, value in _SCHEDULES.items()},
    "group": {"group": _group_kind()},
    "tuning": {"tuning": _kind(Tuning)},
}


def _text(what: str, text: str) -> CallText:
    return CallText(what, text, _VOCABULARY, _EXAMPLES)


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
            own = value_text(call.settings["learning_rate"])
            raise ConfigError(
                f"schedule {shown(text)} says the learning rate {own} where {value_text(learning_rate)} is given "
                "already; give it once, and other settings by name, such as updates=10000"
            )
        call = Call(call.name, {"learning_rate": learning_rate, **call.settings})
    return _made(lambda: _schedule_of(call), "schedule", text)


def parse_group(text: str) -> tuple[str, Group]:
    """Return the pattern of names and the settings that ``"*bias*=group(learning_rate_multiplier=2)"`` says.

    Raises:
        ConfigError: as :func:`parse_optimizer`.
    """
    names = list(re.finditer(r"=(?=\s*\w+\s*(\(|$))", bounded("group", text, _EXAMPLES["group"])))
    pattern = text[: names[-1].start()].strip() if names else ""
    if not pattern:
        raise ConfigError(
            f"group {shown(text)} is not PATTERN=group(…); expected one such as *bias*={_EXAMPLES['group']}"
        )
    call = _text("group", text[names[-1].end() :]).read()
    own = {name: value for name, value in call.settings.items() if name in _OF_GROUP}
    others = {name: value for name, value in call.settings.items() if name not in _OF_GROUP}
    return pattern, _made(lambda: Group(**own, settings=others), "group", text)


def parse_tuning(text: str) -> Tuning:
    """Return the fast paths that ``"tuning(spin=0, deliver=false)"`` says.

    Raises:
        ConfigError: as :func:`parse_optimizer`.
    """
    call = _text("tuning", text).read()
    return _made(lambda: Tuning(**call.settings), "tuning", text)


def read_optimizer(text: str) -> Call:
    """Return what a text says of an optimizer, as :func:`parse_optimizer` reads it, without its defaults."""
    return _text("optimizer", text).read()


def read_schedule(text: str) -> Call | float:
    """Return what a text says of a learning rate: a schedule's settings, or a number."""
    return _text("schedule", text).read_number_or_call()


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
    fields = () if kind is None else dataclasses.fields(kind)
    needed = [field.name for field in fields if field.default is dataclasses.MISSING] or ["learning_rate"]
    if missing := [name for name in needed if name not in settings]:
        said = {name: value for name, value in settings.items() if name != "learning_rate"}
        example = Call(call.name, {name: _NEEDED[name] for name in missing} | said)
        raise ConfigError(f"{call.name} needs {' and '.join(missing)}, as in {value_text(example)}")
    if kind is None:
        check_number("learning_rate", settings["learning_rate"])
    then: LearningRate = settings["learning_rate"] if kind is None else kind(**settings)
    if warmup is None:
        if start is not None:
            raise ConfigError("warmup_start was given without warmup, the number of updates that it takes")
        return then
    return Warmup(warmup, then, 0.0 if start is None else start)


def _made(make: Callable[[], Made], what: str, text: str) -> Made:
    try:
        return make()
    except ConfigError as error:
        raise ConfigError(f"{what} {shown(text)}: {error}") from error


# ---- values to text --------------------------------------------------------------------------------------------------
def as_text(value: Value, *, complete: bool = False) -> str:
    """Return the text that says a value; parsing it gives an equal one.

    Args:
        value: an optimizer, a learning rate, a group, or fast paths.
        complete: also what has its default, except for the choice of a dialect.

    Raises:
        ConfigError: a value of another kind.
    """
    described = call_of(value, complete=complete) if _has_name(value) else value
    return value_text(described)


def call_of(value: Any, *, complete: bool = False) -> Call:
    """Return a value's name and settings: those that are not their defaults, or also most of those that are."""
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
        if isinstance(value, Group) and field.name == "settings":
            settings |= setting
            continue
        everything = complete and "dialect" not in field.metadata
        wanted = setting is not None if everything else setting != field.default
        if wanted or field.name == "learning_rate":
            settings[field.name] = call_of(setting, complete=complete) if isinstance(setting, Schedule) else setting
    return Call(name, settings)


def _has_name(value: object) -> bool:
    return isinstance(value, (Optimizer, Schedule, Group, Tuning))
