"""How a child of DistNet's own tells its launcher: in records, one JSON object a line, each with its ``kind``."""

from __future__ import annotations

import json
import sys
from typing import Any

from distnet import errors
from distnet._private.extras import missing_module_message
from distnet.errors import DistNetError

__all__ = ["Record", "error_of", "error_record", "record_of", "say_record"]

Record = dict[str, Any]
"""What JSON can hold, with a ``kind``."""


def say_record(record: Record) -> None:
    """Write a record on standard output, at once."""
    sys.stdout.write(json.dumps(record) + "\n")
    sys.stdout.flush()


def record_of(line: str) -> Record | None:
    """Return the record that a line holds; None for a line that is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("kind"), str) else None


def error_record(error: Exception) -> Record:
    """Return an error as the record that a child says before it ends; a missing module counts as configuration."""
    if isinstance(error, ModuleNotFoundError):
        message = missing_module_message(error)
        if message is None:
            raise error
        return {"kind": "error", "error": "ConfigError", "message": message}
    return {"kind": "error", "error": type(error).__name__, "message": str(error)}


def error_of(name: str, record: Record) -> DistNetError:
    """Return a child's error as this process's own: one about the settings or the data keeps its message.

    Args:
        name: what messages call the child.
        record: what ``error_record`` made.
    """
    kind = getattr(errors, record["error"], DistNetError)
    prefix = "" if kind is errors.ConfigError else f"{name}: {record['error']}: "
    error: DistNetError = kind(prefix + record["message"])
    return error
