"""What `--json` prints: one JSON object a line, schemas in docs/cli.md."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from datetime import date, datetime
from enum import Enum
from typing import Any

from ktrdr_core.clock import to_iso
from ktrdr_core.domain.progress import ProgressEvent
from ktrdr_core.domain.spec import TrainingSpec


def line(kind: str, value: object) -> str:
    """Return the line of a dataclass or mapping, with `"type": kind` first."""
    return json.dumps({"type": kind, **_plain(value)}, allow_nan=False, ensure_ascii=False)


def event_line(event: ProgressEvent) -> str:
    """Return the line of one progress event; the fields of its detail stand beside its own."""
    own = {name: value for name, value in _plain(event).items() if name != "detail"}
    return line("event", {**own, "kind": event.detail.kind, **_plain(event.detail)})


def _plain(value: object) -> Any:
    if isinstance(value, TrainingSpec):
        # The strategy's text is long and known to whoever sent it.
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value) if f.name != "strategy_yaml"}
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, datetime):
        return to_iso(value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, float) and value != value:
        return None
    return value
