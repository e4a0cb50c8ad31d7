"""Reading the files of TLS, checked, so that a bad one is told by name and not by an error of the library."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ktrdr_core.errors import InvalidInputError


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """What one side of TLS has, as PEM.

    Attributes:
        ca: Certificates of the CAs it trusts; None: nobody's are wanted.
        cert, key: Its own.
    """

    ca: bytes | None
    cert: bytes | None
    key: bytes | None

    def __repr__(self) -> str:
        return "TlsFiles(...)"  # a key is never shown


def load_tls(*, ca: Path | None, cert: Path | None, key: Path | None) -> TlsFiles:
    """Read and check the files of TLS.

    Raises:
        OSError: One cannot be read.
        InvalidInputError: One is no PEM, or certificate and key do not belong together.
    """
    # Imported here: a client without TLS starts without it.
    from ktrdr_core.security.certificates import check_match, read_certificates

    if (cert is None) != (key is None):
        raise InvalidInputError("a TLS certificate and its key belong together; give both or neither")
    ca_content = None if ca is None else ca.read_bytes()
    if ca is not None and ca_content is not None:
        read_certificates(ca_content, name=str(ca))
    if cert is None or key is None:
        return TlsFiles(ca=ca_content, cert=None, key=None)
    found = TlsFiles(ca=ca_content, cert=cert.read_bytes(), key=key.read_bytes())
    check_match(found.cert or b"", found.key or b"", name=str(cert))
    return found
