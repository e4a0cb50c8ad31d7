from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from ktrdr_client.cli.run import run

from tests.kit.cli import ROOT, Cli, Ran, embedded_cli
from tests.kit.eventually import PATIENCE_S


@pytest.fixture(scope="package")
def cli_and_first_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Cli, list[Ran]]]:
    """A command whose embedded backend was started by two invocations at the same time."""
    with embedded_cli(tmp_path_factory.mktemp("cli") / "state") as cli:
        twins = [cli.start("config", "get", "--json") for _ in range(2)]
        runs = []
        for twin in twins:
            with twin:
                out, err = twin.communicate(timeout=PATIENCE_S)
                runs.append(Ran(twin.returncode, out, err))
        yield cli, runs


@pytest.fixture(scope="package")
def cli(cli_and_first_runs: tuple[Cli, list[Ran]]) -> Cli:
    return cli_and_first_runs[0]


@pytest.fixture
def here(cli: Cli, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    """Run a command in this process, by the function that `ktrdr` is: the same answers, the imports paid once."""
    for name in ("KTRDR_BACKEND", "KTRDR_DATA_DIR", "KTRDR_BARS_DIR", "KTRDR_STRATEGIES_DIR", "KTRDR_USER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(ROOT)

    def call(*arguments: str) -> Ran:
        capsys.readouterr()
        code = run(["--data-dir", str(cli.data_dir), *arguments])
        captured = capsys.readouterr()
        return Ran(code, captured.out, captured.err)

    return call
