"""Developer logs: one line an event on stderr, key=value context at its end.

Progress for people and programs never goes through here (see `domain/progress.py`).
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any


class ContextLogger(logging.LoggerAdapter[logging.Logger]):
    """Appends its context (`training_id=... attempt=...`) to each line."""

    def process(self, msg: str, kwargs: MutableMapping[str, Any]) -> tuple[str, MutableMapping[str, Any]]:
        context = " ".join(f"{key}={value}" for key, value in (self.extra or {}).items())
        return (f"{msg} {context}" if context else msg), kwargs


def get_logger(name: str, context: Mapping[str, object] | None = None) -> ContextLogger:
    """Return a logger whose every line ends with `context`."""
    return ContextLogger(logging.getLogger(name), dict(context or {}))


def configure_logging(level: str = "INFO", *, service: str) -> None:
    """Send every log record of this process to stderr, one line each."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter(f"%(asctime)s %(levelname)s {service} %(name)s %(message)s")
    formatter.default_msec_format = "%s.%03d"
    handler.setFormatter(formatter)
    logging.basicConfig(level=level, handlers=[handler], force=True)
