"""Tokens and the table of them."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest

from ktrdr_core.errors import AlreadyExistsError, InvalidInputError, KtrdrError, NotFoundError
from ktrdr_core.security.scopes import Scope, parse_scopes, with_included
from ktrdr_core.security.tokens import (
    TokenTable,
    add_token,
    digest_of,
    load_table,
    load_token,
    new_token,
    revoke_token,
)

ENTRY = {"name": "a", "scopes": ["read"], "sha256": "0" * 64, "created": "2026-01-01T00:00:00+00:00"}


def _table_of(*entries: object) -> bytes:
    return json.dumps({"version": 1, "tokens": entries}).encode()


def test_table_as_the_tests_below_break_it_is_sound() -> None:
    assert TokenTable.parse(_table_of(ENTRY), name="x").entries[0].name == "a"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "tokens.json"
    path.write_bytes(TokenTable(()).to_bytes())
    return path


def test_added_token_is_found_with_its_name_and_scopes(table: Path, tmp_path: Path) -> None:
    add_token(table, "alice", frozenset({Scope.TRAIN}), tmp_path / "alice.token")
    found = load_table(table).find(load_token(tmp_path / "alice.token"))
    assert found is not None
    assert (found.name, found.scopes) == ("alice", frozenset({Scope.TRAIN}))
    assert found.allowed == {Scope.TRAIN, Scope.READ}


@pytest.mark.parametrize("position", ["first", "middle", "last"])
def test_each_of_many_tokens_is_found_wherever_it_stands(table: Path, tmp_path: Path, position: str) -> None:
    for name in ("first", "middle", "last"):
        add_token(table, name, frozenset({Scope.READ}), tmp_path / name)
    found = load_table(table).find(load_token(tmp_path / position))
    assert found is not None
    assert found.name == position


@pytest.mark.parametrize("guess", ["", "ktrdr_", "x" * 10_000, "\udc80\udcff"])
def test_other_token_is_not_found(table: Path, tmp_path: Path, guess: str) -> None:
    add_token(table, "alice", frozenset({Scope.ADMIN}), tmp_path / "alice.token")
    assert load_table(table).find(guess) is None


def test_table_holds_no_token_and_both_files_are_private(table: Path, tmp_path: Path) -> None:
    add_token(table, "alice", frozenset({Scope.ADMIN}), tmp_path / "alice.token")
    token = load_token(tmp_path / "alice.token")
    assert token not in table.read_text()
    assert digest_of(token).hex() in table.read_text()
    for path in (table, tmp_path / "alice.token"):
        assert path.stat().st_mode & 0o777 == 0o600


def test_tokens_are_long_and_never_the_same() -> None:
    tokens = {new_token() for _ in range(1_000)}
    assert len(tokens) == 1_000
    assert {len(token) for token in tokens} == {len("ktrdr_") + 43}


def test_second_token_of_a_name_is_refused_and_replaced_on_request(table: Path, tmp_path: Path) -> None:
    file = tmp_path / "alice.token"
    add_token(table, "alice", frozenset({Scope.READ}), file)
    before, first = table.read_bytes(), load_token(file)
    with pytest.raises(AlreadyExistsError, match="--replace"):
        add_token(table, "alice", frozenset({Scope.READ}), tmp_path / "other")
    assert table.read_bytes() == before
    assert not (tmp_path / "other").exists()
    add_token(table, "alice", frozenset({Scope.ADMIN}), file, replace=True)
    assert load_table(table).find(first) is None
    (entry,) = load_table(table).entries
    assert (entry.scopes, entry.sha256) == (frozenset({Scope.ADMIN}), digest_of(load_token(file)))


def test_file_that_exists_is_not_overwritten(table: Path, tmp_path: Path) -> None:
    file = tmp_path / "alice.token"
    file.write_text("something else")
    before = table.read_bytes()
    with pytest.raises(AlreadyExistsError, match="--out"):
        add_token(table, "alice", frozenset({Scope.READ}), file)
    assert (file.read_text(), table.read_bytes()) == ("something else", before)


def test_revoked_token_is_gone_and_the_others_stay(table: Path, tmp_path: Path) -> None:
    for name in ("alice", "bob"):
        add_token(table, name, frozenset({Scope.READ}), tmp_path / name)
    revoke_token(table, "alice")
    assert load_table(table).find(load_token(tmp_path / "alice")) is None
    assert load_table(table).find(load_token(tmp_path / "bob")) is not None
    with pytest.raises(NotFoundError, match="it has: bob"):
        revoke_token(table, "alice")


def _add(table: str, name: str) -> None:
    add_token(Path(table), name, frozenset({Scope.READ}), Path(table).with_name(name))


def test_tokens_added_at_the_same_time_are_all_there(table: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(3) as pool:
        pool.starmap(_add, [(str(table), f"user{number}") for number in range(12)])
    assert {entry.name for entry in load_table(table).entries} == {f"user{number}" for number in range(12)}


@pytest.mark.parametrize("name", ["", "a b", "../x", "x" * 65, "é", "a\n"])
def test_name_that_could_be_no_user_is_refused(table: Path, tmp_path: Path, name: str) -> None:
    before = table.read_bytes()
    with pytest.raises(InvalidInputError, match="letters, digits"):
        add_token(table, name, frozenset({Scope.READ}), tmp_path / "file")
    assert table.read_bytes() == before
    assert not (tmp_path / "file").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"ktrdr_0123456789012345678901234567890123456789",
        b"{",
        b"[]",
        b"{}",
        b'{"version": 2, "tokens": []}',
        b'{"version": 1, "tokens": [{"name": "a"}]}',
        b'{"version": 1, "tokens": {"name": "a"}}',
        _table_of({**ENTRY, "scopes": ["all"]}),
        _table_of({**ENTRY, "sha256": "0" * 63}),
        _table_of(ENTRY, ENTRY),
        b"\xff\xfe{",
    ],
)
def test_damaged_table_is_refused_and_never_shown(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokens.json"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError) as refused:
        load_table(path)
    assert str(path) in refused.value.message
    assert "0123456789" not in refused.value.message
    assert refused.value.__cause__ is None


@pytest.mark.parametrize("content", ["", "short", "two words of a text", "ktrdr_secret-\u00e9-0123456789", "x" * 513])
def test_file_that_is_no_token_is_refused_and_never_shown(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token"
    path.write_text(content)
    with pytest.raises(InvalidInputError, match="must hold one token") as refused:
        load_token(path)
    assert not content or content not in refused.value.message


def test_table_given_as_a_token_is_told_apart(table: Path) -> None:
    with pytest.raises(InvalidInputError, match="table of tokens; give the file of one token"):
        load_token(table)


def test_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(InvalidInputError, match="at most"):
        load_table(path)


def test_missing_table_is_told_by_name(tmp_path: Path) -> None:
    for path in (tmp_path / "no.json", tmp_path / "no" / "no.json"):
        with pytest.raises(KtrdrError, match=str(path)):
            revoke_token(path, "alice")


def test_admin_includes_train_includes_read_and_trainer_is_its_own() -> None:
    assert with_included({Scope.ADMIN}) == set(Scope)
    assert with_included({Scope.TRAIN}) == {Scope.TRAIN, Scope.READ}
    assert with_included({Scope.TRAINER}) == {Scope.TRAINER}
    assert with_included({Scope.READ}) == {Scope.READ}
    assert with_included(()) == set()


def test_scopes_are_read_from_a_list() -> None:
    assert parse_scopes(" read, trainer ") == {Scope.READ, Scope.TRAINER}
    for text in ("", ",", "root", "read,root"):
        with pytest.raises(InvalidInputError, match="read, train, trainer, admin"):
            parse_scopes(text)
