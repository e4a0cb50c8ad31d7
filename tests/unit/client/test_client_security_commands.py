"""`ktrdr security`, and which of TLS and token a command uses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from ktrdr_client.cli.run import run
from ktrdr_client.cli.session import CliSession
from ktrdr_client.settings import ClientSettings, environment_of_embedded

from ktrdr_core.errors import InvalidInputError
from ktrdr_core.security.tokens import load_table, load_token
from tests.kit.eventually import PATIENCE_S


def _run(tmp_path: Path, *words: str) -> int:
    return run(["--data-dir", str(tmp_path), *words])


def test_directory_is_made_once_and_renewed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(tmp_path, "security", "init", "--host", "gpu-1", "--days", "7") == 0
    directory = tmp_path / "security"
    assert str(directory) in capsys.readouterr().out
    before = (directory / "backend.crt").read_bytes()
    assert _run(tmp_path, "security", "init") == 2
    assert "--renew" in capsys.readouterr().err
    assert (directory / "backend.crt").read_bytes() == before
    assert _run(tmp_path, "security", "init", "--renew") == 0
    assert "gpu-1" in capsys.readouterr().out
    assert (directory / "backend.crt").read_bytes() != before


def test_tokens_are_added_listed_and_revoked_and_never_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _run(tmp_path, "security", "init") == 0
    assert _run(tmp_path, "security", "token", "add", "alice", "--scopes", "train,read") == 0
    directory = tmp_path / "security"
    token = load_token(directory / "alice.token")
    assert load_table(directory / "tokens.json").find(token)
    assert _run(tmp_path, "security", "token", "list") == 0
    printed = capsys.readouterr().out
    assert _run(tmp_path, "security", "token", "list", "--json") == 0
    listed = capsys.readouterr().out
    lines = [json.loads(line) for line in listed.splitlines()]
    assert [(line["type"], line["name"], line["scopes"]) for line in lines][-1] == ("token", "alice", ["read", "train"])
    assert _run(tmp_path, "security", "token", "revoke", "alice") == 0
    assert not load_table(directory / "tokens.json").find(token)
    assert token not in printed + listed + capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["token", "add", "a b", "--scopes", "read"], "letters, digits"),
        (["token", "add", "alice", "--scopes", "root"], "read, train, trainer, admin"),
        (["token", "add", "alice", "--scopes", "read"], "--table"),
        (["token", "list"], "--table"),
        (["token", "revoke", "alice"], "--table"),
        (["init", "--days", "0"], "days must be"),
        (["init", "--host", "a:1"], "a host is"),
        (["init", "--renew"], "ktrdr security init"),
    ],
)
def test_bad_input_is_one_sentence_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], text: str
) -> None:
    assert _run(tmp_path, "security", *words) == 2
    assert text in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_files_come_from_flags_then_from_the_environment(tmp_path: Path) -> None:
    names = ("tls_ca", "tls_cert", "tls_key", "token_file")
    environment = {f"KTRDR_{name.upper()}": f"/environment/{name}" for name in names}
    settings = ClientSettings.load(environment=environment)
    assert [getattr(settings, name) for name in names] == [Path(f"/environment/{name}") for name in names]
    flags = {name: tmp_path / name for name in names}
    settings = ClientSettings.load(environment=environment, **flags)  # type: ignore[arg-type]
    assert [getattr(settings, name) for name in names] == list(flags.values())
    settings = ClientSettings.load(environment=dict.fromkeys(environment, ""))
    assert [getattr(settings, name) for name in names] == [None] * 4


def test_token_says_whose_trainings_they_are() -> None:
    login = {"LOGNAME": "me"}
    assert ClientSettings.load(environment=login).user == "me"
    assert ClientSettings.load(environment={**login, "KTRDR_TOKEN_FILE": "/t"}).user == ""
    assert ClientSettings.load(environment={**login, "KTRDR_TOKEN_FILE": "/t", "KTRDR_USER": "bob"}).user == "bob"


def test_embedded_backend_is_talked_to_as_it_is(tmp_path: Path) -> None:
    """Files for a backend elsewhere do not keep a command from its own one."""
    settings = ClientSettings.load(environment={"KTRDR_TLS_CA": "/nowhere", "KTRDR_TOKEN_FILE": "/nowhere"})
    assert CliSession(settings=settings).security() is None
    elsewhere = ClientSettings.load(backend="office:1", environment={"KTRDR_TLS_CA": "/nowhere"})
    with pytest.raises(InvalidInputError, match="/nowhere cannot be read"):
        CliSession(settings=elsewhere).security()
    assert CliSession(settings=ClientSettings.load(backend="office:1", environment={})).security() is None


def test_services_of_an_embedded_pair_are_not_told_of_others_security(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("TLS_CERT", "TLS_KEY", "TLS_CA", "TOKEN_FILE", "PEER_CA", "PEER_TOKEN_FILE", "INSECURE")
    told = {f"KTRDR_{service}_{name}" for service in ("BACKEND", "TRAINER") for name in names}
    for name in (*told, "KTRDR_SLOTS"):
        monkeypatch.setenv(name, "x")
    kept = environment_of_embedded()
    assert not told & set(kept)
    assert kept["KTRDR_SLOTS"] == "x"


def test_global_option_in_the_wrong_place_is_told_its_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "--tls-ca", "x"]) == 2
    assert "--tls-ca goes before the command" in capsys.readouterr().err


def test_client_without_tls_starts_without_the_library_of_certificates() -> None:
    code = "import sys; sys.modules['cryptography'] = None; import ktrdr_client, ktrdr_client.cli.run"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
