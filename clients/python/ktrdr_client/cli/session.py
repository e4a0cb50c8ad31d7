"""One invocation: its settings, its consoles, its connection."""

from __future__ import annotations

import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ktrdr_client.settings import DEFAULT_DATA_DIR, ClientSettings
from ktrdr_core.errors import KtrdrError, NoSlotError, UnreachableError

if TYPE_CHECKING:
    from rich.console import Console

    from ktrdr_client.async_client import AsyncClient
    from ktrdr_core.rpc.channel_security import ChannelSecurity


TRAIN_RETRY_S = 30.0
"""How long Train is tried again by itself."""

_WATCH_GIVE_UP_S = 3600.0  # a laptop that comes back from lunch, a backend that is upgraded


@dataclass(kw_only=True)
class CliSession:
    """What every command gets.

    Attributes:
        settings: Settings of this invocation.
        is_json: Print JSON lines instead of text.
    """

    settings: ClientSettings
    is_json: bool = False
    _consoles: dict[str, Console] = field(default_factory=dict)
    _told: set[type[KtrdrError]] = field(default_factory=set)

    @property
    def out(self) -> Console:
        return self._console("stdout")

    @property
    def err(self) -> Console:
        return self._console("stderr")

    def _console(self, name: str) -> Console:
        if name not in self._consoles:
            from rich.console import Console

            # soft_wrap: a path or an id is never broken, so that it can be copied and grepped.
            self._consoles[name] = Console(stderr=name == "stderr", highlight=False, soft_wrap=True)
        return self._consoles[name]

    def say(self, text: str) -> None:
        """Print one line for people; text is never read as markup."""
        self.out.print(text, markup=False)

    def note(self, text: str) -> None:
        """Print one line about the run itself to stderr."""
        self.err.print(text, markup=False, style="dim")

    def write_json(self, line: str) -> None:
        """Print one JSON line and flush, so that a pipe sees it at once."""
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def command(self, words: str) -> str:
        """Return the full command a person would type next, with this invocation's own flags."""
        flags = ""
        if self.settings.backend is not None:
            flags = f"--backend {shlex.quote(self.settings.backend)} "
        elif self.settings.data_dir != DEFAULT_DATA_DIR.expanduser().resolve():
            flags = f"--data-dir {shlex.quote(_short(self.settings.data_dir))} "
        return f"ktrdr {flags}{words}"

    def security(self) -> ChannelSecurity | None:
        """Return TLS and token of the connections; None where there is neither, as to an embedded backend.

        Raises:
            InvalidInputError: A file cannot be read, or is no good.
        """
        settings = self.settings
        files = (settings.tls_ca, settings.tls_cert, settings.tls_key, settings.token_file)
        if settings.backend is None or not any(files):
            return None
        from ktrdr_core.rpc.channel_security import ChannelSecurity

        return ChannelSecurity(
            ca=settings.tls_ca, cert=settings.tls_cert, key=settings.tls_key, token_file=settings.token_file
        )

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AsyncClient]:
        """Connect to the backend asked for, or to the embedded one, started if need be."""
        from ktrdr_client.async_client import AsyncClient
        from ktrdr_client.progress_stream import ReconnectPolicy

        address = self.settings.backend
        if address is None:
            from ktrdr_client.embedded import find_or_start

            found = await find_or_start(
                self.settings, on_start=lambda: self.note("starting an embedded backend and trainer ...")
            )
            address = found.backend
            self._check_bars(found.bars_dir)
        async with AsyncClient(
            address,
            retry_for_s=TRAIN_RETRY_S,
            reconnect=ReconnectPolicy(give_up_after_s=_WATCH_GIVE_UP_S),
            on_retry=self._tell_retry,
            security=self.security(),
        ) as client:
            try:
                yield client
            except UnreachableError as error:
                hint = "`ktrdr doctor` looks at TLS" if self.settings.tls_ca else "one with TLS wants --tls-ca"
                raise UnreachableError(
                    f"the backend at {address} cannot be reached; check the address ({hint}), start one with "
                    "`ktrdr backend serve`, or leave --backend out to use an embedded one",
                    metadata=error.metadata,
                ) from error

    def _tell_retry(self, problem: KtrdrError) -> None:
        """Say once for each kind of problem that Train is tried again."""
        if type(problem) in self._told:
            return
        self._told.add(type(problem))
        pause = f" in {problem.retry_after_s:.0f} s" if isinstance(problem, NoSlotError) else ""
        self.note(f"{problem.message}; trying again{pause}, for at most {TRAIN_RETRY_S:.0f} s ...")

    def _check_bars(self, served: str) -> None:
        wanted = self.settings.bars_dir
        if wanted.is_dir() and str(wanted) != served:
            self.note(
                f"the embedded backend of {self.settings.data_dir} reads bars from {served}, not from {wanted}; "
                "use another --data-dir for other bars"
            )


def _short(path: Path) -> str:
    """Return the path relative to the working directory if it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
