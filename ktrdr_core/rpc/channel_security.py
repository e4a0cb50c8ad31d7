"""TLS and the token of a caller, from files that may be replaced meanwhile."""

from __future__ import annotations

from pathlib import Path
from typing import Self

import grpc

from ktrdr_core.addresses import is_loopback
from ktrdr_core.errors import InvalidInputError
from ktrdr_core.security.files import load_tls
from ktrdr_core.security.service_security import ServiceSecurity
from ktrdr_core.security.tokens import load_token
from ktrdr_core.security.watched_files import WatchedFiles


class ChannelSecurity:
    """How channels are secured. Make one for a process and hand it to all that open channels.

    Args:
        ca: CA of the servers; None: plain text.
        cert, key: Own certificate, for servers that want one.
        token_file: Text of the token that calls carry. It is sent over TLS, and in plain text on loopback only.

    Raises:
        InvalidInputError: A file cannot be read, is no good, or has no use without another.
    """

    def __init__(
        self,
        *,
        ca: Path | None = None,
        cert: Path | None = None,
        key: Path | None = None,
        token_file: Path | None = None,
    ) -> None:
        if ca is None and (cert is not None or key is not None):
            raise InvalidInputError("a certificate is shown over TLS only; name the CA of the server with --tls-ca")
        self._token_file = token_file
        self._credentials = (
            WatchedFiles(
                [path for path in (ca, cert, key) if path is not None],
                lambda: _credentials(ca, cert, key),
                what=f"the CA {ca}" if cert is None else f"the certificate {cert}",
            )
            if ca is not None
            else None
        )
        self._token = (
            WatchedFiles([token_file], lambda: load_token(token_file), what=f"the token in {token_file}")
            if token_file is not None
            else None
        )

    @classmethod
    def of_service(cls, security: ServiceSecurity) -> Self | None:
        """Return how a service calls others; None if it has nothing for it."""
        if security.trusted_ca is None and security.peer_token_file is None:
            return None
        has_tls = security.trusted_ca is not None
        return cls(
            ca=security.trusted_ca,
            cert=security.tls_cert if has_tls else None,
            key=security.tls_key if has_tls else None,
            token_file=security.peer_token_file,
        )

    @property
    def has_tls(self) -> bool:
        """Whether channels are encrypted."""
        return self._credentials is not None

    def check(self, address: str) -> None:
        """Raise InvalidInputError if calls to `address` would have to leave the token out."""
        if self._token is not None and not self.has_tls and not _is_here(address):
            raise InvalidInputError(
                f"the token in {self._token_file} is not sent to {address} in plain text; name the CA of the server "
                "with --tls-ca or KTRDR_TLS_CA"
            )

    def credentials(self) -> tuple[int, grpc.ChannelCredentials | None]:
        """Return a number that grows with each change, and the credentials now; None is plain text.

        Channels with the same credentials share connections.
        """
        return (0, None) if self._credentials is None else self._credentials.get_with_generation()

    def token_for(self, address: str) -> str | None:
        """Return the token that a call to `address` may carry, None if there is none."""
        if self._token is None or not (self.has_tls or _is_here(address)):
            return None
        return self._token.get()


def _credentials(ca: Path | None, cert: Path | None, key: Path | None) -> grpc.ChannelCredentials:
    files = load_tls(ca=ca, cert=cert, key=key)
    return grpc.ssl_channel_credentials(files.ca, files.key, files.cert)


def _is_here(address: str) -> bool:
    return is_loopback(address.rpartition(":")[0])
