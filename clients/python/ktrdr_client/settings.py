"""What the CLI takes from the environment; the one place that reads it."""

from __future__ import annotations

import os
import pwd
import re
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
        tls_ca: CA of the backend; None is plain text.
        tls_cert, tls_key: Own certificate, for a backend that wants to see one.
        token_file: Text of the token that is sent.
        is_debug: Show tracebacks.
    """

    backend: str | None
    data_dir: Path
    bars_dir: Path
    strategies_dir: Path
    embedded_idle_s: float
    user: str
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    token_file: Path | None = None
    is_debug: bool

    @classmethod
    def load(
        cls,
        *,
        backend: str | None = None,
        data_dir: Path | None = None,
        tls_ca: Path | None = None,
        tls_cert: Path | None = None,
        tls_key: Path | None = None,
        token_file: Path | None = None,
        is_debug: bool = False,
        environment: Mapping[str, str] | None = None,
    ) -> Self:
        """Return the settings: flags first, then KTRDR_* of the environment, then defaults."""
        values = os.environ if environment is None else environment
        directory = data_dir or Path(values.get("KTRDR_DATA_DIR") or DEFAULT_DATA_DIR)
        token = _file(token_file, values.get("KTRDR_TOKEN_FILE"))
        return cls(
            backend=backend or values.get("KTRDR_BACKEND") or None,
            data_dir=directory.expanduser().resolve(),
            bars_dir=Path(values.get("KTRDR_BARS_DIR") or "data").expanduser().resolve(),
            strategies_dir=Path(values.get("KTRDR_STRATEGIES_DIR") or "strategies").expanduser().resolve(),
            embedded_idle_s=_idle_s(values.get("KTRDR_EMBEDDED_IDLE_S")),
            # A token says by itself whose trainings are started.
            user=values.get("KTRDR_USER") or ("" if token is not None else _login_name(values)),
            tls_ca=_file(tls_ca, values.get("KTRDR_TLS_CA")),
            tls_cert=_file(tls_cert, values.get("KTRDR_TLS_CERT")),
            tls_key=_file(tls_key, values.get("KTRDR_TLS_KEY")),
            token_file=token,
            is_debug=is_debug,
        )


_OF_SERVICES = re.compile("KTRDR_(BACKEND|TRAINER)_(TLS_(CERT|KEY|CA)|(PEER_)?TOKEN_FILE|PEER_CA|INSECURE)")


def environment_of_embedded() -> dict[str, str]:
    """Return the environment of embedded services: they are on loopback, and have neither TLS nor tokens."""
    return {name: value for name, value in os.environ.items() if not _OF_SERVICES.fullmatch(name)}


def _file(flag: Path | None, variable: str | None) -> Path | None:
    path = flag or (Path(variable) if variable else None)
    return None if path is None else path.expanduser().absolute()


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
