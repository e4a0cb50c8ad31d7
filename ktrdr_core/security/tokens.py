"""Tokens: the text that a caller keeps, and the table by which a server knows it.

The table holds no token, only its SHA-256: a token has 256 random bits, so a plain digest cannot be guessed back.
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from ktrdr_core.clock import utc_now
from ktrdr_core.errors import AlreadyExistsError, InvalidInputError, NotFoundError
from ktrdr_core.security.private_files import write_private
from ktrdr_core.security.scopes import Scope, with_included

MAX_TABLE_BYTES = 4 << 20
_PREFIX = "ktrdr_"
_TOKEN = re.compile(r"[\x21-\x7e]{16,512}")
_NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")  # it becomes the user of trainings
_DIGEST = re.compile(r"[0-9a-f]{64}")
_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenEntry:
    """One token as a server knows it.

    Attributes:
        name: Whose it is; trainings that are started with it are this user's.
        scopes: What it was given, without what these include.
        sha256: Digest of its text.
        created: When it was made.
        allowed: The scopes and all that they include.
    """

    name: str
    scopes: frozenset[Scope]
    sha256: bytes = field(repr=False)
    created: datetime
    allowed: frozenset[Scope] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "allowed", with_included(self.scopes))


class TokenTable:
    """The tokens that a server knows."""

    def __init__(self, entries: tuple[TokenEntry, ...]) -> None:
        self.entries = entries

    def find(self, token: str) -> TokenEntry | None:
        """Return the entry of a token; takes the same time whether and wherever it is."""
        digest = digest_of(token)
        found: TokenEntry | None = None
        for entry in self.entries:
            if hmac.compare_digest(entry.sha256, digest):
                found = entry
        return found

    @classmethod
    def parse(cls, content: bytes, *, name: str) -> TokenTable:
        """Read a table.

        Raises:
            InvalidInputError: It is none.
        """
        if not content.lstrip().startswith(b"{"):
            raise InvalidInputError(
                f"{name} is not a table of tokens; make one with `ktrdr security init`, and give a caller's own token "
                "to the caller"
            )
        try:
            raw = json.loads(content)
            if raw["version"] != _VERSION:
                raise InvalidInputError(f"{name} is a table of version {raw['version']!r}, this program knows 1")
            entries = tuple(_entry_from_json(each) for each in raw["tokens"])
        except InvalidInputError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError):
            raise InvalidInputError(f"{name} is a damaged table of tokens; restore it") from None
        names = [entry.name for entry in entries]
        if len(set(names)) != len(names):
            raise InvalidInputError(f"{name} names a token twice; revoke one")
        return cls(entries)

    def to_bytes(self) -> bytes:
        """Return the table as `parse` reads it."""
        tokens = [
            {
                "name": entry.name,
                "scopes": sorted(entry.scopes),
                "sha256": entry.sha256.hex(),
                "created": entry.created.isoformat(),
            }
            for entry in self.entries
        ]
        return (json.dumps({"version": _VERSION, "tokens": tokens}, indent=2) + "\n").encode()


def new_token() -> str:
    """Return a token nobody can guess."""
    return _PREFIX + secrets.token_urlsafe(32)


def digest_of(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def load_token(path: Path) -> str:
    """Return the text of one token, for who calls with it.

    Raises:
        OSError: The file cannot be read.
        InvalidInputError: It is no token; the message does not tell what it is instead.
    """
    text = _read(path).decode("utf-8", "replace").strip()
    if text.startswith("{"):
        raise InvalidInputError(f"{path} is a server's table of tokens; give the file of one token")
    if not _TOKEN.fullmatch(text):
        raise InvalidInputError(f"{path} must hold one token, 16 to 512 characters without spaces, and does not")
    return text


def load_table(path: Path) -> TokenTable:
    """Read a server's table.

    Raises:
        OSError: The file cannot be read.
        InvalidInputError: It is none.
    """
    return TokenTable.parse(_read(path), name=str(path))


def check_name(name: str) -> None:
    """Raise InvalidInputError unless a token may have this name."""
    if not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"the name of a token must be 1 to 64 letters, digits and '._@-', was {name[:80]!r}", field="name"
        )


def add_token(table: Path, name: str, scopes: frozenset[Scope], token_file: Path, *, replace: bool = False) -> None:
    """Make a token, write its text to `token_file`, readable by its owner alone, and its digest into the table.

    Args:
        table: The server's table; must exist.
        name: Whose it is.
        scopes: What it allows.
        token_file: Where its text goes; nowhere else is it ever told.
        replace: A token of this name is replaced, and its file.

    Raises:
        AlreadyExistsError: There is a token of this name, or the file.
        InvalidInputError: The name or the table breaks a rule.
    """
    check_name(name)
    with _editing(table) as before:
        others = tuple(entry for entry in before.entries if entry.name != name)
        if not replace and len(others) != len(before.entries):
            raise AlreadyExistsError(f"{table} has a token of {name}; revoke it first, or give --replace")
        if not replace and token_file.exists():
            raise AlreadyExistsError(f"{token_file} exists; remove it, or name another file with --out")
        token = new_token()
        write_private(token_file, f"{token}\n".encode())
        entry = TokenEntry(name=name, scopes=scopes, sha256=digest_of(token), created=utc_now())
        write_private(table, TokenTable((*others, entry)).to_bytes())


def revoke_token(table: Path, name: str) -> None:
    """Take a token out of the table.

    Raises:
        NotFoundError: It has none of this name.
    """
    with _editing(table) as before:
        others = tuple(entry for entry in before.entries if entry.name != name)
        if len(others) == len(before.entries):
            known = ", ".join(entry.name for entry in before.entries) or "none"
            raise NotFoundError(f"{table} has no token of {name}; it has: {known}")
        write_private(table, TokenTable(others).to_bytes())


@contextmanager
def _editing(table: Path) -> Iterator[TokenTable]:
    """Read the table and let nobody else edit it meanwhile."""
    try:
        directory = os.open(table.parent, os.O_RDONLY)
    except OSError as error:
        raise InvalidInputError(f"{table} cannot be read: {error.strerror}; name another with --table") from error
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        try:
            yield load_table(table)
        except OSError as error:
            raise InvalidInputError(f"{error.filename or table} cannot be used: {error.strerror}") from error
    finally:
        os.close(directory)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        content = file.read(MAX_TABLE_BYTES + 1)
    if len(content) > MAX_TABLE_BYTES:
        raise InvalidInputError(f"{path} must have at most {MAX_TABLE_BYTES} bytes, has more")
    return content


def _entry_from_json(raw: Any) -> TokenEntry:
    check_name(str(raw["name"]))
    if not _DIGEST.fullmatch(raw["sha256"]):
        raise ValueError("no SHA-256")
    return TokenEntry(
        name=str(raw["name"]),
        scopes=frozenset(Scope(scope) for scope in raw["scopes"]),
        sha256=bytes.fromhex(raw["sha256"]),
        created=datetime.fromisoformat(raw["created"]),
    )
