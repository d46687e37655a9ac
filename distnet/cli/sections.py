"""Commands with many options: help in sections, and what an option that there is not probably meant."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Mapping

import click

from distnet._private.suggestions import meant_by

__all__ = ["SectionedCommand"]

_SECTIONS: Mapping[str, tuple[str, ...]] = {
    "The job": (
        *("semantics", "workers", "servers", "address", "advertise", "transport", "push_format", "pull_format"),
        *("ema_decay", "config_file"),
    ),
    "The optimizer": ("optimizer", "learning_rate", "schedule", "groups", "clip_norm", "clip_value"),
    "The training": (
        *("trainer", "recipe", "batch_size", "epochs", "steps", "images", "data", "holdout", "seed", "precision"),
        *("overlap", "evaluate", "timeout"),
    ),
    "Workers": (
        *("threads_per_worker", "on_loss", "round_timeout", "reconnect_timeout", "max_restarts"),
        *("when_a_worker_fails", "join", "ranks", "framework_logs"),
    ),
    "Checkpoints": ("checkpoint", "checkpoint_every", "keep_checkpoints", "restore", "resume"),
    "Semantics and speed, in detail": ("reduction", "max_inflight", "joins", "replies", "guard", "tuning"),
}
_OTHERS = "Other"


class SectionedCommand(click.Command):
    """A command whose options stand in sections; those that no section names come last."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        """Read the options; say of an unknown one what was probably meant."""
        repeated = self._repeated(context, args)
        try:
            left = super().parse_args(context, args)
            for option in repeated:
                value = context.params.get(option.name or "")
                click.echo(f"distnet: {option.opts[0]} is given more than once; the last counts: {value}", err=True)
            return left
        except click.NoSuchOption as error:
            flags = {flag for parameter in self.params for flag in parameter.opts}
            known = {flag.removeprefix("--").replace("-", "_"): flag for flag in flags if flag.startswith("--")}
            meant = [known[name] for name in meant_by(error.option_name.lstrip("-").replace("-", "_"), known)]
            if not meant:
                raise
            question = f"Did you mean {' or '.join(map(repr, meant))}?"
            message = f"No such option {error.option_name!r}. {question}"
            raise click.NoSuchOption(error.option_name, message, ctx=error.ctx) from None

    def _repeated(self, context: click.Context, args: list[str]) -> list[click.Option]:
        """Return the options that stand there more than once, and count once."""
        with contextlib.suppress(click.UsageError):  # which is raised where they are read
            _, _, order = self.make_parser(context).parse_args(list(args))
            return [
                option
                for option, times in collections.Counter(order).items()
                if isinstance(option, click.Option) and times > 1 and not option.multiple and not option.is_eager
            ]
        return []

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, section by section."""
        section_of = {name: heading for heading, names in _SECTIONS.items() for name in names}
        places = {name: place for names in _SECTIONS.values() for place, name in enumerate(names)}
        lines: dict[str, list[tuple[int, tuple[str, str]]]] = {heading: [] for heading in (*_SECTIONS, _OTHERS)}
        for parameter in self.get_params(context):
            record = parameter.get_help_record(context) if isinstance(parameter, click.Option) else None
            if record is not None:
                name = parameter.name or ""
                lines[section_of.get(name, _OTHERS)].append((places.get(name, 0), record))
        for heading, records in lines.items():
            if records:
                with formatter.section(heading):
                    formatter.write_dl([record for _, record in sorted(records, key=lambda line: line[0])])
