"""The entry point of `ktrdr`."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.kit.eventually import PATIENCE_S


@pytest.mark.parametrize(("given", "expected"), [(None, "NONE"), ("debug", "debug")])
def test_grpc_writes_no_lines_of_its_own_to_the_terminal_unless_asked_to(given: str | None, expected: str) -> None:
    code = (
        "import os, sys; from ktrdr_client.__main__ import main; sys.argv = ['ktrdr', '--version']; main();"
        "print(os.environ['GRPC_VERBOSITY'])"
    )
    environment = {key: value for key, value in os.environ.items() if key != "GRPC_VERBOSITY"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment if given is None else {**environment, "GRPC_VERBOSITY": given},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.stdout.splitlines()[1:] == [expected], done.stderr
