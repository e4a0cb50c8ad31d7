"""What the CLI takes from the environment; the one place that reads it."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

DEFAULT_DATA_DIR = Path("~/.local/share/ktrdr")


@dataclass(frozen=True, kw_only=True)
class ClientSettings:
    """Settings of one invocation.

    Attributes:
        backend: host:port of the backend; None means an embedded one.
        data_dir: State of an embedded backend, and its logs.
        bars_dir: Bars an embedded backend trains on.
        strategies_dir: Strategies an embedded backend knows by name.
        embedded_idle_s: How long an embedded backend waits for work before it ends itself.
        user: Whose trainings are started; the login name where nothing else is said, "" if that is no user's name here.
        is_debug: Show tracebacks.
    """

    backend: str | None
    data_dir: Path
    bars_dir: Path
    strategies_dir: Path
    embedded_idle_s: float
    user: str
    is_debug: bool

    @classmethod
    def load(
        cls,
        *,
        backend: str | None = None,
        data_dir: Path | None = None,
        is_debug: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> Self:
        """Return the settings: flags first, then KTRDR_* of the environment, then defaults."""
        values = os.environ if environment is None else environment
        directory = data_dir or Path(values.get("KTRDR_DATA_DIR") or DEFAULT_DATA_DIR)
        return cls(
            backend=backend or values.get("KTRDR_BACKEND") or None,
            data_dir=directory.expanduser().resolve(),
            bars_dir=Path(values.get("KTRDR_BARS_DIR") or "data").expanduser().resolve(),
            strategies_dir=Path(values.get("KTRDR_STRATEGIES_DIR") or "strategies").expanduser().resolve(),
            embedded_idle_s=_idle_s(values.get("KTRDR_EMBEDDED_IDLE_S")),
            user=values.get("KTRDR_USER") or _login_name(values),
            is_debug=is_debug,
        )


def _idle_s(text: str | None) -> float:
    try:
        value = float(text) if text else 300.0
    except ValueError:
        value = 0.0
    if value <= 0:
        from ktrdr_core.errors import InvalidInputError

        raise InvalidInputError(f"KTRDR_EMBEDDED_IDLE_S must be a number of seconds above 0, was {text!r}")
    return value


def _login_name(values: Mapping[str, str]) -> str:
    """Return the login name if it may name a user of the queue, else ""."""
    from ktrdr_core.domain.scheduling import Scheduling
    from ktrdr_core.errors import InvalidSpecError

    name = next((values[key] for key in ("LOGNAME", "USER", "USERNAME") if values.get(key)), "")
    try:
        return Scheduling(user=name or pwd.getpwuid(os.getuid()).pw_name).user
    except (KeyError, InvalidSpecError):  # a user id without a name, or a name such as "DOMAIN\\someone"
        return ""
