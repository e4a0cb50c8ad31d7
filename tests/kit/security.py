"""Certificates and tokens for tests."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ktrdr_core.rpc.channel_security import ChannelSecurity
from ktrdr_core.security.deployment import create_deployment
from ktrdr_core.security.scopes import Scope
from ktrdr_core.security.service_security import ServiceSecurity
from ktrdr_core.security.tokens import add_token, load_token

PEOPLE = {"reader": Scope.READ, "alice": Scope.TRAIN, "bob": Scope.TRAIN}


@dataclass(frozen=True)
class Deployment:
    """A directory as `ktrdr security init` makes it, with tokens of people, too."""

    directory: Path

    @property
    def table(self) -> Path:
        return self.directory / "tokens.json"

    def file(self, name: str) -> Path:
        return self.directory / name

    def token(self, name: str) -> str:
        """The text of a token."""
        return load_token(self.file(f"{name}.token"))

    def secrets(self) -> list[str]:
        """All that must be seen nowhere: tokens, their digests, and lines of private keys."""
        tokens = [load_token(path) for path in self.directory.glob("*.token")]
        keys = [line for path in self.directory.glob("*.key") for line in path.read_text().splitlines()]
        return [*tokens, *(line for line in keys if "PRIVATE" not in line and len(line) > 20)]

    def add(self, name: str, *scopes: Scope, replace: bool = False) -> None:
        add_token(self.table, name, frozenset(scopes), self.file(f"{name}.token"), replace=replace)

    def caller(self, name: str | None = None, *, shows: str | None = None) -> ChannelSecurity:
        """Return how somebody calls: with a token, and with a certificate, if named."""
        return ChannelSecurity(
            ca=self.file("ca.crt"),
            cert=self.file(f"{shows}.crt") if shows else None,
            key=self.file(f"{shows}.key") if shows else None,
            token_file=self.file(f"{name}.token") if name else None,
        )

    def service(self, name: str, *, is_mutual: bool = False) -> ServiceSecurity:
        """Return the security of a service of this deployment."""
        return ServiceSecurity(
            tls_cert=self.file(f"{name}.crt"),
            tls_key=self.file(f"{name}.key"),
            tls_ca=self.file("ca.crt") if is_mutual else None,
            token_file=self.table,
            peer_ca=self.file("ca.crt"),
            peer_token_file=self.file(f"{name}.token"),
        )

    def flags(self, service: str, *, is_mutual: bool = False) -> list[str]:
        """Return the flags of a service."""
        security = self.service(service, is_mutual=is_mutual)
        files = {
            "--tls-cert": security.tls_cert,
            "--tls-key": security.tls_key,
            "--tls-ca": security.tls_ca,
            "--token-file": security.token_file,
            "--peer-ca": security.peer_ca,
            "--peer-token-file": security.peer_token_file,
        }
        return [word for flag, file in files.items() if file is not None for word in (flag, str(file))]


def a_deployment(directory: Path, *, days: int = 30) -> Deployment:
    """Make one."""
    create_deployment(directory, days=days)
    deployment = Deployment(directory)
    for name, scope in PEOPLE.items():
        deployment.add(name, scope)
    return deployment
