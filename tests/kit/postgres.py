"""A PostgreSQL server of the tests' own: made once per test process, on a free port of loopback, gone with it."""

from __future__ import annotations

import ctypes
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from tests.kit.eventually import PATIENCE_S

USER = "ktrdr"
PASSWORD = "s3cr3t/p@ss"  # noqa: S105 - of a server that lives for one test run
_ESCAPED = "s3cr3t%2Fp%40ss"
_OWNER = "postgres"
_PR_SET_PDEATHSIG = 1
_SERVER = pytest.StashKey["PostgresServer"]()
_numbers = itertools.count()


class PostgresServer:
    """One server. `start` and `stop` as often as a test likes; the databases stay."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._owner = _OWNER if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        self._directory = Path(tempfile.mkdtemp(prefix="ktrdr-postgres-"))
        self._process: subprocess.Popen[bytes] | None = None
        self.port = _free_port()
        password_file = self._directory / "password"
        password_file.write_text(PASSWORD)
        if self._owner:
            for path in (self._directory, password_file):
                shutil.chown(path, self._owner)
        subprocess.run(
            [
                str(binaries / "initdb"),
                *("-D", str(self._data), "-U", USER, "--pwfile", str(password_file)),
                *("--auth", "scram-sha-256", "--encoding", "UTF8", "--no-locale", "--no-sync"),
            ],
            user=self._owner,
            cwd="/",
            check=True,
            capture_output=True,
        )

    @property
    def _data(self) -> Path:
        return self._directory / "data"

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Start it, and return once it answers."""
        import psycopg

        deadline = time.monotonic() + PATIENCE_S
        while True:
            if not self.is_running:  # after a crash it may refuse for a moment: what it left is still ending
                self._process = self._launch()
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=5).close()
                return
            except psycopg.OperationalError:
                assert time.monotonic() < deadline, (self._directory / "log").read_text()[-2_000:]
                time.sleep(0.02)

    def _launch(self) -> subprocess.Popen[bytes]:
        options = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self._directory),
            "fsync": "off",
            "shared_buffers": "16MB",
            "max_connections": "60",
        }
        with (self._directory / "log").open("ab") as log:
            return subprocess.Popen(
                [
                    str(self._binaries / "postgres"),
                    *("-D", str(self._data)),
                    *(f"--{name}={value}" for name, value in options.items()),
                ],
                user=self._owner,
                cwd="/",
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,
            )

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it: SIGINT asks it to end every session, SIGQUIT is a crash."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(PATIENCE_S)
            self._process = None

    def remove(self) -> None:
        """End it and remove everything it had."""
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self._directory)

    def url(self, database: str) -> str:
        return f"postgresql://{USER}:{_ESCAPED}@127.0.0.1:{self.port}/{database}"

    def new_database(self) -> str:
        """Return the URL of a new, empty database."""
        name = f"test_{next(_numbers)}"
        self.run(f"CREATE DATABASE {name}")
        return self.url(name)

    def run(self, statement: str) -> None:
        """Run a statement as somebody else than the store, in no transaction."""
        with self.connection(self.url("postgres")) as connection:
            connection.autocommit = True
            connection.execute(statement)

    def connection(self, url: str) -> Any:
        """Return a connection of somebody else than the store; it commits at the end of its `with`."""
        import psycopg

        return psycopg.connect(url)


def postgres_server(request: pytest.FixtureRequest) -> PostgresServer:
    """Return the running server of this test process; start it if need be, skip the test where there can be none."""
    stash = request.config.stash
    if _SERVER not in stash:
        server = PostgresServer(_binaries_or_skip())
        request.config.add_cleanup(server.remove)
        stash[_SERVER] = server
    server = stash[_SERVER]
    if not server.is_running:
        server.start()
    return server


def _binaries_or_skip() -> Path:
    pytest.importorskip("psycopg", reason="the driver of PostgreSQL is not installed (pip install ktrdr[postgres])")
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    found = shutil.which("initdb")
    if found:
        installed.append(Path(found).resolve().parent)
    if not installed:
        pytest.skip("PostgreSQL is not installed (no initdb)")
    if os.geteuid() == 0 and _OWNER not in {entry.pw_name for entry in pwd.getpwall()}:
        pytest.skip(f"PostgreSQL does not run as root, and there is no user {_OWNER!r}")
    return installed[-1]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> None:
    """Make the kernel end this process when the tests are gone, however they ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGQUIT)
