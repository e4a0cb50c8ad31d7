"""Developer logs: one line an event on stderr, with the context it happened in.

Progress for people and programs never goes through here (see `domain/progress.py`).
"""

from __future__ import annotations

import json
import logging
import math
import re
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

LogFormat = Literal["text", "json"]

_EMPTY: Mapping[str, object] = {}
_current: ContextVar[Mapping[str, object]] = ContextVar("ktrdr_log_context", default=_EMPTY)
_FIELD = "ktrdr_context"  # of a LogRecord: what its logger, as opposed to where it was called, knows

_BREAKS_A_LINE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_NEEDS_QUOTES = re.compile(r"[\s=\"\\]")


class ContextLogger(logging.LoggerAdapter[logging.Logger]):
    """Adds its context (`training_id=... attempt=...`) to each line."""

    def process(self, msg: str, kwargs: MutableMapping[str, Any]) -> tuple[str, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(kwargs.get("extra") or {}), _FIELD: self.extra}
        return msg, kwargs


def get_logger(name: str, context: Mapping[str, object] | None = None) -> ContextLogger:
    """Return a logger whose every line has `context`."""
    return ContextLogger(logging.getLogger(name), dict(context or {}))


@contextmanager
def log_context(**values: object) -> Iterator[None]:
    """Add `values` to every line that any logger writes in the block, in tasks that are started in it too.

    It nests; an inner value replaces an outer one of the same name. In an asynchronous generator the block must not
    hold a `yield`: another task may go on with it.
    """
    token = _current.set({**_current.get(), **values})
    try:
        yield
    finally:
        _current.reset(token)


def configure_logging(level: str = "INFO", *, service: str, format: LogFormat = "text") -> None:
    """Send every log record of this process to stderr, one line each.

    Args:
        level: Least severe level that is written.
        service: What this process is called on each line.
        format: "text" for people, with key=value at the end; "json" for programs, one object a line with time, level,
            service, logger, message, the context and, with an exception, its traceback.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(service) if format == "json" else _TextFormatter(service))
    logging.basicConfig(level=level, handlers=[handler], force=True)


class _TextFormatter(logging.Formatter):
    """Every line that begins an event begins with its time; those of a traceback begin with a tab."""

    default_msec_format = "%s.%03d"

    def __init__(self, service: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {service} %(name)s %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  the name of the base class
        line = _BREAKS_A_LINE.sub(_escaped, super().formatMessage(record))
        return " ".join([line, *(f"{key}={_quoted(value)}" for key, value in _context_of(record).items())])

    def formatException(self, ei: Any) -> str:  # noqa: N802
        return _indented(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802
        return _indented(stack_info)


class _JsonFormatter(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        context = {key: _plain(value) for key, value in _context_of(record).items() if key not in line}
        return json.dumps(line | context)


def _context_of(record: logging.LogRecord) -> dict[str, object]:
    """Return each key once: what the logger says wins over where it was called."""
    return {**_current.get(), **(getattr(record, _FIELD, None) or _EMPTY)}


def _quoted(value: object) -> str:
    text = str(value)
    if text and not _NEEDS_QUOTES.search(text) and not _BREAKS_A_LINE.search(text):
        return text
    return json.dumps(text, ensure_ascii=bool(_BREAKS_A_LINE.search(text)))


def _plain(value: object) -> object:
    """Return the value as JSON can have it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, (str, int)) else str(value)


def _escaped(match: re.Match[str]) -> str:
    return repr(match[0])[1:-1]


def _indented(text: str) -> str:
    return "\n".join(f"\t{_BREAKS_A_LINE.sub(_escaped, line)}" for line in text.split("\n"))
