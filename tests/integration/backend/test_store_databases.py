"""Which database a path or a URL means, and what is said of one that is not understood."""

from __future__ import annotations

import subprocess
import sys
import traceback
from pathlib import Path
from urllib.parse import quote

import pytest

from backend_service.operations.database import open_database
from backend_service.operations.sql_store import SqlOperationsStore
from ktrdr_core.errors import InvalidInputError, StorageError
from tests.kit.builders import REPOSITORY
from tests.kit.postgres import PASSWORD, postgres_server

WRONG = "an0ther"


@pytest.mark.parametrize("make", [Path, str, lambda path: f"sqlite:///{quote(path)}"], ids=["path", "text", "url"])
async def test_path_means_a_sqlite_file_whatever_its_name(tmp_path: Path, make: type[Path] | type[str]) -> None:
    path = tmp_path / "a b%20c.db"
    store = await SqlOperationsStore.open(make(str(path)))
    await store.close()
    assert path.read_bytes().startswith(b"SQLite format 3")


async def test_file_name_with_the_marks_of_a_url_is_no_url(tmp_path: Path) -> None:
    path = tmp_path / "what?mode=ro#x.db"
    await (await SqlOperationsStore.open(path)).close()
    assert path.exists()


@pytest.mark.parametrize(
    "url",
    [
        "mysql://u:hunter2@h/db",
        "sqlite://",
        "sqlite:///:memory:",
        "postgresql://u:hunter2@h:port/db",
        "postgresql:/u:hunter2@h/db://",
        "://hunter2",
    ],
)
async def test_url_that_is_not_understood_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidInputError, match="database URL is not understood; give sqlite:///PATH or") as caught:
        await SqlOperationsStore.open(url)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_name_of_a_database_on_a_server_has_no_password(scheme: str) -> None:
    pytest.importorskip("psycopg")
    database = open_database(f"{scheme}://ann:hunter2@db.lan:5433/ops?sslpassword=hunter3&connect_timeout=1")
    assert database.name == "postgresql://ann@db.lan:5433/ops"


async def test_wrong_password_is_said_without_the_password(request: pytest.FixtureRequest) -> None:
    url = postgres_server(request).new_database()
    with pytest.raises(StorageError, match="password authentication failed") as caught:
        await SqlOperationsStore.open(url.replace("s3cr3t", WRONG))
    whole = "".join(traceback.format_exception(caught.value))
    assert WRONG not in whole
    assert PASSWORD not in whole


async def test_server_that_is_not_there_is_named() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(StorageError, match=r"postgresql://ann@127\.0\.0\.1:1/ops takes no reads or writes now"):
        await SqlOperationsStore.open("postgresql://ann:hunter2@127.0.0.1:1/ops")


def test_missing_driver_says_what_to_install() -> None:
    program = (
        "import sys\n"
        "sys.modules['psycopg'] = None\n"
        "from backend_service.operations.database import open_database\n"
        "from ktrdr_core.errors import UnsupportedError\n"
        "try:\n"
        "    open_database('postgresql://u@h/db')\n"
        "except UnsupportedError as error:\n"
        "    print(error.message)\n"
    )
    answer = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert "pip install ktrdr[postgres]" in answer.stdout
