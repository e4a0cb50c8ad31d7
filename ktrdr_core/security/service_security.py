"""What a service is told of its security, and the rules of that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktrdr_core.addresses import is_loopback


@dataclass(frozen=True, kw_only=True)
class ServiceSecurity:
    """The files of one service. None of them: plain text, and every caller may do everything.

    Attributes:
        tls_cert, tls_key: Its certificate and private key, PEM; it serves TLS with them, and shows them to those it
            calls where these want to see one.
        tls_ca: CA whose certificates its callers must show.
        token_file: Table of the tokens it knows.
        peer_ca: CA of the services it calls; `tls_ca` without it. With neither it calls them in plain text.
        peer_token_file: Text of the token it calls them with.
        is_insecure: It may be reached from other machines without TLS and tokens.
    """

    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_ca: Path | None = None
    token_file: Path | None = None
    peer_ca: Path | None = None
    peer_token_file: Path | None = None
    is_insecure: bool = False

    def check(self, *, host: str, peers: Sequence[str]) -> None:
        """Raise ValueError with one sentence if a rule is broken.

        Args:
            host: Where the service listens.
            peers: Addresses of services it is told to call.
        """
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key belong together; give both or neither")
        if self.tls_ca is not None and self.tls_cert is None:
            raise ValueError("--tls-ca wants certificates of callers, which needs --tls-cert and --tls-key")
        self._check_exposure(host)
        far = [peer for peer in peers if not is_loopback(peer.rpartition(":")[0])]
        if self.peer_token_file is not None and self.trusted_ca is None and far:
            raise ValueError(
                f"a token is never sent to another machine ({far[0]}) in plain text; give --peer-ca, or no "
                "--peer-token-file"
            )

    @property
    def trusted_ca(self) -> Path | None:
        """CA of the services it calls."""
        return self.peer_ca or self.tls_ca

    def _check_exposure(self, host: str) -> None:
        if is_loopback(host) or self.is_insecure:
            return
        missing = [
            flag
            for flag, file in (("--tls-cert and --tls-key", self.tls_cert), ("--token-file", self.token_file))
            if file is None
        ]
        if missing:
            raise ValueError(
                f"host {host!r} can be reached from other machines, which needs TLS and tokens: give "
                f"{' and '.join(missing)} (`ktrdr security init` makes the files), or --insecure on a network you trust"
            )


def path_or_none(value: Any) -> Any:
    """Return a setting's path, expanded; an empty variable is none."""
    if value is None or value == "":
        return None
    return Path(value).expanduser().absolute() if isinstance(value, str | Path) else value
