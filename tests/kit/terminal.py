"""Run the real `ktrdr` command on a pseudo-terminal, as a person does."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import time

from tests.kit.cli import ROOT, Cli
from tests.kit.eventually import PATIENCE_S


class Terminal:
    """The command on a pseudo-terminal."""

    def __init__(self, cli: Cli, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            cli.words(*arguments),
            cwd=ROOT,
            env=cli.environment(),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.shown = ""

    def wait_for(self, text: str, *, timeout_s: float = PATIENCE_S) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.shown:
            ready, _, _ = select.select([self._master], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"{text!r} was not shown within {timeout_s} s, but: {self.shown[-2000:]!r}"
            self.shown += os.read(self._master, 65536).decode(errors="replace")

    def interrupt(self) -> None:
        self.shown = ""
        self.process.send_signal(signal.SIGINT)

    def type(self, text: str) -> None:
        self.shown = ""
        os.write(self._master, text.encode())

    def close(self) -> int:
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self._master], [], [], 0.05)[0]:
                try:
                    self.shown += os.read(self._master, 65536).decode(errors="replace")
                except OSError:  # the other side is closed
                    break
        code = self.process.wait(timeout=PATIENCE_S)
        os.close(self._master)
        return code
