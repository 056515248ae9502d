"""The log format of all processes: text, or one JSON object a line with ``LOG_FORMAT=json``."""

from __future__ import annotations

import logging
import os
import sys
from datetime import UTC, datetime
from typing import Any

import orjson

FORMATS = ("text", "json")

# Fields of every JSON line of this process.
_about: dict[str, Any] = {}


class JsonFormatter(logging.Formatter):
    """Formats a record as a line of JSON, with the fields of ``extra={"fields": {...}}``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
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
        # A path or a request may contain a lone surrogate, which UTF-8 cannot encode.
        line = {key: _encodable(value) for key, value in line.items()}
        return orjson.dumps(line, default=str).decode()


class TextFormatter(logging.Formatter):
    """Formats a record as its message, with the level in front of warnings and errors."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback if there is one."""
        line = super().format(record)
        return line if record.levelno < logging.WARNING else f"{record.levelname.lower()}: {line}"


class _StderrHandler(logging.Handler):
    """Writes to the current ``sys.stderr``, which tests replace."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr, flush=True)


_stderr = _StderrHandler()


def to_stderr(level: int = logging.INFO) -> None:
    """Log to stderr, as commands do; stdout is for results.

    Args:
        level: Lowest level that is logged.
    """
    _stderr.setFormatter(formatter())
    root = logging.getLogger()
    root.setLevel(level)
    root.addHandler(_stderr)
    if (chosen := os.environ.get("LOG_FORMAT") or "text") not in FORMATS:
        root.warning("LOG_FORMAT=%s: expected %s; text is used", chosen, " or ".join(FORMATS))


def formatter() -> logging.Formatter:
    """Return the formatter that ``LOG_FORMAT`` selects."""
    return JsonFormatter() if is_json() else TextFormatter()


def is_json() -> bool:
    """Return whether ``LOG_FORMAT`` selects JSON."""
    return os.environ.get("LOG_FORMAT") == "json"


def configure_worker() -> None:
    """Log from a TorchServe worker: our messages to stdout, others from WARNING on."""
    # At INFO the worker logs several lines a batch, and TorchServe reads and parses each of them.
    logging.getLogger().setLevel(logging.WARNING)
    # Not on the root logger: TorchServe parses the lines that its own metrics logger prints.
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(formatter())
    ours = logging.getLogger(__package__)
    ours.addHandler(handler)
    ours.propagate = False


def about(**fields: Any) -> None:
    """Add fields to the JSON lines of this process, such as the model and version at work."""
    _about.update(fields)


def _encodable(value: Any) -> Any:
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value
