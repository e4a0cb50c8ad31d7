"""The files of one deployment's security: made once, its certificates renewed.

One directory has them all; each machine gets what it needs (docs/security.md):
```
ca.crt       what callers trust, and services of callers        ca.key       stays where it was made
backend.crt  backend.key     the backend's                       trainer.crt  trainer.key     the trainers'
user.crt     user.key        a person's, where certificates of callers are wanted
tokens.json  the table of both services                          backend.token  trainer.token  admin.token
```
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from ktrdr_core.data.durable import fsync_directory
from ktrdr_core.errors import AlreadyExistsError, InvalidInputError, NotFoundError, StorageError
from ktrdr_core.security.certificates import (
    KeyPair,
    check_host,
    facts_of,
    issue,
    make_authority,
    read_certificates,
)
from ktrdr_core.security.private_files import PRIVATE_DIRECTORY, PUBLIC_FILE, write_private
from ktrdr_core.security.scopes import Scope
from ktrdr_core.security.tokens import TokenTable, add_token

DEFAULT_DAYS = 365
TABLE = "tokens.json"
SERVICES, CALLERS = ("backend", "trainer"), ("user",)
_OWN_HOSTS = ("localhost", "127.0.0.1", "::1")
_TOKENS = {"backend": Scope.TRAINER, "trainer": Scope.TRAINER, "admin": Scope.ADMIN}


def create_deployment(directory: Path, *, hosts: Sequence[str] = (), days: int = DEFAULT_DAYS) -> tuple[str, ...]:
    """Make a directory with everything; it is there whole or not at all.

    Args:
        directory: Where; must not exist, or be empty.
        hosts: Names and addresses under which the services are called, beside this machine's own.
        days: How long the certificates are valid, 1 to 825; the CA's is ten years.

    Returns:
        The hosts of the certificates.

    Raises:
        AlreadyExistsError: There is something.
        InvalidInputError: A host or `days` breaks a rule.
        StorageError: The disk takes no writes.
    """
    names = _all_hosts(hosts)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise AlreadyExistsError(
            f"{directory} exists and is kept; give --renew for new certificates of the same CA, or another --dir"
        )
    authority = make_authority()
    leaves = _issue_all(authority, names, days)
    staging = directory.with_name(f".{directory.name}.{uuid4().hex}.tmp")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir(mode=PRIVATE_DIRECTORY)
        for name, pair in {"ca": authority, **leaves}.items():
            _write_pair(staging, name, pair)
        write_private(staging / TABLE, TokenTable(()).to_bytes())
        for name, scope in _TOKENS.items():
            add_token(staging / TABLE, name, frozenset({scope}), staging / f"{name}.token")
        staging.rename(directory)
        fsync_directory(directory.parent)
    except OSError as error:
        raise StorageError(f"{directory} cannot be written: {error.strerror}; name another with --dir") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return names


def renew_certificates(directory: Path, *, hosts: Sequence[str] = (), days: int = DEFAULT_DAYS) -> tuple[str, ...]:
    """Replace the certificates of services and people by new ones of the same CA; tokens stay.

    Args:
        directory: What `create_deployment` made.
        hosts: As there; without any, those of the certificates that are replaced.
        days: How long the new ones are valid.

    Returns:
        The hosts of the certificates.

    Raises:
        NotFoundError: There is no CA in it.
        InvalidInputError: A host or `days` breaks a rule, or the CA is no good.
        StorageError: The disk takes no writes.
    """
    try:
        authority = KeyPair(certificate=(directory / "ca.crt").read_bytes(), key=(directory / "ca.key").read_bytes())
        before = (directory / "backend.crt").read_bytes() if not hosts else b""
    except OSError as error:
        raise NotFoundError(
            f"{error.filename} cannot be read ({error.strerror}); certificates are renewed where `ktrdr security init` "
            "made them"
        ) from error
    if before:
        hosts = facts_of(read_certificates(before, name=str(directory / "backend.crt"))[0]).hosts
    names = _all_hosts(hosts)
    leaves = _issue_all(authority, names, days)
    try:
        for name, pair in leaves.items():
            _write_pair(directory, name, pair)
    except OSError as error:
        raise StorageError(f"{directory} cannot be written: {error.strerror}; free space, then renew again") from error
    return names


def _all_hosts(hosts: Sequence[str]) -> tuple[str, ...]:
    for host in hosts:
        check_host(host)
        if host in ("0.0.0.0", "::"):  # noqa: S104  told apart
            raise InvalidInputError(
                f"{host} is no address that somebody calls; give the names and addresses of this machine", field="host"
            )
    return tuple(dict.fromkeys([*hosts, *_OWN_HOSTS]))


def _issue_all(authority: KeyPair, hosts: Sequence[str], days: int) -> dict[str, KeyPair]:
    services = {name: issue(authority, f"ktrdr {name}", hosts=hosts, days=days) for name in SERVICES}
    return services | {name: issue(authority, f"ktrdr {name}", hosts=(), days=days) for name in CALLERS}


def _write_pair(directory: Path, name: str, pair: KeyPair) -> None:
    # Until both are there they do not match, and who watches them keeps the pair before.
    write_private(directory / f"{name}.key", pair.key)
    write_private(directory / f"{name}.crt", pair.certificate, mode=PUBLIC_FILE)
