"""What a job is told, in the words of the command line and of files: one frozen value for ``run``, ``serve`` and
``train``, checked once, that makes the arguments of a :class:`~distnet.ParameterServer`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal, TypeVar

from distnet._private import bounds
from distnet._private.suggestions import suggest
from distnet.checkpoint import parse_every
from distnet.errors import ConfigError
from distnet.formats import format_spec
from distnet.optimizers import SGD, Group, Optimizer
from distnet.schedules import LearningRate, check_number, start_of, started_from
from distnet.semantics import SEMANTICS, Semantics
from distnet.settings.calls import Call
from distnet.settings.grammar import (
    as_text,
    parse_group,
    parse_optimizer,
    parse_schedule,
    parse_tuning,
    read_optimizer,
    read_schedule,
)

__all__ = ["DEFAULT_SEMANTICS", "DEFAULT_WORKERS", "JobSettings", "check_choice", "check_whole", "join_settings"]

Settings = TypeVar("Settings", bound="JobSettings")

DEFAULT_SEMANTICS = "async-lockfree"
DEFAULT_WORKERS = 2
_MOST_THREADS = 4096  # of a worker
_MOST_RESTARTS = 1_000_000
_AFTER_FAILURE = ("stop", "continue")
_OF_SEMANTICS = ("joins", "replies", "guard", "reduction", "max_inflight", "on_loss", "round_timeout")
_KIND = ("joins", "replies", "guard", "minimum_servers")  # of semantics: what their names stand for
_OF_OPTIMIZER = ("learning_rate", "clip_norm", "clip_value")  # what its text may say, too
_PASSED_ON = (
    "servers",
    "advertise",
    "reconnect_timeout",
    "checkpoint",
    "checkpoint_every",
    "keep_checkpoints",
    "restore",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class JobSettings:
    """The settings of a job's servers, and what is done about workers that fail.

    None: not given. Then the server's own default counts or, where it goes on from a checkpoint, what that says.

    Attributes:
        semantics: a name of ``distnet.SEMANTICS``; None: ``async-lockfree``.
        workers: how many; None: 2.
        servers: shards; None: 1, or 2 for ``async-sharded``.
        address: where shard 0 listens; None: as the command has it.
        advertise: the address that clients are told instead of that.
        optimizer: as ``distnet.settings.grammar`` reads it, such as ``"momentum(0.05, momentum=0.9)"``; None:
            ``sgd(0.01)``.
        learning_rate: instead of one in ``optimizer``.
        schedule: as ``distnet.settings.grammar`` reads it, from the learning rate down.
        groups: texts such as ``"*bias*=group(learning_rate_multiplier=2)"``, or a table of patterns and groups.
        clip_norm: instead of one in ``optimizer``.
        clip_value: instead of one in ``optimizer``.
        ema_decay: decay of the moving average; 0: none is kept.
        push_format: how gradients travel over TCP.
        pull_format: how parameters do.
        joins: this and what follows replace what the named semantics has, see :class:`distnet.Semantics`.
        replies: see there.
        guard: see there.
        reduction: see there.
        max_inflight: see there.
        on_loss: see there; None: ``"wait"`` where an update joins all and ``checkpoint`` is given, or failed workers
            are started again; else ``"shrink"``.
        round_timeout: see there; seconds.
        reconnect_timeout: seconds that a worker whose connection broke is waited for.
        tuning: as ``distnet.settings.grammar`` reads it, such as ``"tuning(spin=0)"``.
        checkpoint: a folder for checkpoints.
        checkpoint_every: such as ``"500updates"`` or ``"10min"``.
        keep_checkpoints: how many.
        restore: a checkpoint, or a folder of them, to go on from.
        max_restarts: how often a worker that failed is started again; None: never.
        when_a_worker_fails: for good: ``"stop"`` the job or ``"continue"`` without it; None: see :attr:`after_failure`.
        threads_per_worker: of each worker's numeric libraries.
    """

    semantics: str | None = None
    workers: int | None = None
    servers: int | None = None
    address: str | None = None
    advertise: str | None = None
    optimizer: str | None = None
    learning_rate: float | None = None
    schedule: str | None = None
    groups: tuple[str, ...] = ()
    clip_norm: float | None = None
    clip_value: float | None = None
    ema_decay: float | None = None
    push_format: str | None = None
    pull_format: str | None = None
    joins: str | None = None
    replies: str | None = None
    guard: str | None = None
    reduction: str | None = None
    max_inflight: int | None = None
    on_loss: str | None = None
    round_timeout: float | None = None
    reconnect_timeout: float | None = None
    tuning: str | None = None
    checkpoint: str | None = None
    checkpoint_every: str | None = None
    keep_checkpoints: int | None = None
    restore: str | None = None
    max_restarts: int | None = None
    when_a_worker_fails: str | None = None
    threads_per_worker: int | None = None

    known_semantics: ClassVar[tuple[str, ...]] = tuple(SEMANTICS)

    def __post_init__(self) -> None:
        object.__setattr__(self, "groups", _group_texts(self.groups))
        if self.semantics is not None:
            check_choice("semantics", self.semantics, self.known_semantics)
        if self.when_a_worker_fails is not None:
            check_choice("when_a_worker_fails", self.when_a_worker_fails, _AFTER_FAILURE)
        check_whole("workers", self.workers, 1, bounds.most_workers("one"))
        check_whole("servers", self.servers, 1, bounds.MOST_SERVERS)
        check_whole("threads_per_worker", self.threads_per_worker, 1, _MOST_THREADS)
        check_whole("max_inflight", self.max_inflight, 1, bounds.MOST_IN_FLIGHT)
        check_whole("keep_checkpoints", self.keep_checkpoints, 1, bounds.MOST_KEPT_CHECKPOINTS)
        check_whole("max_restarts", self.max_restarts, 0, _MOST_RESTARTS)
        self._check_numbers()
        self._check_places()
        self._check_values()

    def _check_numbers(self) -> None:
        for name in ("learning_rate", "ema_decay"):
            if (value := getattr(self, name)) is not None:
                check_number(name, value, below=1.0 if name == "ema_decay" else float("inf"))
        for name in ("clip_norm", "clip_value"):
            if (value := getattr(self, name)) is not None:
                check_number(name, value, above=0.0)
        for name in ("reconnect_timeout", "round_timeout"):
            if (value := getattr(self, name)) is not None:
                bounds.check_seconds(name, value, above_zero=name == "round_timeout")
        for name in ("address", "advertise", "checkpoint", "restore"):
            if not isinstance(getattr(self, name), str | None):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; expected a text")

    def _check_places(self) -> None:
        """Refuse what is said in two places: beside the optimizer and in its text, or by the schedule and elsewhere."""
        said = {} if self.optimizer is None else dict(read_optimizer(self.optimizer).settings)
        by_optimizer = f"--optimizer {self.optimizer!r}"
        for name in _OF_OPTIMIZER:
            if getattr(self, name) is not None and name in said:
                raise _said_twice(_words(name), f"{_option(name)} {getattr(self, name)}", by_optimizer)
        if self.schedule is None:
            return
        by_schedule = f"--schedule {self.schedule!r}"
        if isinstance(said.get("learning_rate"), Call):
            raise _said_twice("schedule", by_schedule, by_optimizer)
        if _has_own_rates(read_schedule(self.schedule)):
            if self.learning_rate is not None:
                raise _said_twice("learning rate", f"--learning-rate {self.learning_rate}", by_schedule)
            if "learning_rate" in said:
                raise _said_twice("learning rate", by_optimizer, by_schedule)

    def _check_values(self) -> None:
        """Make every value once, so that what is wrong shows before anything is started."""
        self.optimizer_from(SGD(0.01))
        self.group_values()
        if self.tuning is not None:
            parse_tuning(self.tuning)
        for what, text in (("push", self.push_format), ("pull", self.pull_format)):
            if text is not None:
                format_spec(text, what=what)
        if self.checkpoint_every is not None:
            parse_every(self.checkpoint_every)
        if (self.semantics or DEFAULT_SEMANTICS) in SEMANTICS:
            semantics = self.semantics_value()
            check_whole("workers", self.workers, 1, bounds.most_workers(semantics.joins))
            fewest = semantics.minimum_servers
            if self.servers is not None and self.servers < fewest:
                raise ConfigError(f"{self.semantics} needs at least {fewest} servers, not {self.servers}")

    # ---- the values --------------------------------------------------------------------------------------------------
    def semantics_value(self) -> Semantics:
        """Return the named semantics with what was given beside its name; ``on_loss`` is as said there."""
        named = SEMANTICS[self.semantics or DEFAULT_SEMANTICS]
        semantics = dataclasses.replace(named, **self._given(*_OF_SEMANTICS))
        if semantics.joins == "all" and self.on_loss is None and (self.checkpoint is not None or self.restarts):
            # Else the last checkpoint would hold a round without a lost worker, which an uninterrupted job does not
            # have; and a worker that starts again would do its steps alone, after the others.
            return dataclasses.replace(semantics, on_loss="wait")
        return semantics

    def optimizer_from(
        self,
        base: Optimizer,
        schedule: Callable[[float], LearningRate] = float,
        *,
        kept: Sequence[str] = ("learning_rate",),
    ) -> Optimizer:
        """Return the optimizer: what was given of it, the rest as a base has it.

        Args:
            base: counts where no optimizer was given. Its learning rate is a number.
            schedule: makes the learning rate out of the number to start from, where no schedule was given.
            kept: those settings of the base that an optimizer of the same kind has where its text leaves them out.
        """
        made = base if self.optimizer is None else self._optimizer_beside(base, kept)
        rate = made.learning_rate if self.learning_rate is None else self.learning_rate
        if self.schedule is not None:
            own = _has_own_rates(read_schedule(self.schedule))
            rate = parse_schedule(self.schedule, None if own else rate)  # type: ignore[arg-type]  # see _check_places
        elif isinstance(rate, (int, float)):
            rate = schedule(rate)
        return dataclasses.replace(made, learning_rate=rate, **self._given("clip_norm", "clip_value"))

    def _optimizer_beside(self, base: Optimizer, kept: Sequence[str]) -> Optimizer:
        assert self.optimizer is not None
        made = parse_optimizer(self.optimizer)
        if type(made) is not type(base):
            return made
        said = read_optimizer(self.optimizer).settings
        return dataclasses.replace(made, **{name: getattr(base, name) for name in kept if name not in said})

    def group_values(self) -> dict[str, Group]:
        """Return the groups by their patterns, in order."""
        groups: dict[str, Group] = {}
        for text in self.groups:
            pattern, group = parse_group(text)
            if pattern in groups:
                raise ConfigError(f"two groups have the pattern {pattern!r}; give one")
            groups[pattern] = group
        return groups

    def filled_from(self, saved: Mapping[str, Any]) -> JobSettings:
        """Return the settings with what a checkpoint says where nothing was given.

        A learning rate that was given starts the checkpoint's schedule; an optimizer of the checkpoint's kind has the
        checkpoint's settings where its text says none.

        Args:
            saved: the arguments of the server that wrote it, as ``distnet.checkpoint.load(path).arguments()`` has them.
        """
        values = self._semantics_from(saved.get("semantics")) | self._optimizer_from(saved.get("optimizer"))
        for name in ("workers", "ema_decay", "push_format", "pull_format", "reconnect_timeout"):
            if getattr(self, name) is None and name in saved:
                values[name] = saved[name]
        if self.checkpoint is not None and self.checkpoint_every is None and "checkpoint_every" in saved:
            values["checkpoint_every"] = saved["checkpoint_every"]
        if not self.groups:
            values["groups"] = [f"{pattern}={as_text(group)}" for pattern, group in saved.get("groups", {}).items()]
        filled = dataclasses.replace(self, **values)
        if self.servers is None and "servers" in saved:
            servers = max(saved["servers"], filled.semantics_value().minimum_servers)
            filled = dataclasses.replace(filled, servers=servers)
        if self.on_loss is None and filled.on_loss is not None:  # not given here, so that a failure means what it did
            filled = dataclasses.replace(
                filled, when_a_worker_fails=dataclasses.replace(filled, on_loss=None).after_failure
            )
        return filled

    def _semantics_from(self, saved: Semantics | None) -> dict[str, Any]:
        if self.semantics is not None or saved is None:
            return {}
        found = [
            name for name, known in SEMANTICS.items() if all(getattr(known, f) == getattr(saved, f) for f in _KIND)
        ]
        named = found[0] if found else DEFAULT_SEMANTICS
        changed = {
            name: getattr(saved, name)
            for name in _OF_SEMANTICS
            if getattr(self, name) is None and getattr(saved, name) != getattr(SEMANTICS[named], name)
        }
        return {"semantics": named, **changed}

    def _optimizer_from(self, saved: Optimizer | None) -> dict[str, Any]:
        said = None if self.optimizer is None else read_optimizer(self.optimizer)
        if saved is None or (said is not None and said.name != saved.name):
            return {}
        own_rate = said is not None and "learning_rate" in said.settings  # which then is the whole schedule
        made = self.optimizer_from(
            dataclasses.replace(saved, learning_rate=start_of(saved.learning_rate)),
            float if own_rate else lambda rate: started_from(saved.learning_rate, rate),
            kept=[field.name for field in dataclasses.fields(saved)],
        )
        return {**dict.fromkeys((*_OF_OPTIMIZER, "schedule")), "optimizer": as_text(made)}

    def server_arguments(self) -> dict[str, Any]:
        """Return the keyword arguments of a ``ParameterServer``: those that were given, and the number of workers."""
        arguments: dict[str, Any] = {"processes": True, **self._given(*_PASSED_ON, "push_format", "pull_format")}
        if self.workers is not None or self.restore is None:
            arguments["workers"] = self.workers or DEFAULT_WORKERS
        if self.address is not None:
            arguments["address"] = self.address
        if self._given("semantics", *_OF_SEMANTICS):
            arguments["semantics"] = self.semantics_value()
        if self._given("optimizer", "schedule", *_OF_OPTIMIZER):
            arguments["optimizer"] = self.optimizer_from(SGD(0.01))
        if self.groups:
            arguments["groups"] = self.group_values()
        if self.ema_decay is not None:
            arguments["ema_decay"] = self.ema_decay or (None if self.restore is None else 0.0)
        if self.tuning is not None:
            arguments["tuning"] = parse_tuning(self.tuning)
        return arguments

    @property
    def leaves_the_optimizer_to_rank_0(self) -> bool:
        """Whether nothing is said of the optimizer here, so that the rank which brings the model may bring one."""
        said = self._given("optimizer", "schedule", *_OF_OPTIMIZER)
        return not said and not self.groups and self.restore is None

    @property
    def restarts(self) -> int:
        """How often a worker that failed is started again."""
        return self.max_restarts or 0

    @property
    def after_failure(self) -> Literal["stop", "continue"]:
        """What happens when a worker has failed for good.

        What was given; else the job stops where an update joins a gradient of every worker, unless ``on_loss`` was
        given, and goes on without the worker elsewhere.
        """
        if self.when_a_worker_fails is not None:
            return "stop" if self.when_a_worker_fails == "stop" else "continue"
        return "stop" if self.semantics_value().joins == "all" and self.on_loss is None else "continue"

    # ---- files -------------------------------------------------------------------------------------------------------
    @classmethod
    def from_mapping(cls: type[Settings], values: Mapping[str, Any]) -> Settings:
        """Make settings from a file's and the command line's.

        Raises:
            ConfigError: a name that is no setting, or a value of the wrong kind.
        """
        names = {field.name: field for field in dataclasses.fields(cls)}
        for name in values:
            if name not in names:
                raise ConfigError(f"no setting is named {name!r}{suggest(name, names)}")
        return cls(**values)

    def to_mapping(self) -> dict[str, Any]:
        """Return the settings that were given or have a default, by name, as JSON and TOML hold them."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        values["groups"] = list(self.groups) or None
        return {name: value for name, value in values.items() if value is not None}

    def _given(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def join_settings(file: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a file's settings with those that were given beside it, which win.

    They also win where the two say one thing in two ways: a learning rate beside the file's ``momentum(0.05)`` replaces
    the one in it, and an optimizer that says its own replaces the file's ``learning_rate``.
    """
    joined = {**file, **given}
    for name in _OF_OPTIMIZER:
        if name in given and "optimizer" in file and "optimizer" not in given:
            call = read_optimizer(joined["optimizer"])
            if not isinstance(call.settings.get(name), Call):  # a schedule is not dropped without a word
                joined["optimizer"] = str(call.without(name))
    if "optimizer" in given:
        said = read_optimizer(given["optimizer"]).settings
        dropped = {name for name in _OF_OPTIMIZER if name in said}
        dropped |= {"schedule"} if isinstance(said.get("learning_rate"), Call) else set()
        for name in dropped - set(given):
            joined.pop(name, None)
    return joined


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    """Raise :class:`~distnet.errors.ConfigError` unless a value is one of those allowed."""
    if value not in allowed:
        raise ConfigError(f"{name} is {value!r}{suggest(str(value), allowed)}")


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """Raise :class:`~distnet.errors.ConfigError` unless a value is None or a whole number in a range."""
    if value is not None:
        bounds.check_whole(name, value, least, most)


def _group_texts(groups: object) -> tuple[str, ...]:
    if isinstance(groups, Mapping):
        groups = [f"{pattern}={text}" for pattern, text in groups.items()]
    if isinstance(groups, str) or not isinstance(groups, (list, tuple)):
        raise ConfigError(f"groups is {groups!r}; expected a list such as ['*bias*={as_text(Group(2.0))}']")
    return tuple(groups)


def _has_own_rates(schedule: Call | float) -> bool:
    """Return whether a schedule says its learning rates by itself."""
    return not isinstance(schedule, Call) or schedule.name == "piecewise" or "learning_rate" in schedule.settings


def _said_twice(what: str, one: str, other: str) -> ConfigError:
    return ConfigError(f"the {what} is given in two places, {one} and {other}; give it in one of them")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
