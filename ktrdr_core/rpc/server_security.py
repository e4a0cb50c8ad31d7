"""TLS and tokens of a server, from files that may be replaced while it serves."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import grpc

from ktrdr_core.errors import InvalidInputError
from ktrdr_core.logging import get_logger
from ktrdr_core.security.files import TlsFiles, load_tls
from ktrdr_core.security.private_files import is_open_to_others
from ktrdr_core.security.service_security import ServiceSecurity
from ktrdr_core.security.tokens import load_table
from ktrdr_core.security.watched_files import WatchedFiles

_log = get_logger(__name__)


class ServerSecurity:
    """What a server checks its callers by.

    Args:
        security: The files.
        clock: Seconds; they are looked at once a second at most.

    Raises:
        InvalidInputError: A file cannot be read, or is no good.
    """

    def __init__(self, security: ServiceSecurity, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._security = security
        cert, key, ca = security.tls_cert, security.tls_key, security.tls_ca
        self._tls = (
            WatchedFiles(
                [path for path in (cert, key, ca) if path is not None],
                lambda: load_tls(ca=ca, cert=cert, key=key),
                what=f"the certificate {cert}",
                clock=clock,
            )
            if cert is not None
            else None
        )
        table = security.token_file
        self.tokens = (
            WatchedFiles([table], lambda: load_table(table), what=f"the table of tokens {table}", clock=clock)
            if table is not None
            else None
        )

    @property
    def credentials(self) -> grpc.ServerCredentials | None:
        """How to listen; None is plain text. Each handshake gets the newest good certificate."""
        tls = self._tls
        if tls is None:
            return None
        given, first = tls.get_with_generation()

        def fetch() -> grpc.ServerCertificateConfiguration | None:
            """Called for each connection, on threads of gRPC."""
            nonlocal given
            generation, files = tls.get_with_generation()
            if generation == given:
                return None
            given = generation
            return _configuration(files)

        # Typed as if it had to answer; None means that nothing has changed.
        return grpc.dynamic_ssl_server_credentials(
            _configuration(first), cast(Any, fetch), require_client_authentication=self._security.tls_ca is not None
        )

    def warn(self) -> None:
        """Log what will not do for long: certificates about to expire, keys that others may read."""
        for problem in self.problems():
            _log.warning("%s", problem)

    def problems(self) -> list[str]:
        """Return what `warn` logs."""
        if self._tls is None:
            return []
        from ktrdr_core.security.certificates import time_problems

        files, found = self._tls.get(), []
        for path, content in ((self._security.tls_cert, files.cert), (self._security.tls_ca, files.ca)):
            if path is not None and content is not None:
                found += [
                    f"{problem}; renew it: docs/security.md" for problem in time_problems(content, name=str(path))
                ]
        key = self._security.tls_key
        if key is not None and is_open_to_others(key):
            found.append(f"{key} can be read by others on this machine; chmod 600 it")
        return found


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    if files.cert is None or files.key is None:
        raise InvalidInputError("a server needs a certificate and its key")
    return grpc.ssl_server_certificate_configuration([(files.key, files.cert)], root_certificates=files.ca)
