"""The directory with everything."""

from __future__ import annotations

from pathlib import Path

import pytest

from ktrdr_core.errors import AlreadyExistsError, InvalidInputError, NotFoundError
from ktrdr_core.security.certificates import check_match, facts_of, is_issued_by, read_certificates
from ktrdr_core.security.deployment import create_deployment, renew_certificates
from ktrdr_core.security.scopes import Scope
from ktrdr_core.security.tokens import load_table, load_token

LEAVES = ("backend", "trainer", "user")


def _hosts(path: Path) -> tuple[str, ...]:
    return facts_of(read_certificates(path.read_bytes(), name=str(path))[0]).hosts


def _contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_everything_is_there_and_secrets_are_private(tmp_path: Path) -> None:
    directory = tmp_path / "deep" / "security"
    hosts = create_deployment(directory, hosts=["office.lan", "10.0.0.7"])
    assert hosts == ("office.lan", "10.0.0.7", "localhost", "127.0.0.1", "::1")
    assert directory.stat().st_mode & 0o777 == 0o700
    public = {path.name for path in directory.iterdir() if path.stat().st_mode & 0o777 == 0o644}
    private = {path.name for path in directory.iterdir() if path.stat().st_mode & 0o777 == 0o600}
    assert public == {"ca.crt", *(f"{name}.crt" for name in LEAVES)}
    tokens = {"backend.token", "trainer.token", "admin.token"}
    assert private == {"ca.key", "tokens.json", *tokens, *(f"{name}.key" for name in LEAVES)}
    assert [path.name for path in directory.parent.iterdir()] == ["security"]


def test_certificates_are_of_the_ca_with_their_hosts_and_keys(tmp_path: Path) -> None:
    directory = tmp_path / "security"
    hosts = create_deployment(directory, hosts=["gpu-1"])
    authority = (directory / "ca.crt").read_bytes()
    for name in LEAVES:
        certificate = (directory / f"{name}.crt").read_bytes()
        assert is_issued_by(certificate, authority)
        check_match(certificate, (directory / f"{name}.key").read_bytes(), name=name)
        assert _hosts(directory / f"{name}.crt") == (() if name == "user" else hosts)


def test_tokens_of_the_directory_are_in_its_table(tmp_path: Path) -> None:
    directory = tmp_path / "security"
    create_deployment(directory)
    table = load_table(directory / "tokens.json")
    entries = [table.find(load_token(directory / f"{name}.token")) for name in ("backend", "trainer", "admin")]
    assert {entry.name: set(entry.scopes) for entry in entries if entry is not None} == {
        "backend": {Scope.TRAINER},
        "trainer": {Scope.TRAINER},
        "admin": {Scope.ADMIN},
    }


def test_what_exists_is_kept(tmp_path: Path) -> None:
    directory = tmp_path / "security"
    create_deployment(directory)
    before = _contents(directory)
    with pytest.raises(AlreadyExistsError, match="--renew"):
        create_deployment(directory)
    assert _contents(directory) == before


def test_empty_directory_is_used(tmp_path: Path) -> None:
    directory = tmp_path / "security"
    directory.mkdir(mode=0o755)
    create_deployment(directory)
    assert directory.stat().st_mode & 0o777 == 0o700


ANY_ADDRESS = "0.0.0.0"  # noqa: S104  told apart


@pytest.mark.parametrize(
    ("options", "text"),
    [({"hosts": ["a:1"]}, "a host is"), ({"hosts": [ANY_ADDRESS]}, "no address"), ({"days": 0}, "days")],
)
def test_bad_input_leaves_nothing(tmp_path: Path, options: dict[str, object], text: str) -> None:
    with pytest.raises(InvalidInputError, match=text):
        create_deployment(tmp_path / "security", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_renewal_makes_new_leaves_of_the_same_ca_for_the_same_hosts(tmp_path: Path) -> None:
    directory = tmp_path / "security"
    hosts = create_deployment(directory, hosts=["gpu-1"], days=1)
    before = _contents(directory)
    assert renew_certificates(directory) == hosts
    after = _contents(directory)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {f"{name}.{kind}" for name in LEAVES for kind in ("crt", "key")}
    assert set(after) == set(before)
    assert is_issued_by(after["backend.crt"], before["ca.crt"])
    assert _hosts(directory / "backend.crt") == hosts
    assert (directory / "backend.key").stat().st_mode & 0o777 == 0o600


def test_renewal_may_change_the_hosts(tmp_path: Path) -> None:
    directory = tmp_path / "security"
    create_deployment(directory, hosts=["gpu-1"])
    renew_certificates(directory, hosts=["gpu-2"])
    assert "gpu-2" in _hosts(directory / "trainer.crt")
    assert "gpu-1" not in _hosts(directory / "trainer.crt")


def test_renewal_without_a_ca_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"ca\.crt cannot be read"):
        renew_certificates(tmp_path)
    create_deployment(tmp_path / "security")
    (tmp_path / "security" / "ca.key").unlink()
    before = _contents(tmp_path / "security")
    with pytest.raises(NotFoundError, match=r"ca\.key cannot be read"):
        renew_certificates(tmp_path / "security")
    assert _contents(tmp_path / "security") == before
