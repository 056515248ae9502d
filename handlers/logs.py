"""How everything here logs: text for people, or with ``LOG_FORMAT=json`` a JSON object a line."""

from __future__ import annotations

import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any

import orjson

FORMATS = ("text", "json")

# What every line of this process is about.
_about: dict[str, Any] = {}


class JsonFormatter(logging.Formatter):
    """A log record as one line of JSON, with the fields that came as ``extra={"fields": ...}``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname,
            "module": record.module,
            "message": record.getMessage(),
            **_about,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        # A lone surrogate, of a path or a request, is not UTF-8.
        line = {key: _encodable(value) for key, value in line.items()}
        return orjson.dumps(line, default=str).decode()


class TextFormatter(logging.Formatter):
    """The message, marked where something is wrong."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the traceback if there is one."""
        line = super().format(record)
        return line if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {line}"


class _StderrHandler(logging.Handler):
    """Writes to what is stderr now, which tests replace."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


_stderr = _StderrHandler()


def to_stderr(level: int = logging.INFO) -> None:
    """Let a command's log go to stderr; stdout is for results.

    Args:
        level: The least that is logged.
    """
    _stderr.setFormatter(formatter())
    root = logging.getLogger()
    root.setLevel(level)
    root.addHandler(_stderr)
    if (chosen := os.environ.get("LOG_FORMAT") or "text") not in FORMATS:
        root.warning("LOG_FORMAT=%s: expected %s; text is used", chosen, " or ".join(FORMATS))


def formatter() -> logging.Formatter:
    """The one that ``LOG_FORMAT`` chooses."""
    return JsonFormatter() if os.environ.get("LOG_FORMAT") == "json" else TextFormatter()


def about(**fields: Any) -> None:
    """Name what this process works on, such as a model and a version, in its JSON lines."""
    _about.update(fields)


def _encodable(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
